//! The sealed record: a VM's identity, policy and devices under AES-256-GCM.
//!
//! It makes the policy stick: an edited record, a record of another VM, or a record that was sealed under another key
//! or for another key protector does not open.
//!
//! | Offset | Bytes | What |
//! |---|---|---|
//! | 0 | 8 | `DDREC\0\0\1` |
//! | 8 | 16 | VM id |
//! | 24 | 12 | nonce |
//! | 36 | n + 16 | JSON body, encrypted, and the tag |
//!
//! The key is derived from the transport key under [`LABEL`]. Additional data: `drydock-record-v1`, the VM id and the key
//! protector's digest (64 hex characters).

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use key_protector::TransportKey;
use serde::{Deserialize, Serialize};
use uuid::Uuid;
use zeroize::Zeroizing;

use crate::error::{Error, RecordField, Result};
use crate::spec::{ConsoleProfile, Policy, VmSpec};

/// HKDF label of the record's key.
pub const LABEL: &str = "drydock/sealed-record/v1";
/// Largest record, sealed, in bytes.
pub const MAX_LEN: usize = 64 * 1024;
/// Version of the body.
pub const VERSION: u32 = 1;

const MAGIC: &[u8; 8] = b"DDREC\0\0\x01";
const AAD: &[u8] = b"drydock-record-v1";
const NONCE_AT: usize = 24;
const BODY_AT: usize = 36;
const TAG: usize = 16;

/// What a VM is: its owner's keys vouch for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SealedRecord {
    /// [`VERSION`].
    pub version: u32,
    /// Which VM it describes.
    pub vm_id: Uuid,
    /// The security policy that its owner chose.
    pub policy: Policy,
    /// Whether sessions with the guest are possible.
    #[serde(default, skip_serializing_if = "ConsoleProfile::is_default")]
    pub console_profile: ConsoleProfile,
    /// Number of the slot that the record lies in; one more with every new transport key.
    pub generation: u64,
    /// In the VM's order.
    pub disks: Vec<DiskIdentity>,
    /// MAC addresses, in the VM's order.
    pub nics: Vec<String>,
}

/// A disk's identity.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskIdentity {
    /// The whole serial number; a guest may see less of it.
    pub serial: String,
    /// Bytes.
    pub size: u64,
}

impl SealedRecord {
    /// The record of a VM as `spec` describes it.
    pub fn new(spec: &VmSpec, generation: u64) -> Self {
        Self {
            version: VERSION,
            vm_id: spec.id,
            policy: spec.policy,
            console_profile: spec.console_profile,
            generation,
            disks: spec.disks.iter().map(|d| DiskIdentity { serial: d.serial.clone(), size: d.size }).collect(),
            nics: spec.nics.iter().map(|n| n.mac.clone()).collect(),
        }
    }

    /// Checks that `spec` is the VM that this record describes. Memory, processors and nested virtualization are the
    /// host's to choose; identity, policy, console profile and network cards are not. The record's disks come first; the
    /// host may attach more behind them (a repair garage's RG disk).
    ///
    /// # Errors
    /// [`Error::RecordMismatch`] with the first field that differs.
    pub fn check(&self, spec: &VmSpec) -> Result<()> {
        let differs = |field, reason: String| Err(Error::RecordMismatch { field, reason });
        if self.vm_id != spec.id {
            return differs(RecordField::VmId, format!("{} instead of {}", spec.id, self.vm_id));
        }
        if self.policy != spec.policy {
            return differs(RecordField::Policy, format!("{} instead of {}", spec.policy, self.policy));
        }
        if self.console_profile != spec.console_profile {
            let reason = format!("{} instead of {}", spec.console_profile, self.console_profile);
            return differs(RecordField::ConsoleProfile, reason);
        }
        let as_now = Self::new(spec, self.generation);
        if self.disks.is_empty() || !as_now.disks.starts_with(&self.disks) {
            return differs(RecordField::Disks, "number, serial numbers or sizes changed".into());
        }
        if self.nics != as_now.nics {
            return differs(RecordField::Nics, "number or MAC addresses changed".into());
        }
        Ok(())
    }

