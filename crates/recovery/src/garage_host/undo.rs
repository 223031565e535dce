//! Undoes the steps on the garage's host: the garage no longer has the RG disk, whose file stays where it is.

use host::{Agent, VmLock};
use outcome::Events;
use outcome::Result;

use crate::journal::{Journal, Undoing};
use crate::step::{GarageHostUndo, Step, Undo};
use crate::vmre;

/// Aborts a recovery on the garage's host.
///
/// # Errors
/// `WrongState` when the guest in the garage does not let go of the disk.
pub(crate) async fn abort(agent: &Agent, journal: &mut Journal, events: &Events) -> Result<()> {
    let garage = vmre::lock(agent, journal)?;
    journal.undo(Step::Aborted, &mut OnGarageHost { garage, events }).await
}

struct OnGarageHost<'a> {
    garage: Option<VmLock>,
    events: &'a Events,
}

impl Undoing for OnGarageHost<'_> {
    async fn undo(&mut self, action: Undo, journal: &mut Journal) -> Result<()> {
        let Undo::OnGarageHost(action) = action else { return Err(action.elsewhere()) };
        match action {
            GarageHostUndo::TakeOut => vmre::take_out(journal, 0, self.garage.as_mut(), self.events).await,
        }
    }
}
