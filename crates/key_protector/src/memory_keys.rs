//! Private keys in memory, zeroed when dropped, with the operations that the provider does with them.

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeySize, OAEP_SHA256_MGF1SHA256, OaepPrivateDecryptingKey, PrivateDecryptingKey};
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _, RSA_PKCS1_SHA256,
    RsaKeyPair,
};
use zeroize::Zeroizing;

use crate::algorithm::SignatureAlgorithm;
use crate::certificate::{Certificate, PublicKey};
use crate::error::{Error, KeyError, Result};
use crate::private_keys::KeyResult;

/// The size of a new guardian's encryption key. Its signing key is always P-256.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyKind {
    /// RSA with 2048 bits, the least that is accepted: for guardians that live for hours.
    Rsa2048,
    /// RSA with 3072 bits: for guardians that live for years.
    Rsa3072,
}

/// A P-256 signing key.
pub(crate) struct SigningKey {
    pkcs8: Zeroizing<Vec<u8>>,
    pair: EcdsaKeyPair,
}

impl SigningKey {
    pub(crate) fn generate() -> Result<Self> {
        let document = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new())
            .map_err(|_| Error::Crypto { operation: "generate a signing key" })?;
        Self::from_pkcs8(document.as_ref())
    }

    pub(crate) fn from_pkcs8(pkcs8: &[u8]) -> Result<Self> {
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8)
            .map_err(|_| Error::PrivateKey { which: "signing" })?;
        Ok(Self { pkcs8: Zeroizing::new(pkcs8.to_vec()), pair })
    }

    pub(crate) fn pkcs8(&self) -> &[u8] {
        &self.pkcs8
    }

    pub(crate) fn belongs_to(&self, certificate: &Certificate) -> bool {
        matches!(certificate.public_key(),
            PublicKey::P256 { point } if point == self.pair.public_key().as_ref())
    }

    pub(crate) fn sign(&self, algorithm: SignatureAlgorithm, message: &[u8]) -> KeyResult<Vec<u8>> {
        if algorithm != SignatureAlgorithm::EcdsaP256 {
            return Err(KeyError::Unsupported { algorithm });
        }
        let value = self.pair.sign(&SystemRandom::new(), message).map_err(|_| KeyError::Provider)?;
        Ok(value.as_ref().to_vec())
    }

    /// The same key with ASN.1 signatures, which certificates use.
    pub(crate) fn x509_pair(&self) -> Result<EcdsaKeyPair> {
        EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &self.pkcs8)
            .map_err(|_| Error::PrivateKey { which: "signing" })
    }
}

/// An RSA encryption key.
pub(crate) struct EncryptionKey {
    pkcs8: Zeroizing<Vec<u8>>,
    key: OaepPrivateDecryptingKey,
    spki: Vec<u8>,
}

impl EncryptionKey {
    pub(crate) fn generate(kind: KeyKind) -> Result<Self> {
        let failed = |_| Error::Crypto { operation: "generate an encryption key" };
        let size = match kind {
            KeyKind::Rsa2048 => KeySize::Rsa2048,
            KeyKind::Rsa3072 => KeySize::Rsa3072,
        };
        let key = PrivateDecryptingKey::generate(size).map_err(failed)?;
        let pkcs8: Pkcs8V1Der<'_> = key.as_der().map_err(failed)?;
        Self::from_pkcs8(pkcs8.as_ref())
    }

    pub(crate) fn from_pkcs8(pkcs8: &[u8]) -> Result<Self> {
        let unusable = || Error::PrivateKey { which: "encryption" };
        let key = PrivateDecryptingKey::from_pkcs8(pkcs8).map_err(|_| unusable())?;
        let spki: PublicKeyX509Der<'_> = key.public_key().as_der().map_err(|_| unusable())?;
        Ok(Self {
            pkcs8: Zeroizing::new(pkcs8.to_vec()),
            spki: spki.as_ref().to_vec(),
            key: OaepPrivateDecryptingKey::new(key).map_err(|_| unusable())?,
        })
    }

    pub(crate) fn pkcs8(&self) -> &[u8] {
        &self.pkcs8
    }

    pub(crate) fn belongs_to(&self, certificate: &Certificate) -> bool {
        matches!(certificate.public_key(), PublicKey::Rsa { spki, .. } if *spki == self.spki)
    }

    pub(crate) fn unwrap(&self, cipher: &[u8]) -> KeyResult<Zeroizing<Vec<u8>>> {
        let mut plain = Zeroizing::new(vec![0; self.key.min_output_size()]);
        let length = self
            .key
            .decrypt(&OAEP_SHA256_MGF1SHA256, cipher, &mut plain, None)
            .map_err(|_| KeyError::NotForThisKey)?
            .len();
        plain.truncate(length);
        Ok(plain)
    }

    /// The same key as a signature key: its own certificate is all that it ever signs.
    pub(crate) fn x509_pair(&self) -> Result<RsaKeyPair> {
        RsaKeyPair::from_pkcs8(&self.pkcs8).map_err(|_| Error::PrivateKey { which: "encryption" })
    }
}

/// The provider's P-256 key, lent to the certificate maker without a copy of the private part.
pub(crate) struct X509Ec<'a>(pub(crate) &'a EcdsaKeyPair);

/// The same for an RSA key.
pub(crate) struct X509Rsa<'a>(pub(crate) &'a RsaKeyPair);

impl rcgen::PublicKeyData for X509Ec<'_> {
    fn der_bytes(&self) -> &[u8] {
        self.0.public_key().as_ref()
    }
    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &rcgen::PKCS_ECDSA_P256_SHA256
    }
}

impl rcgen::SigningKey for X509Ec<'_> {
    fn sign(&self, message: &[u8]) -> std::result::Result<Vec<u8>, rcgen::Error> {
        match self.0.sign(&SystemRandom::new(), message) {
            Ok(signature) => Ok(signature.as_ref().to_vec()),
            Err(_) => Err(rcgen::Error::RemoteKeyError),
        }
    }
}

impl rcgen::PublicKeyData for X509Rsa<'_> {
    fn der_bytes(&self) -> &[u8] {
        self.0.public_key().as_ref()
    }
    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &rcgen::PKCS_RSA_SHA256
    }
}

impl rcgen::SigningKey for X509Rsa<'_> {
    fn sign(&self, message: &[u8]) -> std::result::Result<Vec<u8>, rcgen::Error> {
        let mut signature = vec![0; self.0.public_modulus_len()];
        self.0
            .sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), message, &mut signature)
            .map_err(|_| rcgen::Error::RemoteKeyError)?;
        Ok(signature)
    }
}