    /// The first field in which a VM's files disagree with this record, if any: `spec`, and `generation`, the number of
    /// the slot. Unlike [`SealedRecord::check`] it takes no disk beyond the record's own.
    pub fn disagreement(&self, spec: &VmSpec, generation: u64) -> Option<RecordField> {
        let of_files = Self::new(spec, generation);
        let fields = [
            (self.vm_id == of_files.vm_id, RecordField::VmId),
            (self.policy == of_files.policy, RecordField::Policy),
            (self.console_profile == of_files.console_profile, RecordField::ConsoleProfile),
            (self.generation == of_files.generation, RecordField::Generation),
            (self.nics == of_files.nics, RecordField::Nics),
            (self.disks == of_files.disks, RecordField::Disks),
        ];
        fields.into_iter().find(|(agrees, _)| !agrees).map(|(_, field)| field)
    }

    /// The record for the next slot: the same VM, one generation later. None when the generations are exhausted.
    #[must_use]
    pub fn successor(&self) -> Option<Self> {
        Some(Self { generation: self.generation.checked_add(1)?, ..self.clone() })
    }

    /// Seals under a key derived from `key`, for the key protector with this digest (64 hex characters).
    ///
    /// # Errors
    /// [`Error::RecordFormat`] when the record is longer than [`MAX_LEN`], or the digest is malformed.
    pub fn seal(&self, key: &TransportKey, protector_digest: &str) -> Result<Vec<u8>> {
        let mut body = Zeroizing::new(serde_json::to_vec(self).map_err(|source| Error::RecordContents { source })?);
        if BODY_AT + body.len() + TAG > MAX_LEN {
            return Err(Error::RecordFormat { reason: "too long" });
        }
        let mut nonce = [0; 12];
        aws_lc_rs::rand::fill(&mut nonce)
            .map_err(|_| Error::RecordFormat { reason: "the system has no random numbers" })?;
        let aad = aad(self.vm_id.as_bytes(), protector_digest)?;
        let tag = aead(key)?
            .seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), Aad::from(aad), &mut body)
            .map_err(|_| Error::RecordSealed)?;
        let mut out = Vec::with_capacity(BODY_AT + body.len() + TAG);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(self.vm_id.as_bytes());
        out.extend_from_slice(&nonce);
        out.extend_from_slice(&body);
        out.extend_from_slice(tag.as_ref());
        Ok(out)
    }

    /// Opens what [`SealedRecord::seal`] made. [`SealedRecord::check`] compares it with the VM.
    ///
    /// # Errors
    /// [`Error::RecordSealed`] for a wrong key, VM or key protector and for any changed byte;
    /// [`Error::RecordFormat`] for bytes that are not a record; [`Error::RecordContents`].
    pub fn open(sealed: &[u8], key: &TransportKey, vm_id: Uuid, protector_digest: &str) -> Result<Self> {
        let malformed = |reason| Error::RecordFormat { reason };
        if sealed.len() > MAX_LEN {
            return Err(malformed("too long"));
        }
        if sealed.len() < BODY_AT + TAG {
            return Err(malformed("too short"));
        }
        let (header, body) = sealed.split_at(BODY_AT);
        if !header.starts_with(MAGIC) {
            return Err(malformed("not a sealed record of this version"));
        }
        if &header[MAGIC.len()..NONCE_AT] != vm_id.as_bytes() {
            return Err(Error::RecordSealed);
        }
        let nonce: [u8; 12] = header[NONCE_AT..].try_into().map_err(|_| malformed("too short"))?;
        let aad = aad(vm_id.as_bytes(), protector_digest)?;
        let mut body = Zeroizing::new(body.to_vec());
        let plain = aead(key)?
            .open_in_place(Nonce::assume_unique_for_key(nonce), Aad::from(aad), &mut body)
            .map_err(|_| Error::RecordSealed)?;
        let record: Self = serde_json::from_slice(plain).map_err(|source| Error::RecordContents { source })?;
        if record.version != VERSION {
            return Err(malformed("unknown version"));
        }
        if record.vm_id != vm_id {
            return Err(Error::RecordSealed);
        }
        Ok(record)
    }
}

fn aead(key: &TransportKey) -> Result<LessSafeKey> {
    UnboundKey::new(&AES_256_GCM, key.derive(LABEL).expose()).map(LessSafeKey::new).map_err(|_| Error::RecordSealed)
}

/// Every part has a fixed length, so no two triples give the same bytes.
fn aad(vm_id: &[u8; 16], protector_digest: &str) -> Result<Vec<u8>> {
    let hex = protector_digest.len() == 64 && protector_digest.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'));
    if !hex {
        return Err(Error::RecordFormat { reason: "the key protector's digest is not 64 hex characters" });
    }
    Ok([AAD, vm_id, protector_digest.as_bytes()].concat())
}
