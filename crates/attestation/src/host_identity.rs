//! What identifies a registered host.

use crate::error::Result;
use crate::host_key::HostPublicKey;
use crate::messages::{MODE_HOST_KEY, MODE_TPM};
use crate::tpm::keys::EkPublic;

/// The kind of key that identifies a host, and with it the kind of evidence that it gives. A service accepts one kind
/// (MS-HGSA 1.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostKind {
    /// A signing key in a file of the host.
    HostKey,
    /// The endorsement key of its TPM.
    Tpm,
}

impl HostKind {
    /// Name in the store and in the service's settings; stable.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            HostKind::HostKey => "host-key",
            HostKind::Tpm => "tpm",
        }
    }

    /// Number on the wire: AttestationOperationMode (MS-HGSA 2.2.1.1).
    #[must_use]
    pub fn operation_mode(self) -> u32 {
        match self {
            HostKind::HostKey => MODE_HOST_KEY,
            HostKind::Tpm => MODE_TPM,
        }
    }

    /// The kind with this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [HostKind::HostKey, HostKind::Tpm].into_iter().find(|kind| kind.name() == name)
    }
}

/// The public key that a host is registered with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostIdentity {
    /// In host-key mode.
    HostKey(HostPublicKey),
    /// In TPM mode: the endorsement key.
    Tpm(EkPublic),
}

impl HostIdentity {
    /// Reads a key of this kind from DER SubjectPublicKeyInfo.
    ///
    /// # Errors
    /// `NotHostKey`, `NotEndorsementKey`.
    pub fn from_der(kind: HostKind, der: &[u8]) -> Result<Self> {
        match kind {
            HostKind::HostKey => HostPublicKey::from_der(der).map(HostIdentity::HostKey),
            HostKind::Tpm => EkPublic::from_der(der).map(HostIdentity::Tpm),
        }
    }

    /// Which of the two it is.
    #[must_use]
    pub fn kind(&self) -> HostKind {
        match self {
            HostIdentity::HostKey(_) => HostKind::HostKey,
            HostIdentity::Tpm(_) => HostKind::Tpm,
        }
    }

    /// DER SubjectPublicKeyInfo.
    #[must_use]
    pub fn der(&self) -> &[u8] {
        match self {
            HostIdentity::HostKey(key) => key.der(),
            HostIdentity::Tpm(key) => key.der(),
        }
    }

    /// Lower-case hexadecimal SHA-256 of [`der`](Self::der). Keys of different kinds differ in their encoding and so in
    /// their fingerprints.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        match self {
            HostIdentity::HostKey(key) => key.fingerprint(),
            HostIdentity::Tpm(key) => key.fingerprint(),
        }
    }
}

impl From<HostPublicKey> for HostIdentity {
    fn from(key: HostPublicKey) -> Self {
        HostIdentity::HostKey(key)
    }
}

impl From<EkPublic> for HostIdentity {
    fn from(key: EkPublic) -> Self {
        HostIdentity::Tpm(key)
    }
}
