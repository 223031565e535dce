//! Back to the VM as it was before its repair, for as long as that is kept.

use host::Agent;
use outcome::Events;
use outcome::{Error, Kind, Result};

use crate::api::StatusReport;
use crate::host::{commit, reinstate};
use crate::journal::Step;
use crate::status;

/// Exchanges the VMs again and removes the repaired one.
///
/// # Errors
/// `WrongState` when no original is kept, or when the VM runs and may not be stopped.
pub(crate) async fn run(agent: &Agent, vm: &str, stop: bool, events: &Events) -> Result<StatusReport> {
    let mut dvm = agent.lock(vm)?;
    let mut journal = commit::kept(agent, vm)?;
    if reinstate::is_settled(&journal, dvm.dir()) {
        return Err(Error::new(Kind::WrongState, format!("the original of {vm} is being merged with the repair"))
            .remedy(format!("drydock recovery commit {vm}")));
    }
    // A rollback that was cut short has exchanged them already.
    if reinstate::is_returned(dvm.dir()) {
        dvm.refuse_orphan()?;
        if dvm.is_running() && !stop {
            return Err(Error::new(Kind::WrongState, format!("{vm} is running"))
                .remedy(format!("stop it first, or let the rollback do it: drydock recovery rollback {vm} --stop")));
        }
        dvm.stop(false, events).await?;
        agent.forget_offline_key(dvm.dir()).await?;
        events.say("roll-back", format!("putting {vm} back as it was before its repair"));
    }
    reinstate::unswap(&mut journal, dvm.dir())?;
    dvm.dir().set_hold(None)?;
    journal.clear_files()?;
    journal.mark(Step::RolledBack)?;
    Ok(status::describe(&journal))
}
