//! The two private operations of a guardian, whatever holds its keys.
//!
//! [`Guardian`](crate::Guardian) implements them with keys in memory. Nothing in this crate reads a
//! private key through these traits: they name a key's operations, so that a token which never
//! gives its keys away (PKCS#11, a smartcard) can implement them too.
//!
//! Such an implementation also needs the guardian's public half: [`GuardianPublic::parse`] reads it,
//! and [`GuardianPublic::self_signed`] makes it once with the token's help.

use zeroize::Zeroizing;

use crate::algorithm::SignatureAlgorithm;
use crate::error::{Error, KeyError, Result};
use crate::guardian_public::GuardianPublic;
use crate::signature::{Signature, algorithm_of};

/// What one private operation comes to.
pub type KeyResult<T> = std::result::Result<T, KeyError>;

/// Something that acts for a guardian.
///
/// An implementation is shared between threads; one with a session that is not must lock it.
pub trait Identified: Send + Sync {
    /// Whose keys these are.
    fn public(&self) -> &GuardianPublic;
}

/// A guardian's signing key.
pub trait Signer: Identified {
    /// Signs `message` as it stands, at most 4 MiB. Both algorithms begin with SHA-256, so an
    /// implementation may hash in software and give its token the digest only.
    ///
    /// What is signed in different places must never look alike: certificates begin with 0x30, XML
    /// with `<`, and signed documents with a letter.
    ///
    /// # Errors
    /// [`KeyError::Unsupported`] for an algorithm that the key does not have, or whatever keeps it
    /// from signing.
    fn sign(&self, algorithm: SignatureAlgorithm, message: &[u8]) -> KeyResult<Vec<u8>>;
}

/// A guardian's encryption key.
pub trait Opener: Identified {
    /// Decrypts `cipher` by RSA-OAEP with SHA-256 throughout and an empty label
    /// (PKCS#11: `CKM_RSA_PKCS_OAEP`, `CKM_SHA256`, `CKG_MGF1_SHA256`).
    ///
    /// # Errors
    /// [`KeyError::NotForThisKey`] if the padding does not verify, or whatever keeps the key from
    /// decrypting. They must not be confused: the first condemns the document, the others do not.
    fn unwrap_key(&self, cipher: &[u8]) -> KeyResult<Zeroizing<Vec<u8>>>;
}

/// Both keys of a guardian: what it takes to change a protector.
pub trait PrivateKeys: Signer + Opener {}

impl<T: Signer + Opener + ?Sized> PrivateKeys for T {}

impl<T: Identified + ?Sized> Identified for &T {
    fn public(&self) -> &GuardianPublic {
        (**self).public()
    }
}

impl<T: Signer + ?Sized> Signer for &T {
    fn sign(&self, algorithm: SignatureAlgorithm, message: &[u8]) -> KeyResult<Vec<u8>> {
        (**self).sign(algorithm, message)
    }
}

impl<T: Opener + ?Sized> Opener for &T {
    fn unwrap_key(&self, cipher: &[u8]) -> KeyResult<Zeroizing<Vec<u8>>> {
        (**self).unwrap_key(cipher)
    }
}

/// Signs with the algorithm that goes with the signer's certificate.
pub(crate) fn sign(by: &dyn Signer, message: &[u8]) -> Result<Signature> {
    let public = by.public();
    let algorithm = algorithm_of(public.signing());
    let value = by.sign(algorithm, message).map_err(|source| Error::KeyOperation {
        guardian: public.name().to_owned(),
        operation: "sign",
        source,
    })?;
    Ok(Signature { algorithm, value })
}
