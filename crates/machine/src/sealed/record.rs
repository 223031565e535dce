//! The sealed record: a VM's identity, policy and devices under AES-256-GCM.
//!
//! It makes the policy stick: a file edited by hand, a record of another VM, or a record sealed
//! under another key or for another key protector does not open.
//!
//! | Offset | Bytes | What |
//! |---|---|---|
//! | 0 | 8 | `DDREC\0\0\1` |
//! | 8 | 16 | VM id |
//! | 24 | 12 | nonce |
//! | 36 | n + 16 | JSON body, encrypted, and the tag |
//!
//! Key: the transport key's derivation under [`LABEL`]. Additional data: `drydock-record-v1`, the VM
//! id and the key protector's digest (64 hex characters).

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use key_protector::TransportKey;
use serde::{Deserialize, Serialize};
use uuid::Uuid;
use zeroize::Zeroizing;

use crate::spec::{ConsoleProfile, Policy, VmSpec};
use crate::{Error, Result};

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

/// What a VM is, as its owner's keys vouch for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SealedRecord {
    /// [`VERSION`].
    pub version: u32,
    pub vm_id: Uuid,
    pub policy: Policy,
    #[serde(default, skip_serializing_if = "ConsoleProfile::is_default")]
    pub console_profile: ConsoleProfile,
    /// Grows by one with every new transport key.
    pub generation: u64,
    /// In the order in which the VM has them.
    pub disks: Vec<DiskIdentity>,
    /// MAC addresses, in the order in which the VM has them.
    pub nics: Vec<String>,
}

/// A disk's identity.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskIdentity {
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

    /// That `spec` is the VM which this record speaks of. Memory, processors and nested
    /// virtualization are the host's to choose; identity, policy, console profile and cards are not. The record's
    /// disks come first; the host may attach more behind them (a repair garage's RG disk).
    pub fn check(&self, spec: &VmSpec) -> Result<()> {
        let differs = |field, reason: String| Err(Error::RecordMismatch { field, reason });
        if self.vm_id != spec.id {
            return differs("id", format!("{} instead of {}", spec.id, self.vm_id));
        }
        if self.policy != spec.policy {
            return differs("policy", format!("{} instead of {}", spec.policy, self.policy));
        }
        if self.console_profile != spec.console_profile {
            return differs("console_profile", format!("{} instead of {}", spec.console_profile, self.console_profile));
        }
        let as_now = Self::new(spec, self.generation);
        if self.disks.is_empty() || !as_now.disks.starts_with(&self.disks) {
            return differs("disks", "number, serial numbers or sizes changed".into());
        }
        if self.nics != as_now.nics {
            return differs("network cards", "number or MAC addresses changed".into());
        }
        Ok(())
    }

    /// Seals under a key from `key`, for the key protector with this digest (64 hex characters).
    pub fn seal(&self, key: &TransportKey, protector_digest: &str) -> Result<Vec<u8>> {
        let mut body = Zeroizing::new(serde_json::to_vec(self).map_err(|source| Error::RecordContents { source })?);
        if BODY_AT + body.len() + TAG > MAX_LEN {
            return Err(Error::RecordFormat { reason: "too long" });
        }
        let mut nonce = [0; 12];
        aws_lc_rs::rand::fill(&mut nonce).map_err(|_| Error::RecordFormat { reason: "no random numbers" })?;
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

    /// Opens what [`SealedRecord::seal`] made. Compare it with the VM by [`SealedRecord::check`].
    ///
    /// # Errors
    /// [`Error::RecordSealed`] for a wrong key, VM or key protector and for any changed byte.
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
