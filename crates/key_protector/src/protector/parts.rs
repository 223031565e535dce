//! The parts of a protector, before any rule has been checked.

use time::OffsetDateTime;

use crate::certificate::{Certificate, Role, check_pair};
use crate::error::Result;
use crate::guardian_public::GuardianPublic;
use crate::signature::Signature;

/// The largest protector that is read, in bytes.
pub const MAX_DOCUMENT: usize = 1024 * 1024;
/// The largest number of wrappings in a protector.
pub const MAX_WRAPPINGS: usize = 64;
/// The largest `MaxOfflineUnwraps` that an owner can give; a host treats a larger one as this.
pub const MAX_OFFLINE_UNWRAPS: u32 = 32;

/// The transport key, encrypted for one guardian (MS-KPS 2.2.2.4).
#[derive(Clone, Debug)]
pub struct Wrapping {
    pub(super) id: u32,
    pub(super) parent_id: u32,
    pub(super) role: Role,
    pub(super) signing: Certificate,
    pub(super) signing_signature: Signature,
    pub(super) encryption: Certificate,
    pub(super) encryption_signature: Signature,
    /// `MaxOfflineUnwraps`, in the owner's wrapping only.
    pub(super) offline_unwraps: Option<u32>,
    pub(super) cipher: Vec<u8>,
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
    /// [`Error::NotYetValid`](crate::Error::NotYetValid) or [`Error::Expired`](crate::Error::Expired).
    pub fn check_valid_at(&self, now: OffsetDateTime) -> Result<()> {
        self.signing.check_valid_at(now)?;
        self.encryption.check_valid_at(now)
    }

    /// Whether this is `guardian`'s wrapping, by both certificates.
    pub fn is_for(&self, guardian: &GuardianPublic) -> bool {
        self.signing == guardian.signing && self.encryption == guardian.encryption
    }
}

/// A protector as it is written, before any rule has been checked.
#[derive(Clone, Debug)]
pub(super) struct Parts {
    pub(super) wrappings: Vec<Wrapping>,
    pub(super) transport_key_signature: Vec<u8>,
    pub(super) guardian_signature: Signature,
    pub(super) signer_id: u32,
    pub(super) max_offline_unwraps: u32,
}

/// What is known about a guardian before its wrapping exists.
#[derive(Clone)]
pub(super) struct Recipient {
    pub(super) signing: Certificate,
    pub(super) signing_signature: Signature,
    pub(super) encryption: Certificate,
    pub(super) encryption_signature: Signature,
    /// The parent's place in the list of recipients.
    pub(super) parent: usize,
}

impl Recipient {
    pub(super) fn role(&self) -> Result<Role> {
        check_pair(&self.signing, &self.encryption)
    }
}
