//! Step 1 for a garage on another host: the RG disk is a file, which the admins carry there and back. The VM's disks
//! are on it.

use std::path::Path;

use garage::Mode;
use host::Agent;
use outcome::Events;
use outcome::{Error, Kind, Result};
use uuid::Uuid;

use crate::api::StatusReport;
use crate::damaged::{require_off, require_shielded};
use crate::host::export::{check_space, hold, refuse_in_garage};
use crate::host::rg::{create, is_outbound};
use crate::journal::{Beginning, Journal};
use crate::status::{self, in_another};
use crate::step::{Side, Step};

/// Runs or resumes an export into the new file `file`.
///
/// # Errors
/// A refusal for each check of the table in `docs/recovery.md`; nothing has changed then.
pub(crate) async fn run(agent: &Agent, vm: &str, file: &Path, stop: bool, events: &Events) -> Result<StatusReport> {
    refuse_in_garage(agent)?;
    let mut dvm = agent.lock(vm)?;
    let resumed = find(agent, vm, file)?;
    if let Some(journal) = &resumed
        && journal.is_exported()
    {
        return Ok(status::describe(journal));
    }
    let damaged = dvm.dir().spec()?;
    require_shielded(&damaged)?;
    require_off(&mut dvm, stop, &format!("export {vm} --to-file {}", file.display()))?;
    let directory = check_target(file, resumed.is_some())?;
    check_space(&damaged, Mode::Copy, directory)?;

    if dvm.is_running() {
        dvm.stop(false, events).await?;
    }
    let mut journal = match resumed {
        Some(journal) => journal,
        None => {
            let id = Uuid::new_v4();
            let (side, mode) = (Side::Host, Mode::Copy);
            Journal::begin(agent.store(), Beginning { side, id, vm, garage: None, file: Some(file), mode })?
        }
    };
    hold(agent, &dvm, &mut journal, "a garage on another host").await?;
    let make = async |journal: &mut Journal| {
        // A file that a killed run completed is whole, and no older than the VM, which is held.
        if !is_outbound(file, journal.id()).await? {
            create(file, journal.id(), dvm.dir(), Mode::Copy, events).await?;
        }
        Ok(())
    };
    journal.step(Step::RgDiskMade, make).await?;
    Ok(status::describe(&journal))
}

/// An export that was cut short.
fn find(agent: &Agent, vm: &str, file: &Path) -> Result<Option<Journal>> {
    match Journal::open_for(agent.store(), vm)? {
        Some(journal) if journal.side() == Side::Host && journal.file() == Some(file) => Ok(Some(journal)),
        Some(journal) => Err(in_another(&journal)),
        None => Ok(None),
    }
}

/// The directory that the new file goes to. An export that is resumed may find the file there.
fn check_target(file: &Path, resumed: bool) -> Result<&Path> {
    let bad = |why: &str| {
        Error::new(Kind::BadInput, format!("{}: {why}", file.display()))
            .remedy("name a new file in an existing directory: --to-file PATH")
    };
    let (Some(directory), Some(_)) = (file.parent().filter(|_| file.is_absolute()), file.file_name()) else {
        return Err(bad("not the absolute path of a file"));
    };
    if !directory.is_dir() {
        return Err(bad("its directory does not exist"));
    }
    if !resumed && file.symlink_metadata().is_ok() {
        return Err(Error::new(Kind::WrongState, format!("{} exists already", file.display()))
            .remedy("nothing is overwritten: remove it, or name another file with --to-file"));
    }
    Ok(directory)
}
