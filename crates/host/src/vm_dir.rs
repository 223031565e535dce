//! One VM's directory: its files by name, and how each is written.

use std::fs;
use std::path::{Path, PathBuf};

use durable::{parse_json, read_json, read_optional, write_json, write_optional};
use key_protector::Protector;
use machine::{DiskSpec, VmSpec};
use outcome::{Context, Error, Kind, Result};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::api::{HandedOver, Hold};
use crate::protector_update::MAX_UPDATE;

/// The most bytes that a key protector may have.
const MAX_PROTECTOR: u64 = 1 << 20;
const NEXT_SPEC: &str = "vm.json.next";
/// Exists while the VM arrives from another host.
const ARRIVAL: &str = "arrival.json";

/// A VM that arrives from another host and is not complete yet.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Arrival {
    pub(crate) vm_id: Uuid,
    /// Number of the only slot.
    pub(crate) generation: u64,
}

/// One VM's directory.
#[derive(Debug, Clone)]
pub struct VmDir {
    path: PathBuf,
    name: String,
}

impl VmDir {
    /// The directory `path` of the VM `name`, wherever it is: a recovery builds one outside the store.
    #[must_use]
    pub fn at(path: PathBuf, name: String) -> Self {
        VmDir { path, name }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The VM's name, which is also the directory's.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The directory of one slot.
    #[must_use]
    pub fn slot(&self, generation: u64) -> PathBuf {
        self.path.join("slots").join(generation.to_string())
    }

    /// True once the VM is whole: its specification is written last and removed first.
    #[must_use]
    pub fn exists(&self) -> bool {
        self.path.join("vm.json").is_file()
    }

    /// What the VM is made of, as `vm.json` says.
    ///
    /// # Errors
    /// `BadInput` naming the file when it is not a valid VM specification.
    pub fn spec(&self) -> Result<VmSpec> {
        self.checked_spec(read_json(&self.path.join("vm.json"))?)
    }

    /// The same from the content of `vm.json`.
    ///
    /// # Errors
    /// `BadInput` naming the file when it is not a valid VM specification.
    pub fn parse_spec(&self, bytes: &[u8]) -> Result<VmSpec> {
        self.checked_spec(parse_json(&self.path.join("vm.json"), bytes)?)
    }

    fn checked_spec(&self, spec: VmSpec) -> Result<VmSpec> {
        spec.validate().context(Kind::BadInput, || {
            format!("{} is not a valid VM specification", self.path.join("vm.json").display())
        })?;
        if spec.name != self.name {
            return Err(Error::new(
                Kind::BadInput,
                format!("{}: field 'name' says '{}'", self.path.join("vm.json").display(), spec.name),
            )
            .remedy("the file was copied or edited; restore it"));
        }
        Ok(spec)
    }

    /// Replaces `vm.json`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write_spec(&self, spec: &VmSpec) -> Result<()> {
        write_json(&self.path.join("vm.json"), spec)
    }

    /// Number of the active slot.
    ///
    /// # Errors
    /// `BadInput` when the file is damaged.
    pub fn current(&self) -> Result<u64> {
        let path = self.path.join("current");
        let bytes =
            durable::read_bounded(&path, 32).context(Kind::BadInput, || format!("cannot read {}", path.display()))?;
        std::str::from_utf8(&bytes).ok().and_then(|text| text.trim().parse().ok()).ok_or_else(|| {
            Error::new(Kind::BadInput, format!("{} does not hold a slot number", path.display()))
                .remedy("write the number of the newest directory in slots/ into it")
        })
    }

