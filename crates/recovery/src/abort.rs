//! Gives a recovery up: on the host the VM is as it was before the export, as long as the original is there; in the
//! garage nothing of it is left. A file that travels between two hosts stays where it is, on either.

use host::Agent;
use outcome::Events;
use outcome::{Error, Kind, Result};

use crate::api::StatusReport;
use crate::garage::import::{guardian_name, local};
use crate::garage_host::attach;
use crate::host::{export, reinstate};
use crate::journal::{Journal, Side, Step};
use crate::{rg, status};

/// # Errors
/// `NotFound` when there is nothing to abort.
pub(crate) async fn run(agent: &Agent, vm: &str, events: &Events) -> Result<StatusReport> {
    let mut journal = Journal::open_for(agent.store(), vm)?.ok_or_else(|| {
        Error::new(Kind::NotFound, format!("{vm} is in no recovery here")).remedy("drydock recovery status")
    })?;
    match journal.side() {
        Side::Host => host_side(agent, &mut journal, events).await?,
        Side::GarageHost => {
            let mut garage = attach::lock_garage(agent, &journal)?;
            attach::take_out(&journal, garage.as_mut(), events).await?;
        }
        Side::Garage => garage_side(agent, &mut journal, events).await?,
    }
    journal.mark(Step::Aborted)?;
    Ok(status::describe(&journal))
}

async fn host_side(agent: &Agent, journal: &mut Journal, events: &Events) -> Result<()> {
    let mut dvm = agent.lock(journal.vm())?;
    if journal.done(Step::Kept) {
        return Err(Error::new(
            Kind::WrongState,
            format!("{} is repaired and back; the VM as it was before is kept", journal.vm()),
        )
        .remedy(format!("to go back to that one: drydock recovery rollback {}", journal.vm())));
    }
    if reinstate::is_settled(journal, dvm.dir()) {
        return Err(Error::new(
            Kind::WrongState,
            format!("{} runs repaired, and the VM as it was before is being removed", journal.vm()),
        )
        .remedy(format!("close the recovery: drydock recovery reinstate {}", journal.vm())));
    }
    if let Some(garage) = journal.garage().map(str::to_owned)
        && agent.store().vm(&garage).is_ok()
    {
        events.say("detach", format!("detaching the RG disk from {garage}"));
        export::detach(journal, dvm.dir(), &mut agent.lock(&garage)?).await?;
    }
    if let Some(file) = journal.file()
        && !journal.is_exported()
    {
        rg::discard(file)?;
    }
    if reinstate::is_returned(dvm.dir()) {
        dvm.stop(true, events).await?;
        agent.forget_offline_key(dvm.dir()).await?;
        reinstate::unswap(journal, dvm.dir())?;
    }
    dvm.dir().set_hold(None)?;
    journal.clear_files()
}

async fn garage_side(agent: &Agent, journal: &mut Journal, events: &Events) -> Result<()> {
    let guardians = local(agent)?;
    let mut lock = agent.lock_dir(agent.store().vm_dir(journal.vm())?)?;
    lock.stop(true, events).await?;
    events.say("clean", "destroying the recovery key and everything temporary");
    guardians.destroy(&guardian_name(journal))?;
    lock.dir().remove()?;
    let _ = std::fs::remove_dir_all(agent.store().logs(journal.vm()));
    journal.clear_files()
}
