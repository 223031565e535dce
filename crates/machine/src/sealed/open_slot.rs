//! A slot whose record is open: what every new transport key takes, in one place.
//!
//! ```text
//! open (key, VM, key protector) ──> check (the VM's files, the slot's number) ──> reseal_into (next slot, next key)
//! ```
//! Which slot is the active one is for the caller to decide and to switch: nothing here changes the slot that was
//! opened.

use std::path::{Path, PathBuf};

use key_protector::TransportKey;
use uuid::Uuid;

use super::record::SealedRecord;
use super::slot;
use crate::error::{Error, RecordField, Result};
use crate::spec::VmSpec;

/// A slot, the transport key that opens it, and its record.
pub struct OpenSlot<'k> {
    dir: PathBuf,
    key: &'k TransportKey,
    record: SealedRecord,
}

impl<'k> OpenSlot<'k> {
    /// Opens the record in the directory `dir` with `key`, for the VM `vm_id` and the key protector with this digest
    /// (64 hex characters).
    ///
    /// # Errors
    /// [`Error::RecordSealed`] when key, VM or key protector are not the ones that the record was sealed for;
    /// [`Error::Io`] when it cannot be read.
    pub fn open(dir: &Path, key: &'k TransportKey, vm_id: Uuid, protector_digest: &str) -> Result<Self> {
        let record = slot::open_record(dir, key, vm_id, protector_digest)?;
        Ok(Self { dir: dir.to_path_buf(), key, record })
    }

    /// What the VM's owner sealed.
    pub fn record(&self) -> &SealedRecord {
        &self.record
    }

    /// Checks that the VM's files agree with the record: `spec`, and `generation`, the number of the slot.
    ///
    /// # Errors
    /// The first field that disagrees.
    pub fn check(&self, spec: &VmSpec, generation: u64) -> std::result::Result<(), RecordField> {
        match self.record.disagreement(spec, generation) {
            None => Ok(()),
            Some(field) => Err(field),
        }
    }

    /// Writes the state into the new slot `next_dir`, encrypted again under `next_key`, with `record` sealed for the
    /// key protector with this digest (64 hex characters). The VM must be off. The opened slot stays as it is.
    ///
    /// # Errors
    /// [`Error::RecordMismatch`] when `record` is another VM's; [`Error::Vars`] when the UEFI variables do not open;
    /// otherwise when `next_dir` is not empty, or a tool fails.
    pub async fn reseal_into<'n>(
        &self,
        next_dir: &Path,
        next_key: &'n TransportKey,
        record: SealedRecord,
        protector_digest: &str,
    ) -> Result<OpenSlot<'n>> {
        if record.vm_id != self.record.vm_id {
            let reason = format!("{} instead of {}", record.vm_id, self.record.vm_id);
            return Err(Error::RecordMismatch { field: RecordField::VmId, reason });
        }
        slot::reseal(&self.dir, self.key, next_dir, next_key, &record, protector_digest).await?;
        Ok(OpenSlot { dir: next_dir.to_path_buf(), key: next_key, record })
    }
}
