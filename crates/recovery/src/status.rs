//! Where a recovery stands and what comes next, in one sentence.

use host::Store;
use outcome::Result;

use crate::api::StatusReport;
use crate::journal::{Journal, Side, Step};

/// # Errors
/// When a journal is damaged.
pub(crate) fn report(store: &Store, vm: Option<&str>) -> Result<Vec<StatusReport>> {
    let mut journals = Journal::all(store)?;
    if let Some(vm) = vm {
        journals.retain(|j| j.vm() == vm);
        journals = journals.split_off(journals.len().saturating_sub(1));
    }
    Ok(journals.iter().map(describe).collect())
}

#[must_use]
pub(crate) fn describe(journal: &Journal) -> StatusReport {
    StatusReport {
        vm: journal.vm().to_owned(),
        recovery_id: journal.id(),
        side: journal.side(),
        closed: journal.is_closed(),
        steps: journal.steps().to_vec(),
        sentence: sentence(journal),
    }
}

fn sentence(journal: &Journal) -> String {
    let vm = journal.vm();
    let garage = journal.garage().unwrap_or("the garage");
    let file = journal.file().map(|file| file.display().to_string()).unwrap_or_default();
    let done = |step| journal.done(step);
    if done(Step::Aborted) && journal.side() == Side::GarageHost {
        return format!("the recovery was aborted here; the RG disk of {vm} is out of {garage} and still in {file}.");
    }
    if done(Step::Aborted) {
        return format!("the recovery was aborted; {vm} is as it was before.");
    }
    if done(Step::RolledBack) {
        return format!("the recovery was rolled back; {vm} is as it was before.");
    }
    match journal.side() {
        Side::Host if done(Step::Closed) => format!("{vm} was repaired and is back on the fabric, shielded."),
        Side::Host if done(Step::Merged) => {
            format!("{vm} is repaired and back; run `drydock recovery reinstate {vm}` again to close the recovery.")
        }
        Side::Host if done(Step::Kept) => format!(
            "{vm} is repaired and back, and the VM as it was before is kept; when all is well: \
             `drydock recovery commit {vm}`; to go back: `drydock recovery rollback {vm}`."
        ),
        Side::Host if done(Step::Started) => {
            format!("{vm} runs repaired, its changes are not merged yet; run `drydock recovery reinstate {vm}` again.")
        }
        Side::Host if done(Step::Swapped) => {
            format!("{vm} is back in its place but has not started; run `drydock recovery reinstate {vm}` again.")
        }
        Side::Host if done(Step::Detached) && journal.file().is_some() => {
            format!("{vm} is on its way back; run `drydock recovery reinstate {vm} --from FILE` again.")
        }
        Side::Host if done(Step::Detached) => {
            format!("{vm} is on its way back; run `drydock recovery reinstate {vm}` again.")
        }
        Side::Host if done(Step::Attached) => format!(
            "{vm} is exported and attached to {garage}; its owner now runs `drydock recovery import` inside {garage}, \
             and when they have finished: `drydock recovery reinstate {vm}` here."
        ),
        Side::Host if journal.is_exported() => format!(
            "{vm} is exported to {file}; take that to the garage's host: `drydock recovery attach FILE --to VMRE` there; \
             when its owner has finished and it is back: `drydock recovery reinstate {vm} --from FILE` here."
        ),
        Side::Host if journal.file().is_some() => {
            format!("the export of {vm} is not complete; run `drydock recovery export {vm} --to-file {file}` again.")
        }
        Side::Host => {
            format!("the export of {vm} is not complete; run `drydock recovery export {vm} --to {garage}` again.")
        }
        Side::GarageHost if done(Step::Closed) => format!(
            "{vm} is handed back in {file}; take that to the host of {vm} and run \
             `drydock recovery reinstate {vm} --from FILE` there."
        ),
        Side::GarageHost if done(Step::TakenOut) => {
            format!("the RG disk of {vm} is out of {garage}; run `drydock recovery detach {vm}` again.")
        }
        Side::GarageHost if done(Step::PluggedIn) => format!(
            "{vm} is attached to {garage}; its owner now runs `drydock recovery import` inside {garage}, and when they \
             have finished: `drydock recovery detach {vm}` here."
        ),
        Side::GarageHost => format!(
            "the RG disk of {vm} is not attached yet; run `drydock recovery attach {file} --to {garage}` again."
        ),
        Side::Garage if done(Step::Closed) => format!(
            "{vm} is handed back and the recovery key destroyed; the fabric admin now runs `drydock recovery reinstate {vm}`."
        ),
        Side::Garage if done(Step::PolicyRaised) => {
            format!("{vm} is being handed back; run `drydock recovery finish {vm}` again.")
        }
        Side::Garage if done(Step::PolicyLowered) => format!(
            "{vm} has a console here: `drydock vm start {vm}; drydock vm console {vm}`; when it is repaired: \
             `drydock recovery finish {vm}`."
        ),
        Side::Garage if done(Step::Requested) => format!(
            "{vm} is imported and waits for its owner: take the request to the tenant host, run \
             `drydock recovery grant REQUEST --owner NAME` there, and bring the grant back: \
             `drydock recovery import --grant GRANT`."
        ),
        Side::Garage => format!("the import of {vm} is not complete; run `drydock recovery import` again."),
    }
}
