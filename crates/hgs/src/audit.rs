//! What the service did and refused. Each row hashes the one before it, so that none can be removed or changed without
//! breaking all later ones. Each row is signed, so that write access to the store without the key is not enough to
//! rewrite them. Comparison with a last hash that was kept elsewhere also reveals rows that were cut off at the end.

use attestation::P256Key;
use aws_lc_rs::digest::{Context, SHA256, digest};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use data_encoding::HEXLOWER;
use time::OffsetDateTime;

use crate::error::Result;

/// The prefix of what a row's signature covers. Nothing else that is signed here begins like it.
const DOMAIN: &[u8] = b"drydock/hgs/audit-row/1\0";

/// Longest text of a column, in bytes: whatever an untrusted peer sent is cut here.
const MAX_TEXT: usize = 512;
/// The hash that the first row follows.
pub(crate) const GENESIS: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// What a row is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// An admin registered a host.
    HostAdded,
    /// An admin removed a host.
    HostRemoved,
    /// A host got a health certificate.
    Attested,
    /// A host got none.
    AttestationRefused,
    /// A host got transport keys.
    KeyReleased,
    /// A host got none.
    KeyRefused,
    /// An admin changed a check, a baseline or a setting.
    PolicyChanged,
    /// An admin made a new primary guardian.
    GuardianAdded,
    /// An admin destroyed an old guardian.
    GuardianRetired,
    /// A stale protector was rolled: with its owner's permit, or because stale ones are only reported.
    StaleKeyReleased,
    /// An admin brought an owner's permit for a stale protector.
    StalePermitted,
    /// An admin exported the service's keys.
    KeysExported,
    /// This node was made from an export.
    KeysImported,
}

impl Event {
    /// Name in the store; stable.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Event::HostAdded => "host-added",
            Event::HostRemoved => "host-removed",
            Event::Attested => "attested",
            Event::AttestationRefused => "attestation-refused",
            Event::KeyReleased => "key-released",
            Event::KeyRefused => "key-refused",
            Event::PolicyChanged => "policy-changed",
            Event::GuardianAdded => "guardian-added",
            Event::GuardianRetired => "guardian-retired",
            Event::StaleKeyReleased => "stale-key-released",
            Event::StalePermitted => "stale-permitted",
            Event::KeysExported => "keys-exported",
            Event::KeysImported => "keys-imported",
        }
    }
}

/// What is known about an event so far; unknown fields stay empty.
#[derive(Debug, Clone, Default)]
pub(crate) struct Record {
    pub(crate) host: String,
    pub(crate) host_key: String,
    pub(crate) protector: String,
    pub(crate) owner: String,
    pub(crate) why: String,
}

/// A row of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// From 1, without gaps.
    pub seq: i64,
    /// When.
    pub at: OffsetDateTime,
    /// [`Event::name`].
    pub event: String,
    /// Name of the host, as far as it was proven.
    pub host: String,
    /// Fingerprint of the host key.
    pub host_key: String,
    /// Digest of the protector that came in.
    pub protector: String,
    /// Fingerprint of its owner's signing certificate.
    pub owner: String,
    /// Why it was refused, or what was done.
    pub why: String,
    /// The hash of the row before it.
    pub previous: String,
    /// SHA-256, hexadecimal, over everything above.
    pub hash: String,
    /// ECDSA P-256 with SHA-256 over the hash, by the service's audit key; base64.
    pub signature: String,
}

/// The key that signs the rows. All nodes of a service share it.
pub(crate) struct AuditKey {
    key: P256Key,
    public: Vec<u8>,
    id: String,
}

impl AuditKey {
    pub(crate) fn new(key: P256Key) -> Result<Self> {
        let public = key.public_der()?;
        let id = HEXLOWER.encode(digest(&SHA256, &public).as_ref());
        Ok(AuditKey { key, public, id })
    }

    /// SHA-256 of the public key: the service's name for itself.
    pub(crate) fn id(&self) -> &str {
        &self.id
    }
}

impl Entry {
    pub(crate) fn new(
        seq: i64,
        at: i64,
        event: Event,
        record: Record,
        previous: String,
        key: &AuditKey,
    ) -> Result<Self> {
        let mut entry = Entry {
            seq,
            at: OffsetDateTime::from_unix_timestamp(at).unwrap_or(OffsetDateTime::UNIX_EPOCH),
            event: event.name().to_owned(),
            host: bounded(record.host),
            host_key: bounded(record.host_key),
            protector: bounded(record.protector),
            owner: bounded(record.owner),
            why: bounded(record.why),
            previous,
            hash: String::new(),
            signature: String::new(),
        };
        entry.hash = entry.compute_hash();
        entry.signature = STANDARD.encode(key.key.sign(&signed(&entry.hash))?);
        Ok(entry)
    }

    pub(crate) fn is_signed_by(&self, key: &AuditKey) -> bool {
        let Ok(signature) = STANDARD.decode(&self.signature) else { return false };
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, &key.public).verify(&signed(&self.hash), &signature).is_ok()
    }

    /// Whether this row is the one that follows `previous`.
    pub(crate) fn follows(&self, seq: i64, previous: &str) -> bool {
        self.seq == seq && self.previous == previous && self.hash == self.compute_hash()
    }

    fn compute_hash(&self) -> String {
        let mut context = Context::new(&SHA256);
        context.update(b"drydock hgs audit 1");
        context.update(&self.seq.to_be_bytes());
        context.update(&self.at.unix_timestamp().to_be_bytes());
        for text in [&self.event, &self.host, &self.host_key, &self.protector, &self.owner, &self.why, &self.previous] {
            // The length keeps "a" + "bc" apart from "ab" + "c".
            context.update(&(text.len() as u64).to_be_bytes());
            context.update(text.as_bytes());
        }
        HEXLOWER.encode(context.finish().as_ref())
    }
}

fn signed(hash: &str) -> Vec<u8> {
    [DOMAIN, hash.as_bytes()].concat()
}

/// Cuts, and makes control characters visible: the log is read in terminals.
fn bounded(text: String) -> String {
    if text.len() <= MAX_TEXT && !text.chars().any(char::is_control) {
        return text;
    }
    let mut kept = String::new();
    for character in text.chars() {
        let shown = if character.is_control() { '\u{fffd}' } else { character };
        if kept.len() + shown.len_utf8() > MAX_TEXT {
            break;
        }
        kept.push(shown);
    }
    kept
}
