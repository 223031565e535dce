//! The damaged VM, as a command must find it.

use host::VmLock;
use machine::{Policy, VmSpec};
use outcome::{Error, Kind, Result};

/// A recovery is for shielded VMs, and happens in one.
///
/// # Errors
/// `Refused` for any other.
pub(crate) fn require_shielded(vm: &VmSpec) -> Result<()> {
    if vm.policy == Policy::Shielded {
        return Ok(());
    }
    Err(Error::new(Kind::Refused, format!("{} is not shielded but {}", vm.name, vm.policy))
        .remedy("an encryption-supported VM has a console on its host; recovery is for shielded ones"))
}

/// That the VM is off, or may be shut down by the command, which is named for the remedy.
///
/// # Errors
/// `WrongState` for a VM that runs.
pub(crate) fn require_off(vm: &mut VmLock, stop: bool, command: &str) -> Result<()> {
    vm.refuse_orphan()?;
    if vm.is_running() && !stop {
        return Err(Error::new(Kind::WrongState, format!("{} is running", vm.dir().name()))
            .remedy(format!("shut it down first, or let the command do that: drydock recovery {command} --stop")));
    }
    Ok(())
}
