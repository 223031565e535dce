//! On the garage's host, where that is not the VM's host: the RG disk comes out of the garage when its owner has
//! handed the VM back. The file stays where it is, to be carried back.

use host::Agent;
use outcome::Events;
use outcome::{Error, Kind, Result};

use crate::api::StatusReport;
use crate::journal::Journal;
use crate::rg::{require_handed_back, rg_serial};
use crate::step::{Side, Step};
use crate::{status, vmre};

/// Runs or resumes a detachment.
///
/// # Errors
/// `WrongState` while the owner has not finished: the repair is not disturbed.
pub(crate) async fn run(agent: &Agent, vm: &str, events: &Events) -> Result<StatusReport> {
    let mut journal = Journal::open_for(agent.store(), vm)?.ok_or_else(|| {
        Error::new(Kind::NotFound, format!("no RG disk of {vm} is attached on this host"))
            .remedy(format!("drydock recovery status {vm}"))
    })?;
    let (Side::GarageHost, Some(file)) = (journal.side(), journal.file().map(ToOwned::to_owned)) else {
        return Err(Error::new(Kind::WrongState, format!("the RG disk of {vm} was not attached from a file"))
            .remedy(format!("`recovery reinstate` detaches it; {}", status::sentence(&journal))));
    };
    if !journal.done(Step::PluggedIn) {
        return Err(Error::new(Kind::WrongState, format!("the RG disk of {vm} is not attached"))
            .remedy(status::sentence(&journal)));
    }
    let take_out = async |journal: &mut Journal| {
        events.say("look", "inspecting what the owner handed back");
        let mut garage = vmre::lock(agent, journal)?;
        require_handed_back(&file, &rg_serial(journal.id()), garage.as_mut()).await?;
        vmre::take_out(journal, 0, garage.as_mut(), events).await
    };
    journal.step(Step::TakenOut, take_out).await?;
    journal.step(Step::Closed, async |_| Ok(())).await?;
    Ok(status::describe(&journal))
}
