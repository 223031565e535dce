//! Back to the VM as it was before its repair, for as long as that is kept.

use host::Agent;
use outcome::Events;
use outcome::{Error, Kind, Result};

use crate::api::StatusReport;
use crate::damaged::require_off;
use crate::host::commit::kept;
use crate::host::original::{is_returned, is_settled};
use crate::host::undo::OnHost;
use crate::status;
use crate::step::Step;

/// Exchanges the VMs again and removes the repaired one.
///
/// # Errors
/// `WrongState` when no original is kept, or when the VM runs and may not be stopped.
pub(crate) async fn run(agent: &Agent, vm: &str, stop: bool, events: &Events) -> Result<StatusReport> {
    let mut dvm = agent.lock(vm)?;
    let mut journal = kept(agent, vm)?;
    if is_settled(&journal, dvm.dir()) {
        return Err(Error::new(Kind::WrongState, format!("the original of {vm} is being merged with the repair"))
            .remedy(format!("drydock recovery commit {vm}")));
    }
    // A rollback that was cut short has exchanged them already.
    if is_returned(dvm.dir()) {
        require_off(&mut dvm, stop, &format!("rollback {vm}"))?;
        events.say("roll-back", format!("putting {vm} back as it was before its repair"));
    }
    // The RG disk left the garage before the VM was reinstated.
    journal.undo(Step::RolledBack, &mut OnHost { agent, dvm, garage: None, force: false, events }).await?;
    Ok(status::describe(&journal))
}