    /// Makes a complete, flushed slot the active one and removes all but it and its predecessor.
    ///
    /// # Errors
    /// When the file system refuses; the old slot then stays active.
    pub fn switch_to(&self, generation: u64, keep: u64) -> Result<()> {
        durable::write_atomic(&self.path.join("current"), format!("{generation}\n").as_bytes())
            .context(Kind::Internal, || format!("cannot make slot {generation} of {} the active one", self.name))?;
        let slots = self.path.join("slots");
        let entries = fs::read_dir(&slots).context(Kind::Internal, || format!("cannot list {}", slots.display()))?;
        for entry in entries.flatten() {
            let number = entry.file_name().to_str().and_then(|n| n.parse::<u64>().ok());
            if number.is_some_and(|n| n != generation && n != keep) {
                // A slot that stays behind is sealed under a key of its own: it costs space and does no harm.
                let _ = fs::remove_dir_all(entry.path());
            }
        }
        Ok(())
    }

    /// Makes an empty slot directory, removing what a crash left in it.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn fresh_slot(&self, generation: u64) -> Result<PathBuf> {
        let slot = self.slot(generation);
        let made = match fs::remove_dir_all(&slot) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e),
            _ => durable::private_dir(&slot),
        };
        made.context(Kind::Internal, || format!("cannot make {}", slot.display()))?;
        Ok(slot)
    }

    /// The key protector of a slot, with every signature checked: a damaged file is reported here, by name, and not by a
    /// Host Guardian Service that knows no files.
    ///
    /// # Errors
    /// `BadInput` naming the file when it is not a protector or does not verify now.
    pub fn protector(&self, generation: u64) -> Result<Protector> {
        let protector = self.parsed_protector(generation)?;
        self.verify_protector(generation, &protector)?;
        Ok(protector)
    }

    /// Checks every signature in the key protector of a slot.
    pub(crate) fn verify_protector(&self, generation: u64, protector: &Protector) -> Result<()> {
        protector
            .verify(OffsetDateTime::now_utc())
            .context(Kind::BadInput, || format!("{} does not verify", self.protector_path(generation).display()))
            .map_err(|error| self.another_slot(error))
    }

    /// The key protector of a slot as it is written, with no signature checked: to show it.
    ///
    /// # Errors
    /// `BadInput` naming the file when it is not a protector.
    pub fn parsed_protector(&self, generation: u64) -> Result<Protector> {
        let path = self.protector_path(generation);
        durable::read_bounded(&path, MAX_PROTECTOR)
            .context(Kind::BadInput, || format!("cannot read the key protector {}", path.display()))
            .and_then(|bytes| {
                Protector::parse(&bytes)
                    .context(Kind::BadInput, || format!("{} is not a key protector", path.display()))
            })
            .map_err(|error| self.another_slot(error))
    }

    fn protector_path(&self, generation: u64) -> PathBuf {
        self.slot(generation).join("protector.xml")
    }

    fn another_slot(&self, error: Error) -> Error {
        error.remedy(format!(
            "restore it, or write the number of another complete slot into {}",
            self.path.join("current").display()
        ))
    }

    /// Writes the key protector of a slot.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write_protector(&self, generation: u64, protector: &Protector) -> Result<()> {
        let path = self.protector_path(generation);
        durable::write_atomic(&path, &protector.to_xml())
            .context(Kind::Internal, || format!("cannot write {}", path.display()))
    }

    /// The recovery that holds the VM, if any.
    ///
    /// # Errors
    /// `BadInput` when the file is damaged.
    pub fn hold(&self) -> Result<Option<Hold>> {
        read_optional(&self.path.join("hold.json"))
    }

    /// Holds the VM for a recovery, or releases it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn set_hold(&self, hold: Option<&Hold>) -> Result<()> {
        write_optional(&self.path.join("hold.json"), hold)
    }

    /// The owner's signed protector update that the next start takes.
    ///
    /// # Errors
    /// `BadInput` when it cannot be read.
    pub fn protector_update(&self) -> Result<Option<Vec<u8>>> {
        let path = self.update_path();
        if !path.exists() {
            return Ok(None);
        }
        durable::read_bounded(&path, MAX_UPDATE)
            .map(Some)
            .context(Kind::BadInput, || format!("cannot read {}", path.display()))
    }

    /// Stores a signed protector update for the next start.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn set_protector_update(&self, update: &[u8]) -> Result<()> {
        let path = self.update_path();
        durable::write_atomic(&path, update).context(Kind::Internal, || format!("cannot write {}", path.display()))
    }

    /// Removes it.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn drop_protector_update(&self) -> Result<()> {
        write_optional::<()>(&self.update_path(), None)
    }

    fn update_path(&self) -> PathBuf {
        self.path.join("protector.change")
    }

    /// The host that may run the VM.
    ///
    /// # Errors
    /// `BadInput` when the file is damaged.
    pub fn handed_over(&self) -> Result<Option<HandedOver>> {
        read_optional(&self.path.join("handed-over.json"))
    }

    /// Notes that the VM was handed over to another host, or that it was not.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn set_handed_over(&self, handed_over: Option<&HandedOver>) -> Result<()> {
        write_optional(&self.path.join("handed-over.json"), handed_over)
    }

    pub(crate) fn is_arriving(&self) -> bool {
        self.path.join(ARRIVAL).exists()
    }

    pub(crate) fn arrival(&self) -> Result<Option<Arrival>> {
        read_optional(&self.path.join(ARRIVAL))
    }

    /// Makes the directory of a VM that is arriving, and notes that in it.
    pub(crate) fn set_arrival(&self, arrival: &Arrival) -> Result<()> {
        durable::private_dir(&self.path).context(Kind::Internal, || format!("cannot make {}", self.path.display()))?;
        write_json(&self.path.join(ARRIVAL), arrival)
    }

    pub(crate) fn end_arrival(&self) -> Result<()> {
        write_optional::<Arrival>(&self.path.join(ARRIVAL), None)
    }

    /// Disks attached for a recovery, beyond the VM's own.
    ///
    /// # Errors
    /// `BadInput` when the file is damaged.
    pub fn attached(&self) -> Result<Vec<DiskSpec>> {
        Ok(read_optional(&self.path.join("attached.json"))?.unwrap_or_default())
    }

    /// Replaces the list of those disks.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn set_attached(&self, disks: &[DiskSpec]) -> Result<()> {
        let value = (!disks.is_empty()).then_some(disks);
        write_optional(&self.path.join("attached.json"), value)
    }

    /// Writes the VM's next specification beside the current one. [`VmDir::switch_spec`] then replaces the current one
    /// without needing any space.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn prepare_spec(&self, spec: &VmSpec) -> Result<()> {
        write_json(&self.path.join(NEXT_SPEC), spec)
    }

    /// Replaces the specification by the one that was prepared.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn switch_spec(&self) -> Result<()> {
        let spec = self.path.join("vm.json");
        fault::write()
            .and_then(|()| fs::rename(self.path.join(NEXT_SPEC), &spec))
            .and_then(|()| durable::sync_parent(&spec))
            .context(Kind::Internal, || format!("cannot put {} in its place", spec.display()))
    }

    /// Removes the VM. The specification goes first, so that a half-removed VM is not a VM.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn remove(&self) -> Result<()> {
        match fs::remove_file(self.path.join("vm.json")) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(e).context(Kind::Internal, || format!("cannot remove {}", self.path.display()));
            }
            _ => {}
        }
        match fs::remove_dir_all(&self.path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                Err(e).context(Kind::Internal, || format!("cannot remove {}", self.path.display()))
            }
            _ => durable::sync_parent(&self.path)
                .context(Kind::Internal, || format!("cannot flush the parent of {}", self.path.display())),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn switching_slots_keeps_the_predecessor_only() {
        let dir = tempfile::tempdir().unwrap();
        let vm = VmDir::at(dir.path().join("x"), "x".into());
        for n in 1..=4 {
            vm.fresh_slot(n).unwrap();
            vm.switch_to(n, n - 1).unwrap();
        }
        assert_eq!(vm.current().unwrap(), 4);
        assert!(vm.slot(3).exists() && !vm.slot(2).exists() && !vm.slot(1).exists());
    }
}
