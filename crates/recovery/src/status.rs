//! Where a recovery stands and what comes next, in one sentence.

use host::Store;
use outcome::{Error, Kind, Result};

use crate::api::StatusReport;
use crate::journal::Journal;
use crate::step::{self, Sentence, Side};

/// All recoveries of this store, or the last one of a VM.
///
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

/// The sentence of the last step that is done.
pub(crate) fn sentence(journal: &Journal) -> String {
    let last = step::of_side(journal.side()).rfind(|row| journal.done(row.step));
    let template = match (last.map_or(journal.side().opening(), |row| row.sentence), journal.file()) {
        (Sentence::Always(template) | Sentence::ByWay { attached: template, .. }, None)
        | (Sentence::Always(template) | Sentence::ByWay { carried: template, .. }, Some(_)) => template,
    };
    let file = journal.file().map(|file| file.display().to_string()).unwrap_or_default();
    // The file last: its name may hold anything, a VM's name no braces.
    template
        .replace("{vm}", journal.vm())
        .replace("{garage}", journal.garage().unwrap_or("the garage"))
        .replace("{file}", &file)
}

/// A refusal: the VM, or one of its name from another host, is in a recovery that the command does not resume.
pub(crate) fn in_another(journal: &Journal) -> Error {
    let vm = journal.vm();
    let message = match (journal.side(), journal.garage(), journal.file()) {
        (Side::GarageHost, garage, _) => {
            format!("a VM named {vm} of another host is in recovery in {} here", garage.unwrap_or("a garage"))
        }
        (_, None, Some(file)) => format!("{vm} is in recovery already, in the file {}", file.display()),
        (_, garage, _) => format!("{vm} is in recovery in {} already", garage.unwrap_or("another garage")),
    };
    Error::new(Kind::WrongState, message)
        .remedy(format!("drydock recovery status {vm}; or abort that one: drydock recovery abort {vm}"))
}
