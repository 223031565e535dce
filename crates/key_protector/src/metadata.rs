//! A guardian's public part as a document: the `Metadata` of MS-KPS 6.4.
//!
//! ```text
//! <Metadata Version="1">
//!   <GuardianInformation>
//!     <Version>1</Version>
//!     <EncryptionCertificate/> <SigningCertificate/>
//!     <EncryptionCertificateSignature/> <SigningCertificateSelfSignature/>
//!   </GuardianInformation>
//!   <ds:Signature/>
//! </Metadata>
//! ```
//!
//! The `ds:Signature` is enveloped: one reference to the whole document without the signature,
//! exclusive canonicalisation, SHA-256, signed by the guardian's signing key. It carries no key
//! information, since the key is in the document. There is exactly one accepted serialisation,
//! without white space between elements.

use aws_lc_rs::digest::{SHA256, digest};
use base64::prelude::{BASE64_STANDARD, Engine as _};

use crate::certificate::Certificate;
use crate::error::{Error, Result};
use crate::guardian::GuardianPublic;
use crate::signature::{Algorithm, KPS, Signature};
use crate::strict_xml as strict;

const DOCUMENT: &str = "guardian metadata document";
const MAX_DOCUMENT: usize = 64 * 1024;
const VERSION: &str = "1";

const DSIG: &str = "http://www.w3.org/2000/09/xmldsig#";
const EXC_C14N: &str = "http://www.w3.org/2001/10/xml-exc-c14n#";
const ENVELOPED: &str = "http://www.w3.org/2000/09/xmldsig#enveloped-signature";
const SHA256_URI: &str = "http://www.w3.org/2001/04/xmlenc#sha256";

impl GuardianPublic {
    /// Reads and verifies a document of at most 64 KiB.
    ///
    /// # Errors
    /// Whatever is wrong with the document, its certificates or its signatures.
    pub fn parse(xml: &[u8]) -> Result<Self> {
        let document = strict::parse(DOCUMENT, xml, MAX_DOCUMENT)?;
        let root = document.root_element();
        strict::expect(root, KPS, "Metadata")?;
        strict::attributes(root, ["Version"])?;
        let mut parts = root.children();
        let (Some(information), Some(signature), None) = (parts.next(), parts.next(), parts.next()) else {
            return Err(strict::structure(root, "must have two children"));
        };
        strict::expect(information, KPS, "GuardianInformation")?;
        strict::expect(signature, DSIG, "Signature")?;
        let [_, encryption, signing, encryption_signature, self_signature] = strict::children(
            information,
            KPS,
            [
                "Version",
                "EncryptionCertificate",
                "SigningCertificate",
                "EncryptionCertificateSignature",
                "SigningCertificateSelfSignature",
            ],
        )?;
        let [_, value] = strict::children(signature, DSIG, ["SignedInfo", "SignatureValue"])?;
        let signing = Certificate::from_der(&strict::base64(signing)?)?;
        let metadata_signature = Signature { algorithm: Algorithm::of(&signing), value: strict::base64(value)? };
        let guardian = Self::new(
            signing,
            Certificate::from_der(&strict::base64(encryption)?)?,
            Signature::read(encryption_signature)?,
            Signature::read(self_signature)?,
            metadata_signature,
        )?;
        // Writing it again settles everything that was skipped above: the versions, and every
        // algorithm and digest in SignedInfo.
        if guardian.to_xml() != xml {
            return Err(Error::NotCanonical { document: DOCUMENT });
        }
        Ok(guardian)
    }
}

/// What is signed in the document, and the document made of it.
pub(crate) struct Body<'a> {
    pub(crate) signing: &'a Certificate,
    pub(crate) encryption: &'a Certificate,
    pub(crate) encryption_signature: &'a Signature,
    pub(crate) self_signature: &'a Signature,
}

