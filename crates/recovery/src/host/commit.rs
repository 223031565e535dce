//! The end of a recovery: what the repair changed is merged into the original disks, the rest of the original goes.

use std::{fs, io};

use host::VmDir;
use host::{Agent, VmLock};
use machine::VmSpec;
use outcome::Events;
use outcome::{Context, Error, Kind, Result};

use crate::api::StatusReport;
use crate::host::original::{open_journal, overlay_in, settle};
use crate::host::rg;
use crate::journal::Journal;
use crate::status;
use crate::step::Step;

/// Ends the keeping of an original.
///
/// # Errors
/// `WrongState` when none is kept.
pub(crate) async fn run(agent: &Agent, vm: &str, events: &Events) -> Result<StatusReport> {
    let mut dvm = agent.lock(vm)?;
    let mut journal = kept(agent, vm)?;
    close(&mut dvm, &mut journal, events).await
}

/// The recovery of a VM whose original is kept.
///
/// # Errors
/// `WrongState` when none is kept.
pub(super) fn kept(agent: &Agent, vm: &str) -> Result<Journal> {
    let journal = open_journal(agent, vm)?;
    if !journal.done(Step::Kept) {
        return Err(Error::new(Kind::WrongState, status::sentence(&journal))
            .remedy("an original is kept after: drydock recovery reinstate VM --keep-original"));
    }
    Ok(journal)
}

/// Merges the overlays, if there are any, and closes the recovery. There is no way back from its first write on; and it
/// can be run again from wherever it was stopped.
///
/// # Errors
/// When a merge or the file system refuses.
pub(super) async fn close(dvm: &mut VmLock, journal: &mut Journal, events: &Events) -> Result<StatusReport> {
    journal.step(Step::Merged, async |_| merge_all(dvm, events).await).await?;
    let release = async |journal: &mut Journal| {
        dvm.dir().set_hold(None)?;
        journal.clear_files()
    };
    journal.step(Step::Closed, release).await?;
    Ok(status::describe(journal))
}

async fn merge_all(dvm: &mut VmLock, events: &Events) -> Result<()> {
    let spec = dvm.dir().spec()?;
    if spec.disks.iter().any(|disk| disk.backing.is_some()) {
        dvm.refuse_orphan()?;
    }
    settle(dvm.dir())?;
    for index in 0..spec.disks.len() {
        merge(dvm, index, events).await?;
        remove_overlay(dvm.dir(), index)?;
    }
    Ok(())
}

/// Merges one disk's overlay, through the VM's QEMU if it runs. Until the specification says otherwise, both images
/// together are the disk.
async fn merge(dvm: &mut VmLock, index: usize, events: &Events) -> Result<()> {
    let spec = dvm.dir().spec()?;
    let Some(disk) = spec.disks.get(index) else { return Ok(()) };
    let merged = merged(&spec, index);
    if dvm.is_running() && (disk.backing.is_some() || dvm.is_unsettled(&disk.serial)) {
        dvm.merge_overlay(&disk.serial, &format!("merging disk {index} of {}", spec.name), &merged, events).await?;
    } else if let Some(backing) = &disk.backing {
        rg::merge(index, disk, backing, events).await?;
        dvm.dir().write_spec(&merged)?;
    }
    Ok(())
}

/// Also one that an earlier run merged and could not remove any more.
fn remove_overlay(dir: &VmDir, index: usize) -> Result<()> {
    let path = overlay_in(dir.path(), index);
    match fault::write().and_then(|()| fs::remove_file(&path)) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(e).context(Kind::Internal, || format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// The VM on the image below alone.
fn merged(spec: &VmSpec, index: usize) -> VmSpec {
    let mut spec = spec.clone();
    if let Some(disk) = spec.disks.get_mut(index)
        && let Some(below) = disk.backing.take()
    {
        disk.source = below;
    }
    spec
}
