//! Step 7, fabric admin on the host: what came back is verified, put in the VM's place, and started. The original
//! is kept until it runs, and on request for as long as its admin wants.
//!
//! ```text
//! vms/dvm ◀──────── exchanged ────────▶ recoveries/ID/staging
//!   new state, its disks:                 the VM as it was, its disks:
//!     copy mode     copies off the RG disk   untouched
//!     overlay mode  overlays ─▶ links to ──▶ the same, untouched until the merge
//! ```
//!
//! From a garage on another host the RG disk comes back as a file. Whose it is and where it was does not matter: what is
//! used of it is what was verified, or what was hashed while it was copied.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use garage::Mode;
use host::VmDir;
use host::api::Hold;
use host::{Agent, VmLock};
use image::{Format, Source};
use machine::{DiskSpec, Policy, VmSpec};
use outcome::Events;
use outcome::{Context, Error, Kind, Next, Result};

use crate::api::StatusReport;
use crate::host::commit;
use crate::host::original::{RETURNED, is_returned, open_journal, overlay_in, staging, swap, unswap};
use crate::host::rg::{check_overlay, overlay};
use crate::host::verify::{Back, verify};
use crate::journal::Journal;
use crate::rg::{ALTERED, require_handed_back, rg_serial};
use crate::step::Step;
use crate::{status, vmre};

/// Runs or resumes a reinstatement.
///
/// # Errors
/// `WrongState` when the owner has not finished, `BadInput` for anything altered, stale or of another VM.
pub(crate) async fn run(
    agent: &Agent,
    vm: &str,
    from: Option<PathBuf>,
    keep_original: bool,
    events: &Events,
) -> Result<StatusReport> {
    let mut dvm = agent.lock(vm)?;
    let mut journal = open_journal(agent, vm)?;
    if journal.done(Step::Kept) {
        return Ok(status::describe(&journal));
    }
    let disk = rg_disk(&journal, from)?;
    // A file is inspected each time: another one may have been named.
    let again = journal.file().is_some() && !journal.done(Step::Swapped) && !is_returned(dvm.dir());
    let take_out = async |journal: &mut Journal| {
        events.say("look", "inspecting what the owner handed back");
        if again {
            check_file(&disk)?;
        }
        let mut garage = vmre::lock(agent, journal)?;
        require_handed_back(&disk, &rg_serial(journal.id()), garage.as_mut()).await?;
        vmre::take_out(journal, dvm.dir().spec()?.disks.len(), garage.as_mut(), events).await
    };
    journal.step_again_if(again, Step::Detached, take_out).await?;
    let put_in_place = async |journal: &mut Journal| {
        if is_returned(dvm.dir()) {
            return Ok(());
        }
        events.say("verify", "verifying protector, receipt and digests");
        let back = journal.repeat(Step::Verified, async |journal| verify(journal, &disk, dvm.dir()).await).await?;
        let stage = async |journal: &mut Journal| stage(journal, dvm.dir(), &back, events).await;
        journal.step_again_if(again, Step::Copied, stage).await?;
        swap(journal, dvm.dir())
    };
    journal.step(Step::Swapped, put_in_place).await?;
    journal.step(Step::Started, async |journal| start(agent, &mut dvm, journal, events).await).await?;
    if keep_original && is_returned(dvm.dir()) {
        journal.step(Step::Kept, async |journal| keep(journal, &dvm)).await?;
        return Ok(status::describe(&journal));
    }
    commit::close(&mut dvm, &mut journal, events).await
}

/// Where the RG disk is. A file that travels may come back under another name.
fn rg_disk(journal: &Journal, from: Option<PathBuf>) -> Result<PathBuf> {
    let vm = journal.vm();
    match from {
        None => Ok(journal.rg_disk()),
        Some(_) if journal.file().is_none() => {
            Err(Error::new(Kind::BadInput, format!("{vm} did not leave this host in a file"))
                .remedy(format!("its RG disk is here: drydock recovery reinstate {vm}")))
        }
        Some(file) => Ok(file),
    }
}

/// That there is a file to inspect.
fn check_file(disk: &Path) -> Result<()> {
    let bring = "bring it back from the garage's host and name it: drydock recovery reinstate VM --from FILE";
    let meta = fs::metadata(disk)
        .context(Kind::NotFound, || format!("{}: the RG disk is missing", disk.display()))
        .or_next(|| bring.into())?;
    if meta.is_file() && disk.is_absolute() {
        return Ok(());
    }
    Err(Error::new(Kind::BadInput, format!("{} is not the absolute path of a file", disk.display())).remedy(bring))
}

