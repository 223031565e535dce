//! Undoes the steps on the VM's host: the VM is as it was before the export. An abort does it as long as the original
//! exists; a rollback does it for an original that was kept.

use host::{Agent, VmLock};
use outcome::Events;
use outcome::{Error, Kind, Result};

use crate::host::original::{is_returned, is_settled, unswap};
use crate::host::rg::discard;
use crate::journal::{Journal, Undoing};
use crate::step::{HostUndo, Step, Undo};
use crate::vmre;

/// Aborts a recovery on the VM's host.
///
/// # Errors
/// `WrongState` when the repaired VM is in its place for good, or when the original is kept for a rollback.
pub(crate) async fn abort(agent: &Agent, journal: &mut Journal, events: &Events) -> Result<()> {
    let dvm = agent.lock(journal.vm())?;
    if journal.done(Step::Kept) {
        return Err(Error::new(
            Kind::WrongState,
            format!("{} is repaired and back; the VM as it was before is kept", journal.vm()),
        )
        .remedy(format!("to return to that one: drydock recovery rollback {}", journal.vm())));
    }
    if is_settled(journal, dvm.dir()) {
        return Err(Error::new(
            Kind::WrongState,
            format!("{} runs repaired, and the VM as it was before is being removed", journal.vm()),
        )
        .remedy(format!("close the recovery: drydock recovery reinstate {}", journal.vm())));
    }
    let mut garage = vmre::lock(agent, journal)?;
    // Found out now, not when the VM has been stopped.
    if let Some(garage) = &mut garage {
        garage.refuse_orphan()?;
    }
    journal.undo(Step::Aborted, &mut OnHost { agent, dvm, garage, force: true, events }).await
}

/// What a recovery's steps are undone with on the VM's host.
pub(super) struct OnHost<'a> {
    pub agent: &'a Agent,
    pub dvm: VmLock,
    /// The garage, if it may still have the RG disk.
    pub garage: Option<VmLock>,
    /// Cut the repaired VM's power instead of asking it to shut down.
    pub force: bool,
    pub events: &'a Events,
}

impl Undoing for OnHost<'_> {
    async fn undo(&mut self, action: Undo, journal: &mut Journal) -> Result<()> {
        let Undo::OnHost(action) = action else { return Err(action.elsewhere()) };
        match action {
            HostUndo::StopRepaired => {
                if is_returned(self.dvm.dir()) {
                    self.dvm.stop(self.force, self.events).await?;
                    self.agent.keys().forget_offline_key(self.dvm.dir()).await?;
                }
                Ok(())
            }
            HostUndo::PutOriginalBack => unswap(journal, self.dvm.dir()),
            HostUndo::TakeOut => {
                let disks = self.dvm.dir().spec()?.disks.len();
                vmre::take_out(journal, disks, self.garage.as_mut(), self.events).await
            }
            HostUndo::DiscardFile => match journal.file() {
                Some(file) if !journal.is_exported() => discard(file),
                _ => Ok(()),
            },
            HostUndo::ReleaseVm => self.dvm.dir().set_hold(None),
        }
    }
}
