//! An ECDSA P-256 key pair whose private half is wiped, usable as a certificate's or an issuer's key.

use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair};
use zeroize::Zeroizing;

use crate::error::{Error, Result};
use crate::pem;

const LABEL: &str = "PRIVATE KEY";

/// An ECDSA P-256 key pair. No Debug and no Clone: it holds a private key.
pub struct P256Key {
    pair: EcdsaKeyPair,
    pkcs8: Zeroizing<Vec<u8>>,
}

impl P256Key {
    /// A new key pair.
    ///
    /// # Errors
    /// `Crypto` when the library has no randomness.
    pub fn generate() -> Result<Self> {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).map_err(|_| Error::Crypto)?;
        let pkcs8 = Zeroizing::new(pair.to_pkcs8v1().map_err(|_| Error::Crypto)?.as_ref().to_vec());
        Ok(P256Key { pair, pkcs8 })
    }

    /// Reads PKCS#8 in PEM.
    ///
    /// # Errors
    /// `NotPem`, `NotHostKey` (another kind of key).
    pub fn from_pem(text: &str) -> Result<Self> {
        let pkcs8 = pem::decode(LABEL, text)?;
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &pkcs8).map_err(|_| Error::NotHostKey)?;
        Ok(P256Key { pair, pkcs8 })
    }

    /// The private key as PKCS#8 in PEM.
    #[must_use]
    pub fn to_pem(&self) -> Zeroizing<String> {
        pem::encode(LABEL, &self.pkcs8)
    }

    /// The private key as PKCS#8 in DER.
    #[must_use]
    pub fn pkcs8(&self) -> &[u8] {
        &self.pkcs8
    }

    /// The public key as DER SubjectPublicKeyInfo.
    ///
    /// # Errors
    /// `Crypto` when the library cannot encode it.
    pub fn public_der(&self) -> Result<Vec<u8>> {
        let der: PublicKeyX509Der<'_> = self.pair.public_key().as_der().map_err(|_| Error::Crypto)?;
        Ok(der.as_ref().to_vec())
    }

    /// Signs with ECDSA and SHA-256, in ASN.1.
    ///
    /// # Errors
    /// `Crypto` when the library has no randomness.
    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>> {
        let signature = self.pair.sign(&SystemRandom::new(), message).map_err(|_| Error::Crypto)?;
        Ok(signature.as_ref().to_vec())
    }
}

impl rcgen::PublicKeyData for P256Key {
    fn der_bytes(&self) -> &[u8] {
        self.pair.public_key().as_ref()
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &rcgen::PKCS_ECDSA_P256_SHA256
    }
}

impl rcgen::SigningKey for P256Key {
    fn sign(&self, message: &[u8]) -> std::result::Result<Vec<u8>, rcgen::Error> {
        P256Key::sign(self, message).map_err(|_| rcgen::Error::RemoteKeyError)
    }
}
