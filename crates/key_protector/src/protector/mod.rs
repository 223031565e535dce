//! Key protectors: a VM's transport key, wrapped for its owner and for guardians (MS-KPS 2.2.2.3).
//!
//! Every guardian has one *wrapping*. The owner's is its own parent; every other guardian's
//! signing certificate is signed by its parent's, up to the owner. One of the guardians has signed
//! the list of wrappings (`GuardianSignature`), and a key derived from the transport key
//! authenticates the same list (`TransportKeySignature`).
//!
//! What MS-KPS leaves open is settled like this:
//!
//! | Where | Algorithm |
//! |---|---|
//! | `TransportKey` | `xmlenc11#rsa-oaep`, SHA-256, `mgf1sha256`, no label; the plaintext is the 32 bytes of the key |
//! | certificate signatures | ECDSA P-256 with SHA-256 (`xmldsig-more#ecdsa-sha256`) over the DER bytes; RSA-PSS is accepted |
//! | `GuardianSignature` | the same, over the exclusive canonical form of `Wrappings` |
//! | `TransportKeySignature` | HMAC-SHA256 over the same bytes, keyed by HKDF-SHA256 (salt `drydock`, info `transport-key-signature`, 32 bytes) |
//!
//! `MaxOfflineUnwraps` is an attribute of the document's root, where no signature covers it.
//! The owner's wrapping repeats it in the parameters of its `EncryptedData`, and both must agree.
//!
//! Beyond MS-KPS: a protector has exactly one accepted serialisation, so nothing that is not signed
//! can hide in it; the owner's role and the owner's wrapping go together; and a recovery guardian
//! can certify nobody, or its short life would mean nothing.

mod issue;
#[cfg(test)]
mod tests;
mod verify;
mod xml;

use aws_lc_rs::digest::{SHA256, digest};
use time::OffsetDateTime;

use crate::certificate::{Certificate, Role, check_pair};
use crate::error::{Error, Result};
use crate::guardian::Guardian;
use crate::signature::Signature;
use crate::transport_key::{TransportKey, hex};

pub use issue::Rolled;

/// The largest protector that is read, in bytes.
pub const MAX_DOCUMENT: usize = 1024 * 1024;
/// The largest number of wrappings in a protector.
pub const MAX_WRAPPINGS: usize = 64;
/// The largest `MaxOfflineUnwraps` that an owner can give; a host takes a larger one for this.
pub const MAX_OFFLINE_UNWRAPS: u32 = 32;

/// The transport key, encrypted for one guardian (MS-KPS 2.2.2.4).
#[derive(Clone, Debug)]
pub struct Wrapping {
    id: u32,
    parent_id: u32,
    role: Role,
    signing: Certificate,
    signing_signature: Signature,
    encryption: Certificate,
    encryption_signature: Signature,
    /// `MaxOfflineUnwraps`, in the owner's wrapping only.
    offline_unwraps: Option<u32>,
    cipher: Vec<u8>,
}

impl Wrapping {
    /// The number by which the protector's other parts refer to this wrapping. It means nothing
    /// in any other protector.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// The id of the wrapping whose signing key signed this one's signing certificate; for the
    /// owner, its own.
    pub fn parent_id(&self) -> u32 {
        self.parent_id
    }

    /// The guardian's name.
    pub fn name(&self) -> &str {
        self.signing.common_name()
    }

    /// The guardian's role.
    pub fn role(&self) -> Role {
        self.role
    }

    /// The certificate of the guardian's signing key.
    pub fn signing_certificate(&self) -> &Certificate {
        &self.signing
    }

    /// The certificate of the key for which the transport key is encrypted.
    pub fn encryption_certificate(&self) -> &Certificate {
        &self.encryption
    }

    /// Whether both certificates are valid at `now`.
    ///
    /// # Errors
    /// [`Error::NotYetValid`] or [`Error::Expired`].
    pub fn check_valid_at(&self, now: OffsetDateTime) -> Result<()> {
        self.signing.check_valid_at(now)?;
        self.encryption.check_valid_at(now)
    }

    fn is_for(&self, guardian: &Guardian) -> bool {
        let public = guardian.public();
        self.signing == public.signing && self.encryption == public.encryption
    }
}

