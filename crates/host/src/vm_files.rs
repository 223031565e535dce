//! What a VM's directory says, read once per command.
//!
//! Anyone who can write the store can write these files. What counts is the sealed record, with which `Unsealed`
//! compares them.

use std::sync::OnceLock;

use key_protector::Protector;
use machine::{DiskSpec, VmSpec};
use outcome::{Error, Kind, Result};

use crate::api::{HandedOver, Hold};
use crate::vm_dir::VmDir;

/// One VM's files, as they were when the command began.
pub struct VmFiles {
    dir: VmDir,
    spec: VmSpec,
    slot: u64,
    /// Read when it is first asked for: many commands need no key.
    protector: OnceLock<Protector>,
    hold: Option<Hold>,
    handed_over: Option<HandedOver>,
    attached: Vec<DiskSpec>,
}

impl VmFiles {
    /// Reads a VM's directory.
    ///
    /// # Errors
    /// `BadInput` naming the file that is damaged.
    pub fn read(dir: &VmDir) -> Result<Self> {
        Ok(VmFiles {
            hold: dir.hold()?,
            handed_over: dir.handed_over()?,
            spec: dir.spec()?,
            slot: dir.current()?,
            protector: OnceLock::new(),
            attached: dir.attached()?,
            dir: dir.clone(),
        })
    }

    /// The directory that was read.
    #[must_use]
    pub fn dir(&self) -> &VmDir {
        &self.dir
    }

    /// The VM's name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.dir.name()
    }

    /// What the VM is made of.
    #[must_use]
    pub fn spec(&self) -> &VmSpec {
        &self.spec
    }

    /// Number of the active slot.
    #[must_use]
    pub fn slot(&self) -> u64 {
        self.slot
    }

    /// The recovery that holds the VM.
    #[must_use]
    pub fn hold(&self) -> Option<&Hold> {
        self.hold.as_ref()
    }

    /// The host that may run the VM instead of this one.
    #[must_use]
    pub fn handed_over(&self) -> Option<&HandedOver> {
        self.handed_over.as_ref()
    }

    /// Disks of a recovery that are attached beyond the VM's own.
    #[must_use]
    pub fn attached(&self) -> &[DiskSpec] {
        &self.attached
    }

    /// The active slot's key protector as it is written, with no signature checked: to show it.
    ///
    /// # Errors
    /// `BadInput` naming the file when it is not a protector.
    pub fn parsed_protector(&self) -> Result<&Protector> {
        if let Some(protector) = self.protector.get() {
            return Ok(protector);
        }
        let protector = self.dir.parsed_protector(self.slot)?;
        Ok(self.protector.get_or_init(|| protector))
    }

    /// The active slot's key protector, with every signature checked now.
    ///
    /// # Errors
    /// `BadInput` naming the file when it is not a protector or does not verify.
    pub fn protector(&self) -> Result<&Protector> {
        let protector = self.parsed_protector()?;
        self.dir.verify_protector(self.slot, protector)?;
        Ok(protector)
    }

    /// Refuses a VM that a recovery holds and that must not start meanwhile.
    ///
    /// # Errors
    /// `WrongState` with the recovery's reason.
    pub(crate) fn refuse_held_start(&self) -> Result<()> {
        match &self.hold {
            Some(hold) if !hold.may_start => {
                let name = self.name();
                Err(Error::new(Kind::WrongState, format!("{name} cannot be started: {}", hold.reason))
                    .remedy(format!("drydock recovery status {name}")))
            }
            _ => Ok(()),
        }
    }
}
