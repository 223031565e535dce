//! Gives a recovery up: on the host the VM is as it was before the export, as long as the original exists; in the
//! garage nothing of it is left. A file that travels between two hosts stays where it is, on either.

use host::Agent;
use outcome::Events;
use outcome::{Error, Kind, Result};

use crate::api::StatusReport;
use crate::journal::Journal;
use crate::step::Side;
use crate::{garage, garage_host, host as vm_host, status};

/// Undoes the steps of a recovery on this side.
///
/// # Errors
/// `NotFound` when there is nothing to abort, `WrongState` when there is no way back.
pub(crate) async fn run(agent: &Agent, vm: &str, events: &Events) -> Result<StatusReport> {
    let mut journal = Journal::open_for(agent.store(), vm)?.ok_or_else(|| {
        Error::new(Kind::NotFound, format!("{vm} is not in recovery here")).remedy("drydock recovery status")
    })?;
    match journal.side() {
        Side::Host => vm_host::undo::abort(agent, &mut journal, events).await?,
        Side::GarageHost => garage_host::undo::abort(agent, &mut journal, events).await?,
        Side::Garage => garage::undo::abort(agent, &mut journal, events).await?,
    }
    Ok(status::describe(&journal))
}
