//! Signatures in XML: how one is written, read and checked.

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, RSA_PSS_2048_8192_SHA256, UnparsedPublicKey, VerificationAlgorithm,
};
use base64::prelude::{BASE64_STANDARD, Engine as _};
use roxmltree::Node;

use crate::algorithm::SignatureAlgorithm;
use crate::certificate::{Certificate, PublicKey};
use crate::error::{Error, Result};
use crate::strict_xml as strict;

/// The name space of the MS-KPS documents.
pub(crate) const KPS: &str = "http://schemas.microsoft.com/kps/2014/07";

/// The algorithm that goes with a certificate's key.
pub(crate) fn algorithm_of(certificate: &Certificate) -> SignatureAlgorithm {
    match certificate.public_key() {
        PublicKey::P256 { .. } => SignatureAlgorithm::EcdsaP256,
        PublicKey::Rsa { .. } => SignatureAlgorithm::RsaPss,
    }
}

/// A signature value with its algorithm (MS-KPS 2.2.2.10).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Signature {
    pub(crate) algorithm: SignatureAlgorithm,
    pub(crate) value: Vec<u8>,
}

impl Signature {
    /// Whether `certificate`'s key made this signature over `message`.
    #[must_use]
    pub(crate) fn is_by(&self, certificate: &Certificate, message: &[u8]) -> bool {
        let (algorithm, key): (&'static dyn VerificationAlgorithm, &[u8]) =
            match (self.algorithm, certificate.public_key()) {
                (SignatureAlgorithm::EcdsaP256, PublicKey::P256 { point }) => (&ECDSA_P256_SHA256_FIXED, point),
                (SignatureAlgorithm::RsaPss, PublicKey::Rsa { pkcs1, .. }) => (&RSA_PSS_2048_8192_SHA256, pkcs1),
                _ => return false,
            };
        UnparsedPublicKey::new(algorithm, key).verify(message, &self.value).is_ok()
    }

    /// Appends the element `name` of the schema's `Signature_T`.
    pub(crate) fn write(&self, xml: &mut String, name: &str) {
        let uri = self.algorithm.uri();
        let value = BASE64_STANDARD.encode(&self.value);
        xml.push_str(&format!("<{name} Algorithm=\"{uri}\"><SignatureValue>{value}</SignatureValue></{name}>"));
    }

    /// Reads an element of the schema's `Signature_T`.
    pub(crate) fn read(node: Node<'_, '_>) -> Result<Self> {
        let [uri] = strict::attributes(node, ["Algorithm"])?;
        let algorithm = SignatureAlgorithm::from_uri(uri)
            .ok_or_else(|| Error::Algorithm { element: strict::name(node), uri: uri.to_owned() })?;
        let [value] = strict::children(node, KPS, ["SignatureValue"])?;
        Ok(Self { algorithm, value: strict::base64(value)? })
    }
}
