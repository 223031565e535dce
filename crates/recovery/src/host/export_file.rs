//! The same onto an RG disk in a file, for a garage on another host: its admins carry the file there and back. The
//! disks are on it.

use std::path::Path;

use garage::Mode;
use host::Agent;
use machine::Policy;
use outcome::Events;
use outcome::{Error, Kind, Result};
use uuid::Uuid;

use crate::api::StatusReport;
use crate::host::export::{check_damaged, check_space, hold, in_another};
use crate::journal::{Journal, Side, Step};
use crate::{rg, status};

/// Runs, or goes on with, an export into the new file `file`.
///
/// # Errors
/// A refusal for each check of the table in `docs/recovery.md`; nothing has changed then.
pub(crate) async fn run(agent: &Agent, vm: &str, file: &Path, stop: bool, events: &Events) -> Result<StatusReport> {
    if agent.keys().is_local() {
        return Err(Error::new(Kind::WrongState, "an export starts on the guarded host, not inside a garage"));
    }
    let mut dvm = agent.lock(vm)?;
    let mut journal = resume(agent, vm, file)?;
    if let Some(journal) = &journal
        && journal.is_exported()
    {
        return Ok(status::describe(journal));
    }
    let damaged = dvm.dir().spec()?;
    if damaged.policy != Policy::Shielded {
        return Err(Error::new(Kind::Refused, format!("{vm} is not shielded but {}", damaged.policy))
            .remedy("an encryption-supported VM has a console on its host; recovery is for shielded ones"));
    }
    check_damaged(&mut dvm, stop, &format!("--to-file {}", file.display()))?;
    let folder = check_target(file, journal.is_some())?;
    check_space(&damaged, Mode::Copy, folder)?;

    if dvm.is_running() {
        dvm.stop(false, events).await?;
    }
    let journal = match &mut journal {
        Some(journal) => journal,
        None => {
            let id = Uuid::new_v4();
            journal.insert(Journal::begin(agent.store(), Side::Host, id, vm, None, Some(file), Mode::Copy)?)
        }
    };
    hold(agent, &dvm, journal, "a garage on another host").await?;
    // A file that a killed run completed is whole, and no older than the VM, which is held.
    if !rg::is_outbound(file, journal.id()).await? {
        rg::create(file, journal.id(), dvm.dir(), Mode::Copy, events).await?;
    }
    journal.mark(Step::RgDiskMade)?;
    Ok(status::describe(journal))
}

fn resume(agent: &Agent, vm: &str, file: &Path) -> Result<Option<Journal>> {
    match Journal::open_for(agent.store(), vm)? {
        Some(journal) if journal.side() == Side::Host && journal.file() == Some(file) => Ok(Some(journal)),
        Some(journal) => Err(in_another(&journal)),
        None => Ok(None),
    }
}

/// The folder that the new file goes to. A run that is gone on with may find the file there.
fn check_target(file: &Path, resumed: bool) -> Result<&Path> {
    let bad = |why: &str| {
        Error::new(Kind::BadInput, format!("{}: {why}", file.display()))
            .remedy("name a new file in a folder that is there: --to-file PATH")
    };
    let (Some(folder), Some(_)) = (file.parent().filter(|_| file.is_absolute()), file.file_name()) else {
        return Err(bad("is no absolute path of a file"));
    };
    if !folder.is_dir() {
        return Err(bad("its folder does not exist"));
    }
    if !resumed && file.symlink_metadata().is_ok() {
        return Err(Error::new(Kind::WrongState, format!("{} exists already", file.display()))
            .remedy("nothing is overwritten: remove it, or name another file with --to-file"));
    }
    Ok(folder)
}
