//! Where a host keeps its VMs.
//!
//! ```text
//! STORE/vms/NAME/vm.json        the VM's shape (machine::VmSpec), not trusted: the sealed record is
//! STORE/vms/NAME/current        number of the slot in force
//! STORE/vms/NAME/slots/N/       protector.xml and the state sealed under its transport key
//! STORE/vms/NAME/disk-0.qcow2   a disk, encrypted by the guest
//! STORE/vms/NAME/hold.json      present while a recovery holds the VM
//! STORE/vms/NAME/attached.json  disks attached for a recovery
//! STORE/vms/NAME/protector.change  another key protector for the next start (crate::change)
//! STORE/vms/NAME/offline.sealed a key for starts without the Host Guardian Service (crate::offline)
//! STORE/vms/NAME/handed-over.json  present while the VM may run on the host that it was migrated to
//! STORE/vms/NAME/arrival.json   present while the VM comes from another host
//! ```
//!
//! A slot is written whole, flushed, and only then named by `current`: a crash in between leaves the old one
//! in force.

use std::fs;
use std::path::{Path, PathBuf};

use durable::{parse_json, read_json, read_optional, write_json, write_optional};
use key_protector::Protector;
use machine::{DiskSpec, VmSpec};
use outcome::{Context, Error, Kind, Result, check_name};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::api::{HandedOver, Hold};
use crate::change::MAX_CHANGE;

const MAX_PROTECTOR: u64 = 1 << 20;
const NEXT_SPEC: &str = "vm.json.next";
const ARRIVAL: &str = "arrival.json";

/// A VM that comes from another host and is not whole yet.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Arrival {
    pub(crate) vm_id: Uuid,
    /// Number of the only slot.
    pub(crate) generation: u64,
}

/// The agent's directory.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
}

impl Store {
    /// Opens the store, making it 0700 when it is new.
    ///
    /// # Errors
    /// When the directory cannot be made or is open to others.
    pub fn open(root: &Path) -> Result<Self> {
        use std::os::unix::fs::MetadataExt;
        for dir in ["", "vms", "guardians", "recoveries", "logs"] {
            let path = root.join(dir);
            durable::private_dir(&path)
                .context(Kind::Internal, || format!("cannot make the store directory {}", path.display()))?;
        }
        let meta = fs::metadata(root).context(Kind::Internal, || format!("cannot read {}", root.display()))?;
        if meta.mode() & 0o077 != 0 {
            return Err(Error::new(
                Kind::Refused,
                format!("{} can be entered by other users (mode {:o})", root.display(), meta.mode() & 0o777),
            )
            .remedy(format!("chmod 700 {}", root.display())));
        }
        Ok(Store { root: root.to_path_buf() })
    }

    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    #[must_use]
    pub fn guardians(&self) -> PathBuf {
        self.root.join("guardians")
    }

    #[must_use]
    pub fn recoveries(&self) -> PathBuf {
        self.root.join("recoveries")
    }

    #[must_use]
    pub fn logs(&self, vm: &str) -> PathBuf {
        self.root.join("logs").join(vm)
    }

    /// The directory of a VM that need not exist. The name is checked: it becomes a path.
    ///
    /// # Errors
    /// `BadInput` for a name that is not a VM name.
    pub fn vm_dir(&self, name: &str) -> Result<VmDir> {
        check_name(name)?;
        Ok(VmDir { path: self.root.join("vms").join(name), name: name.to_owned() })
    }

    /// An existing VM.
    ///
    /// # Errors
    /// `NotFound` when there is none of that name.
    pub fn vm(&self, name: &str) -> Result<VmDir> {
        let dir = self.vm_dir(name)?;
        if dir.path.join("vm.json").is_file() {
            return Ok(dir);
        }
        Err(Error::new(Kind::NotFound, format!("there is no VM named '{name}' on this host"))
            .remedy("`drydock vm list` names those there are"))
    }

    /// All VMs, by name.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn vms(&self) -> Result<Vec<VmDir>> {
        let dir = self.root.join("vms");
        let mut found = Vec::new();
        for entry in fs::read_dir(&dir).context(Kind::Internal, || format!("cannot list {}", dir.display()))? {
            let entry = entry.context(Kind::Internal, || format!("cannot list {}", dir.display()))?;
            if let Some(name) = entry.file_name().to_str()
                && let Ok(vm) = self.vm(name)
            {
                found.push(vm);
            }
        }
        found.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(found)
    }

    /// VMs that were coming from another host when the agent was killed.
    pub(crate) fn arrivals(&self) -> Result<Vec<VmDir>> {
        let dir = self.root.join("vms");
        let entries = fs::read_dir(&dir).context(Kind::Internal, || format!("cannot list {}", dir.display()))?;
        let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        Ok(names.filter_map(|name| self.vm_dir(&name).ok()).filter(|vm| vm.path.join(ARRIVAL).exists()).collect())
    }
}

/// One VM's directory.
#[derive(Debug, Clone)]
pub struct VmDir {
    path: PathBuf,
    name: String,
}

