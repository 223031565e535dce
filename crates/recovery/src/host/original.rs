//! The two VMs between a reinstatement and its end: the one that came back and the original, which exchange their
//! directories in one step.
//!
//! ```text
//! vms/dvm ◀──────── exchanged ────────▶ recoveries/ID/staging
//! ```
//!
//! A marker in the directory of the one that came back tells them apart. Its removal settles the matter: from then on
//! there is no way back.

use std::fs;
use std::path::{Path, PathBuf};

use host::Agent;
use host::VmDir;
use outcome::{Context, Error, Kind, Result};
use rustix::fs::{CWD, RenameFlags, renameat_with};

use crate::journal::Journal;
use crate::status;
use crate::step::{Side, Step};

/// A file in the VM's directory that says: this is the one that came back.
pub(super) const RETURNED: &str = "returned";

/// The recovery of this VM that is open on this host.
///
/// # Errors
/// `NotFound` when there is none, `WrongState` when its export is not complete.
pub(super) fn open_journal(agent: &Agent, vm: &str) -> Result<Journal> {
    let journal = Journal::open_for(agent.store(), vm)?.ok_or_else(|| {
        Error::new(Kind::NotFound, format!("{vm} is not in recovery on this host"))
            .remedy(format!("drydock recovery status {vm}"))
    })?;
    if journal.side() != Side::Host {
        return Err(Error::new(
            Kind::WrongState,
            "this is the garage's side; `recovery reinstate` runs on the VM's host",
        ));
    }
    if !journal.is_exported() {
        return Err(Error::new(Kind::WrongState, status::sentence(&journal)));
    }
    Ok(journal)
}

/// Where the VM that came back is made; after the exchange, the original.
pub(super) fn staging(journal: &Journal) -> PathBuf {
    journal.dir().join("staging")
}

/// Where a returned VM has the overlay of disk `index` until it is merged.
pub(super) fn overlay_in(dir: &Path, index: usize) -> PathBuf {
    dir.join(format!("disk-{index}.repair.qcow2"))
}

/// Whether the VM in this directory is the one that came back, and the original still exists.
pub(super) fn is_returned(dir: &VmDir) -> bool {
    dir.path().join(RETURNED).exists()
}

/// From here on there is no way back: the directory in the VM's place is the VM.
///
/// # Errors
/// When the file system refuses.
pub(super) fn settle(dir: &VmDir) -> Result<()> {
    let marker = dir.path().join(RETURNED);
    match fault::write().and_then(|()| fs::remove_file(&marker)) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(e).context(Kind::Internal, || format!("cannot remove {}", marker.display()))
        }
        _ => durable::sync_parent(&marker).context(Kind::Internal, || "cannot flush the VM's directory".into()),
    }
}

/// Whether [`settle`] was called: the repaired VM is in its place for good. An exchange that was taken back a moment
/// before a crash, and not recorded, is not that.
pub(super) fn is_settled(journal: &Journal, dir: &VmDir) -> bool {
    journal.done(Step::Started)
        && journal.done(Step::Swapped)
        && !is_returned(dir)
        && !staging(journal).join(RETURNED).exists()
}

/// Exchanges the two directories in one step: at no moment is there no VM.
///
/// # Errors
/// When the file system refuses.
pub(super) fn swap(journal: &Journal, original: &VmDir) -> Result<()> {
    let staging = staging(journal);
    fault::write()
        .and_then(|()| Ok(renameat_with(CWD, &staging, CWD, original.path(), RenameFlags::EXCHANGE)?))
        .context(Kind::Internal, || format!("cannot put {} in its place", original.name()))?;
    durable::sync_parent(original.path())
        .and_then(|()| durable::sync_parent(&staging))
        .context(Kind::Internal, || "cannot flush the exchange".into())
}

/// Takes the exchange back.
///
/// # Errors
/// When the file system refuses.
pub(super) fn unswap(journal: &mut Journal, dir: &VmDir) -> Result<()> {
    if is_returned(dir) {
        swap(journal, dir)?;
    }
    journal.take_back(Step::Swapped)
}