impl Body<'_> {
    /// The canonical `SignedInfo`.
    pub(crate) fn to_be_signed(&self) -> Result<Vec<u8>> {
        let namespace = format!(" xmlns=\"{DSIG}\"");
        strict::canonicalize(&self.signed_info(&namespace)?)
    }

    /// The whole document with this signature in it.
    pub(crate) fn signed_by(&self, signature: &Signature) -> Result<String> {
        // Here the name space is inherited from Signature.
        let info = self.signed_info("")?;
        let value = BASE64_STANDARD.encode(&signature.value);
        Ok(self.document(&format!(
            "<Signature xmlns=\"{DSIG}\">{info}<SignatureValue>{value}</SignatureValue></Signature>"
        )))
    }

    fn signed_info(&self, namespace: &str) -> Result<String> {
        // The enveloped-signature transform takes the signature out before the digest.
        let unsigned = strict::canonicalize(&self.document(""))?;
        let digest = BASE64_STANDARD.encode(digest(&SHA256, &unsigned));
        let method = Algorithm::of(self.signing).uri();
        Ok(format!(
            "<SignedInfo{namespace}>\
             <CanonicalizationMethod Algorithm=\"{EXC_C14N}\"></CanonicalizationMethod>\
             <SignatureMethod Algorithm=\"{method}\"></SignatureMethod>\
             <Reference URI=\"\"><Transforms><Transform Algorithm=\"{ENVELOPED}\"></Transform>\
             <Transform Algorithm=\"{EXC_C14N}\"></Transform></Transforms>\
             <DigestMethod Algorithm=\"{SHA256_URI}\"></DigestMethod>\
             <DigestValue>{digest}</DigestValue></Reference></SignedInfo>"
        ))
    }

    /// The document with this signature element, or without one.
    fn document(&self, signature: &str) -> String {
        let mut xml = format!(
            "<Metadata xmlns=\"{KPS}\" Version=\"{VERSION}\"><GuardianInformation>\
             <Version>{VERSION}</Version>\
             <EncryptionCertificate>{}</EncryptionCertificate>\
             <SigningCertificate>{}</SigningCertificate>",
            BASE64_STANDARD.encode(self.encryption.der()),
            BASE64_STANDARD.encode(self.signing.der()),
        );
        self.encryption_signature.write(&mut xml, "EncryptionCertificateSignature");
        self.self_signature.write(&mut xml, "SigningCertificateSelfSignature");
        xml.push_str("</GuardianInformation>");
        xml.push_str(signature);
        xml.push_str("</Metadata>");
        xml
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::certificate::Role;
    use crate::test_support::guardian;

    #[test]
    fn round_trip() {
        let public = guardian("fabric", Role::Fabric).public();
        let read = GuardianPublic::parse(&public.to_xml()).unwrap();
        assert_eq!(read.signing(), public.signing());
        assert_eq!(read.encryption(), public.encryption());
        assert_eq!(read.role(), Role::Fabric);
        assert_eq!(read.to_xml(), public.to_xml());
    }

    #[test]
    fn every_changed_byte_is_noticed() {
        let xml = guardian("fabric", Role::Fabric).public().to_xml();
        let mut changed = xml.clone();
        for (place, original) in xml.iter().enumerate() {
            for mask in [0x01, 0x20, 0x80] {
                changed[place] = original ^ mask;
                assert!(GuardianPublic::parse(&changed).is_err(), "byte {place}");
            }
            changed[place] = *original;
        }
    }

    #[test]
    fn a_signature_of_somebody_else_is_refused() {
        let fabric = guardian("fabric", Role::Fabric);
        let other = guardian("second-fabric", Role::Fabric);
        let public = fabric.public();
        let with = |encryption: &GuardianPublic, signature: Signature, own: Signature| {
            let body = Body {
                signing: &public.signing,
                encryption: &encryption.encryption,
                encryption_signature: &signature,
                self_signature: &own,
            };
            let document = fabric.sign(&body.to_be_signed().unwrap()).unwrap();
            let xml = body.signed_by(&document).unwrap();
            GuardianPublic::parse(xml.as_bytes()).map(drop)
        };
        let (signature, own) = (&public.encryption_signature, &public.self_signature);
        assert!(with(public, signature.clone(), own.clone()).is_ok());
        let by_other = other.sign(public.encryption.der()).unwrap();
        let refused = with(public, by_other, own.clone());
        assert_eq!(refused.unwrap_err().kind(), "guardian-self-signature");
        let by_other = other.sign(public.signing.der()).unwrap();
        let refused = with(public, signature.clone(), by_other);
        assert_eq!(refused.unwrap_err().kind(), "guardian-self-signature");
        // Somebody else's encryption certificate cannot be claimed under another name.
        let claimed = fabric.sign(other.public().encryption.der()).unwrap();
        let refused = with(other.public(), claimed, own.clone());
        assert_eq!(refused.unwrap_err().kind(), "names-differ");

        let body = Body {
            signing: &public.signing,
            encryption: &public.encryption,
            encryption_signature: signature,
            self_signature: own,
        };
        let document = other.sign(&body.to_be_signed().unwrap()).unwrap();
        let xml = body.signed_by(&document).unwrap();
        let refused = GuardianPublic::parse(xml.as_bytes());
        assert_eq!(refused.unwrap_err().kind(), "metadata-signature");
    }
}