/// Makes the returned VM next to the original. Its specification is the original's: nothing that the tenant wrote says
/// what devices it has.
async fn stage(journal: &Journal, original: &VmDir, back: &Back, events: &Events) -> Result<()> {
    let path = staging(journal);
    match fs::remove_dir_all(&path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            return Err(e).context(Kind::Internal, || format!("cannot clear {}", path.display()));
        }
        _ => {}
    }
    durable::private_dir(&path.join("slots")).context(Kind::Internal, || format!("cannot make {}", path.display()))?;
    let dir = VmDir::at(path.clone(), original.name().to_owned());
    let mut spec: VmSpec = VmSpec { policy: Policy::Shielded, ..original.spec()? };
    match journal.mode() {
        Mode::Copy => copy_disks(&mut spec, &path, original, back, events).await?,
        Mode::Overlay => link_disks(&mut spec, &path, original, journal).await?,
    }
    back.contents.unpack(&dir.slot(back.generation))?;
    dir.write_protector(back.generation, &back.protector)?;
    dir.switch_to(back.generation, back.generation)?;
    durable::write_atomic(&path.join(RETURNED), journal.id().to_string().as_bytes())
        .context(Kind::Internal, || format!("cannot write into {}", path.display()))?;
    dir.write_spec(&spec)
}

/// The disks as they came back, off the RG disk.
async fn copy_disks(spec: &mut VmSpec, staging: &Path, original: &VmDir, back: &Back, events: &Events) -> Result<()> {
    for (index, (disk, receipt)) in spec.disks.iter_mut().zip(&back.receipt.disks).enumerate() {
        let file = format!("disk-{index}.raw");
        let sha256 = back.contents.extract(index, &staging.join(&file), disk.size, events).await?;
        let signed = receipt.sha256.as_deref().unwrap_or("nothing");
        if sha256 != signed {
            return Err(Error::new(
                Kind::BadInput,
                format!("the RG disk: disk {index} is not what the owner signed: digest {sha256}, signed {signed}"),
            )
            .remedy(ALTERED));
        }
        // Where it is after the exchange.
        disk.source = Source::new(original.path().join(file), Format::Raw);
    }
    Ok(())
}

/// The overlays as they came back, on links to the original disks: nothing is copied, and both directories are whole.
async fn link_disks(spec: &mut VmSpec, staging: &Path, original: &VmDir, journal: &Journal) -> Result<()> {
    let link = |from: &Path, name: &OsStr| {
        fault::write()
            .and_then(|()| fs::hard_link(from, staging.join(name)))
            .context(Kind::Internal, || format!("cannot link {} into {}", from.display(), staging.display()))
    };
    for (index, disk) in spec.disks.iter_mut().enumerate() {
        let overlay = overlay(journal.dir(), index);
        let image = DiskSpec { source: Source::new(&overlay, Format::Qcow2), ..disk.clone() };
        machine::disk::check(&image)
            .context(Kind::BadInput, || format!("the overlay of disk {index} that came back"))
            .or_next(|| "it was altered outside the repair: abort the recovery and export again".into())?;
        check_overlay(overlay.clone(), disk.size).await?;
        let target = overlay_in(original.path(), index);
        link(&overlay, target.file_name().unwrap_or_default())?;
        // One that lies elsewhere stays there, for both.
        let below = disk.source.path();
        if let Some(file) = below.file_name().filter(|_| below.parent() == Some(original.path())) {
            link(below, file)?;
        }
        let overlay = Source::new(target, Format::Qcow2);
        *disk = DiskSpec::new(overlay, &disk.serial, disk.size).over(disk.source.clone());
    }
    durable::sync_parent(&staging.join("vm.json")).context(Kind::Internal, || "cannot flush the links".into())
}

/// The first start asks the HGS, opens the sealed state and checks policy and generation in it. If that fails,
/// the original is back in its place before the error is shown.
async fn start(agent: &Agent, dvm: &mut VmLock, journal: &mut Journal, events: &Events) -> Result<()> {
    // Started by an agent that was killed before it could record that.
    if dvm.is_running() || dvm.orphan()?.is_some() {
        return Ok(());
    }
    if let Err(error) = ::host::first_start(agent, dvm, events).await {
        unswap(journal, dvm.dir())?;
        return Err(error);
    }
    Ok(())
}

/// The original stays, and the VM with it: neither is deleted until a commit or a rollback.
fn keep(journal: &Journal, dvm: &VmLock) -> Result<()> {
    dvm.dir().set_hold(Some(&Hold {
        recovery_id: journal.id(),
        reason: "the VM as it was before its repair is kept; commit or roll back the recovery first".into(),
        may_start: true,
    }))
}
