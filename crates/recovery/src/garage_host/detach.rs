//! On the garage's host, where that is another than the VM's: the RG disk comes out of the garage when its owner has
//! handed it back. The file stays where it is, to be carried back.

use host::Agent;
use outcome::Events;
use outcome::{Error, Kind, Result};

use crate::api::StatusReport;
use crate::garage_host::attach;
use crate::host::export::rg_serial;
use crate::journal::{Journal, Side, Step};
use crate::{rg, status};

/// Runs, or goes on with, a detachment.
///
/// # Errors
/// `WrongState` while the owner has not finished: the repair goes on undisturbed.
pub(crate) async fn run(agent: &Agent, vm: &str, events: &Events) -> Result<StatusReport> {
    let mut journal = Journal::open_for(agent.store(), vm)?.ok_or_else(|| {
        Error::new(Kind::NotFound, format!("no RG disk of {vm} is attached on this host"))
            .remedy(format!("drydock recovery status {vm}"))
    })?;
    let (Side::GarageHost, Some(file)) = (journal.side(), journal.file().map(ToOwned::to_owned)) else {
        return Err(Error::new(Kind::WrongState, format!("the RG disk of {vm} was not attached from a file"))
            .remedy(format!("`recovery reinstate` detaches it; {}", status::describe(&journal).sentence)));
    };
    if !journal.done(Step::PluggedIn) {
        return Err(Error::new(Kind::WrongState, format!("the RG disk of {vm} is not attached"))
            .remedy(status::describe(&journal).sentence));
    }
    if !journal.done(Step::TakenOut) {
        events.say("look", "looking at what the owner handed back");
        let mut garage = attach::lock_garage(agent, &journal)?;
        rg::require_handed_back(&file, &rg_serial(journal.id()), garage.as_mut()).await?;
        attach::take_out(&journal, garage.as_mut(), events).await?;
        journal.mark(Step::TakenOut)?;
    }
    journal.mark(Step::Closed)?;
    Ok(status::describe(&journal))
}
