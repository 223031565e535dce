//! The encryption key that a health certificate certifies. It lives as long as one run of the agent.

use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::rsa::{
    KeySize, OAEP_SHA256_MGF1SHA256, OaepPrivateDecryptingKey, OaepPublicEncryptingKey, PrivateDecryptingKey,
    PublicEncryptingKey,
};
use zeroize::Zeroizing;

use crate::error::{Error, Result};

/// Longest SubjectPublicKeyInfo of an RSA-4096 key, with room for a large exponent.
const MAX_DER: usize = 1024;
const BITS: std::ops::RangeInclusive<usize> = 2048..=4096;

/// RSA-3072, never written anywhere. MS-HGSA calls its public half VirtualSecureModeIdentityKey.
pub struct IdentityKey {
    private: OaepPrivateDecryptingKey,
    public: IdentityPublic,
}

impl IdentityKey {
    /// A new key. Takes a few tenths of a second: call it where blocking is fine.
    ///
    /// # Errors
    /// `Crypto` when the library fails.
    pub fn generate() -> Result<Self> {
        let private = PrivateDecryptingKey::generate(KeySize::Rsa3072).map_err(|_| Error::Crypto)?;
        let der: PublicKeyX509Der<'_> = private.public_key().as_der().map_err(|_| Error::Crypto)?;
        let public = IdentityPublic::from_der(der.as_ref())?;
        let private = OaepPrivateDecryptingKey::new(private).map_err(|_| Error::Crypto)?;
        Ok(IdentityKey { private, public })
    }

    /// The public half, which a health certificate certifies.
    #[must_use]
    pub fn public(&self) -> &IdentityPublic {
        &self.public
    }

    /// Decrypts RSA-OAEP with SHA-256 for digest and mask and no label.
    ///
    /// # Errors
    /// `NotForThisIdentity`, whatever was wrong with the ciphertext.
    pub fn decrypt(&self, ciphertext: &[u8]) -> Result<Zeroizing<Vec<u8>>> {
        let mut buffer = Zeroizing::new(vec![0; self.private.min_output_size()]);
        let length = self
            .private
            .decrypt(&OAEP_SHA256_MGF1SHA256, ciphertext, &mut buffer, None)
            .map_err(|_| Error::NotForThisIdentity)?
            .len();
        buffer.truncate(length);
        Ok(buffer)
    }
}

/// The public half, checked for kind and size.
#[derive(Clone, PartialEq, Eq)]
pub struct IdentityPublic {
    der: Vec<u8>,
}

impl IdentityPublic {
    /// Reads DER SubjectPublicKeyInfo.
    ///
    /// # Errors
    /// `NotIdentityKey` for anything but an RSA key of 2048 to 4096 bits.
    pub fn from_der(der: &[u8]) -> Result<Self> {
        parse(der)?;
        Ok(IdentityPublic { der: der.to_vec() })
    }

    /// DER SubjectPublicKeyInfo.
    #[must_use]
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// Encrypts with RSA-OAEP, SHA-256 for digest and mask, no label.
    ///
    /// # Errors
    /// `Crypto` when the plaintext is too long for the key or the library fails.
    pub fn encrypt(&self, plaintext: &[u8]) -> Result<Vec<u8>> {
        let key = OaepPublicEncryptingKey::new(parse(&self.der)?).map_err(|_| Error::Crypto)?;
        let mut ciphertext = vec![0; key.ciphertext_size()];
        let length =
            key.encrypt(&OAEP_SHA256_MGF1SHA256, plaintext, &mut ciphertext, None).map_err(|_| Error::Crypto)?.len();
        ciphertext.truncate(length);
        Ok(ciphertext)
    }
}

fn parse(der: &[u8]) -> Result<PublicEncryptingKey> {
    if der.len() > MAX_DER {
        return Err(Error::NotIdentityKey);
    }
    // rcgen's parser refuses trailing bytes and algorithms other than rsaEncryption; the other one checks the numbers.
    rcgen::SubjectPublicKeyInfo::from_der(der).map_err(|_| Error::NotIdentityKey)?;
    let key = PublicEncryptingKey::from_der(der).map_err(|_| Error::NotIdentityKey)?;
    if BITS.contains(&key.key_size_bits()) { Ok(key) } else { Err(Error::NotIdentityKey) }
}