/// A key protector. Its wrappings form a tree below one owner: that is checked whenever a value of
/// this type is made. Its signatures are not, until [`Protector::verify`] or [`Protector::open`].
#[derive(Clone, Debug)]
pub struct Protector {
    parts: Parts,
    owner: usize,
    signer: usize,
}

/// A protector as it is written, before anything is known to be right.
#[derive(Clone, Debug)]
struct Parts {
    wrappings: Vec<Wrapping>,
    transport_key_signature: Vec<u8>,
    guardian_signature: Signature,
    signer_id: u32,
    max_offline_unwraps: u32,
}

impl Protector {
    /// Reads a protector of at most 1 MiB. Anything that the schema does not allow, and any
    /// spelling other than that of [`Protector::to_xml`], is refused.
    ///
    /// Signatures and lifetimes are not looked at.
    ///
    /// # Errors
    /// Whatever is wrong with the document, its certificates or the tree of its wrappings.
    pub fn parse(xml: &[u8]) -> Result<Self> {
        Self::from_parts(Parts::read(xml)?)
    }

    /// The only serialisation of this protector: UTF-8, no declaration, no white space between
    /// elements.
    pub fn to_xml(&self) -> Vec<u8> {
        self.parts.to_xml().into_bytes()
    }

    /// SHA-256 of [`Protector::to_xml`], as lower-case hexadecimal.
    pub fn digest(&self) -> String {
        hex(digest(&SHA256, &self.to_xml()).as_ref())
    }

    /// The owner's wrapping.
    pub fn owner(&self) -> &Wrapping {
        &self.parts.wrappings[self.owner]
    }

    /// All wrappings, in the document's order.
    pub fn wrappings(&self) -> &[Wrapping] {
        &self.parts.wrappings
    }

    /// The wrapping of the guardian who signed the protector.
    pub fn signer(&self) -> &Wrapping {
        &self.parts.wrappings[self.signer]
    }

    /// How often the transport key may be unwrapped without a service's help; 0 is never.
    pub fn max_offline_unwraps(&self) -> u32 {
        self.parts.max_offline_unwraps
    }

    /// The wrappings whose guardians can do nothing with the protector at `now`, because a
    /// certificate is not valid yet or not any more. They do not make the protector invalid.
    pub fn expired(&self, now: OffsetDateTime) -> Vec<&Wrapping> {
        let wrappings = self.parts.wrappings.iter();
        wrappings.filter(|w| w.check_valid_at(now).is_err()).collect()
    }

    /// Verifies the protector and takes out the transport key.
    ///
    /// `by` must be a recipient with certificates that are valid at `now`. An owner whose guardian
    /// or whose protector's signer has expired can still say which instant counts.
    ///
    /// # Errors
    /// Those of [`Protector::verify`]; [`Error::NotARecipient`], [`Error::Expired`],
    /// [`Error::Unwrap`] or [`Error::TransportKeySignature`].
    pub fn open(&self, by: &Guardian, now: OffsetDateTime) -> Result<TransportKey> {
        let signed = self.verify_signatures(now)?;
        let wrapping = self.wrapping_of(by)?;
        wrapping.check_valid_at(now)?;
        let key = by.unwrap(&wrapping.cipher).ok_or(Error::Unwrap { id: wrapping.id })?;
        verify::check_transport_key(&self.parts, &key, &signed)?;
        Ok(key)
    }

    fn wrapping_of(&self, guardian: &Guardian) -> Result<&Wrapping> {
        let mut wrappings = self.parts.wrappings.iter();
        wrappings
            .find(|w| w.is_for(guardian))
            .ok_or_else(|| Error::NotARecipient { guardian: guardian.public().name().to_owned() })
    }

    fn from_parts(parts: Parts) -> Result<Self> {
        let (owner, signer) = verify::check_tree(&parts)?;
        Ok(Self { parts, owner, signer })
    }
}

/// What is known of a guardian before its wrapping exists.
#[derive(Clone)]
struct Recipient {
    signing: Certificate,
    signing_signature: Signature,
    encryption: Certificate,
    encryption_signature: Signature,
    /// The parent's place in the list of recipients.
    parent: usize,
}

impl Recipient {
    fn role(&self) -> Result<Role> {
        check_pair(&self.signing, &self.encryption)
    }
}