impl VmDir {
    #[must_use]
    pub fn at(path: PathBuf, name: String) -> Self {
        VmDir { path, name }
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    #[must_use]
    pub fn slot(&self, generation: u64) -> PathBuf {
        self.path.join("slots").join(generation.to_string())
    }

    /// True once the VM is whole: its specification is written last and removed first.
    #[must_use]
    pub fn exists(&self) -> bool {
        self.path.join("vm.json").exists()
    }

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

    /// # Errors
    /// When it cannot be written.
    pub fn write_spec(&self, spec: &VmSpec) -> Result<()> {
        write_json(&self.path.join("vm.json"), spec)
    }

    /// The slot in force.
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

    /// Puts a complete, flushed slot in force and drops all but it and its predecessor.
    ///
    /// # Errors
    /// When the file system refuses; the old slot then stays in force.
    pub fn switch_to(&self, generation: u64, keep: u64) -> Result<()> {
        durable::write_atomic(&self.path.join("current"), format!("{generation}\n").as_bytes())
            .context(Kind::Internal, || format!("cannot put slot {generation} of {} in force", self.name))?;
        let slots = self.path.join("slots");
        let entries = fs::read_dir(&slots).context(Kind::Internal, || format!("cannot list {}", slots.display()))?;
        for entry in entries.flatten() {
            let number = entry.file_name().to_str().and_then(|n| n.parse::<u64>().ok());
            if number.is_some_and(|n| n != generation && n != keep) {
                // A slot left behind is sealed under a key of its own: no harm, only space.
                let _ = fs::remove_dir_all(entry.path());
            }
        }
        Ok(())
    }

    /// Starts a fresh slot directory, removing what a crash left there.
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

    /// The key protector of a slot, with every signature checked: a damaged file is told here, by its name, and not
    /// by a Host Guardian Service that knows no files.
    ///
    /// # Errors
    /// `BadInput` naming the file when it is not a protector, or when it does not verify now.
    pub fn protector(&self, generation: u64) -> Result<Protector> {
        let protector = self.parsed_protector(generation)?;
        protector
            .verify(OffsetDateTime::now_utc())
            .context(Kind::BadInput, || format!("{} does not verify", self.protector_path(generation).display()))
            .map_err(|error| self.another_slot(error))?;
        Ok(protector)
    }

    /// The key protector of a slot as it is written, for showing.
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

    /// # Errors
    /// When it cannot be written.
    pub fn write_protector(&self, generation: u64, protector: &Protector) -> Result<()> {
        let path = self.protector_path(generation);
        durable::write_atomic(&path, &protector.to_xml())
            .context(Kind::Internal, || format!("cannot write {}", path.display()))
    }

    /// # Errors
    /// `BadInput` when the file is damaged.
    pub fn hold(&self) -> Result<Option<Hold>> {
        read_optional(&self.path.join("hold.json"))
    }

    /// # Errors
    /// When it cannot be written.
    pub fn set_hold(&self, hold: Option<&Hold>) -> Result<()> {
        write_optional(&self.path.join("hold.json"), hold)
    }

    /// The owner's change of the key protector that the next start takes.
    ///
    /// # Errors
    /// `BadInput` when it cannot be read.
    pub fn change(&self) -> Result<Option<Vec<u8>>> {
        let path = self.change_path();
        if !path.exists() {
            return Ok(None);
        }
        durable::read_bounded(&path, MAX_CHANGE)
            .map(Some)
            .context(Kind::BadInput, || format!("cannot read {}", path.display()))
    }

    /// # Errors
    /// When it cannot be written.
    pub fn set_change(&self, change: &[u8]) -> Result<()> {
        let path = self.change_path();
        durable::write_atomic(&path, change).context(Kind::Internal, || format!("cannot write {}", path.display()))
    }

    /// # Errors
    /// When it cannot be removed.
    pub fn drop_change(&self) -> Result<()> {
        write_optional::<()>(&self.change_path(), None)
    }

    fn change_path(&self) -> PathBuf {
        self.path.join("protector.change")
    }

    /// The host that may run the VM.
    ///
    /// # Errors
    /// `BadInput` when the file is damaged.
    pub fn handed_over(&self) -> Result<Option<HandedOver>> {
        read_optional(&self.path.join("handed-over.json"))
    }

    /// # Errors
    /// When it cannot be written.
    pub fn set_handed_over(&self, handed_over: Option<&HandedOver>) -> Result<()> {
        write_optional(&self.path.join("handed-over.json"), handed_over)
    }

    pub(crate) fn arrival(&self) -> Result<Option<Arrival>> {
        read_optional(&self.path.join(ARRIVAL))
    }

    /// Makes the folder of a VM that is coming, and notes that in it.
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

    /// # Errors
    /// When it cannot be written.
    pub fn set_attached(&self, disks: &[DiskSpec]) -> Result<()> {
        let value = (!disks.is_empty()).then_some(disks);
        write_optional(&self.path.join("attached.json"), value)
    }

    /// Writes a specification beside the one in force, to be put in force by [`VmDir::switch_spec`], which then needs
    /// no space.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn prepare_spec(&self, spec: &VmSpec) -> Result<()> {
        write_json(&self.path.join(NEXT_SPEC), spec)
    }

    /// Puts the specification that was prepared in force.
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
    fn a_store_that_others_can_enter_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let refused = Store::open(dir.path()).unwrap_err();
        assert_eq!(refused.kind, Kind::Refused);
        assert!(refused.remedy.unwrap().contains("chmod 700"));
    }

    #[test]
    fn switching_slots_keeps_the_predecessor_only() {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
        let vm = Store::open(dir.path()).unwrap().vm_dir("x").unwrap();
        for n in 1..=4 {
            vm.fresh_slot(n).unwrap();
            vm.switch_to(n, n - 1).unwrap();
        }
        assert_eq!(vm.current().unwrap(), 4);
        assert!(vm.slot(3).exists() && !vm.slot(2).exists() && !vm.slot(1).exists());
    }
}
