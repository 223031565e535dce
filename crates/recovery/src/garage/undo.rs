//! Undoes the steps in the garage, where nothing of the recovery stays.

use host::LocalGuardians;
use host::{Agent, VmLock};
use outcome::Events;
use outcome::Result;

use crate::garage::guardian::{guardian_name, local};
use crate::journal::{Journal, Undoing};
use crate::step::{GarageUndo, Step, Undo};

/// Aborts a recovery in the garage.
///
/// # Errors
/// `Refused` on a guarded host, and whatever keeps the VM or the guardian from being removed.
pub(crate) async fn abort(agent: &Agent, journal: &mut Journal, events: &Events) -> Result<()> {
    let guardians = local(agent)?;
    let vm = agent.lock_dir(agent.store().vm_dir(journal.vm())?)?;
    journal.undo(Step::Aborted, &mut InGarage { agent, guardians, vm, events }).await
}

struct InGarage<'a> {
    agent: &'a Agent,
    guardians: &'a LocalGuardians,
    vm: VmLock,
    events: &'a Events,
}

impl Undoing for InGarage<'_> {
    async fn undo(&mut self, action: Undo, journal: &mut Journal) -> Result<()> {
        let Undo::OnGarage(action) = action else { return Err(action.elsewhere()) };
        match action {
            GarageUndo::StopVm => self.vm.stop(true, self.events).await,
            GarageUndo::DestroyGuardian => destroy_guardian(self.guardians, journal, self.events),
            GarageUndo::RemoveVm => remove_vm(self.agent, &self.vm),
        }
    }
}

/// Destroys the recovery guardian's keys.
///
/// # Errors
/// When the file system refuses.
pub(super) fn destroy_guardian(guardians: &LocalGuardians, journal: &Journal, events: &Events) -> Result<()> {
    events.say("clean", "destroying the recovery key and everything temporary");
    guardians.destroy(&guardian_name(journal))
}

/// Removes the VM and its logs.
///
/// # Errors
/// When the file system refuses.
pub(super) fn remove_vm(agent: &Agent, vm: &VmLock) -> Result<()> {
    vm.dir().remove()?;
    let _ = std::fs::remove_dir_all(agent.store().logs(vm.dir().name()));
    Ok(())
}
