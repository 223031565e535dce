//! Where a host keeps its VMs.
//!
//! ```text
//! STORE/vms/NAME/vm.json        what the VM is made of (machine::VmSpec); not trusted: the sealed record is
//! STORE/vms/NAME/current        number of the active slot
//! STORE/vms/NAME/slots/N/       protector.xml and the state sealed under its transport key
//! STORE/vms/NAME/disk-0.qcow2   a disk, encrypted by the guest
//! STORE/vms/NAME/hold.json      present while a recovery holds the VM
//! STORE/vms/NAME/attached.json  disks attached for a recovery
//! STORE/vms/NAME/protector.change  signed protector update for the next start (crate::protector_update)
//! STORE/vms/NAME/offline.sealed a key for starts without the Host Guardian Service (crate::offline)
//! STORE/vms/NAME/handed-over.json  present while the VM may run on the host that it was migrated to
//! STORE/vms/NAME/arrival.json   present while the VM arrives from another host
//! ```
//!
//! A slot is written completely, flushed, and only then named by `current`: a crash in between leaves the old one
//! active.

use std::fs;
use std::path::{Path, PathBuf};

use outcome::{Context, Error, Kind, Result, check_name};

use crate::vm_dir::VmDir;

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

    /// Where it is.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// In a garage: the recovery guardians.
    #[must_use]
    pub fn guardians(&self) -> PathBuf {
        self.root.join("guardians")
    }

    /// The recoveries' journals and files.
    #[must_use]
    pub fn recoveries(&self) -> PathBuf {
        self.root.join("recoveries")
    }

    /// The log directory of one VM.
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
        Ok(VmDir::at(self.root.join("vms").join(name), name.to_owned()))
    }

    /// An existing VM.
    ///
    /// # Errors
    /// `NotFound` when there is none of that name.
    pub fn vm(&self, name: &str) -> Result<VmDir> {
        let dir = self.vm_dir(name)?;
        if dir.exists() {
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
        found.sort_by(|a, b| a.name().cmp(b.name()));
        Ok(found)
    }

    /// VMs that were arriving from another host when the agent was killed.
    pub(crate) fn arrivals(&self) -> Result<Vec<VmDir>> {
        let dir = self.root.join("vms");
        let entries = fs::read_dir(&dir).context(Kind::Internal, || format!("cannot list {}", dir.display()))?;
        let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        Ok(names.filter_map(|name| self.vm_dir(&name).ok()).filter(VmDir::is_arriving).collect())
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
}
