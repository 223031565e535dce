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
use host::api::Hold;
use host::store::VmDir;
use host::{Agent, VmLock};
use image::{Format, Source};
use key_protector::{Protector, Role};
use machine::{DiskSpec, Policy, VmSpec};
use outcome::Events;
use outcome::{Context, Error, Kind, Next, Result};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use time::OffsetDateTime;

use crate::api::StatusReport;
use crate::documents::{self, Receipt};
use crate::export::rg_serial;
use crate::journal::{Journal, Side, Step};
use crate::{commit, export, rg, status};

/// A file in the VM's directory that says: this is the one that came back.
const RETURNED: &str = "returned";

/// Runs, or goes on with, a reinstatement.
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
    // A file is looked at each time: another one may have been named.
    let another = journal.file().is_some() && !journal.done(Step::Swapped) && !is_returned(dvm.dir());
    if !journal.done(Step::Detached) || another {
        events.say("look", "looking at what the owner handed back");
        if another {
            check_file(&disk)?;
        }
        let serial = rg_serial(journal.id());
        // A garage that was deleted has let go already.
        let garage = journal.garage().filter(|garage| agent.store().vm(garage).is_ok()).map(str::to_owned);
        let mut garage = garage.map(|garage| agent.lock(&garage)).transpose()?;
        rg::require_handed_back(&disk, &serial, garage.as_mut()).await?;
        if let Some(garage) = &mut garage {
            events.say("detach", format!("detaching the RG disk from {}", garage.dir().name()));
            export::detach(&journal, dvm.dir(), garage).await?;
        }
        journal.mark(Step::Detached)?;
    }
    if !journal.done(Step::Swapped) {
        if !is_returned(dvm.dir()) {
            events.say("verify", "verifying protector, receipt and digests");
            let back = verify(&journal, &disk, dvm.dir()).await?;
            journal.mark(Step::Verified)?;
            if !journal.done(Step::Copied) || another {
                stage(&journal, dvm.dir(), &back, events).await?;
                journal.mark(Step::Copied)?;
            }
            swap(&journal, dvm.dir())?;
        }
        journal.mark(Step::Swapped)?;
    }
    if !journal.done(Step::Started) {
        start(agent, &mut dvm, &mut journal, events).await?;
        journal.mark(Step::Started)?;
    }
    if keep_original && is_returned(dvm.dir()) {
        dvm.dir().set_hold(Some(&Hold {
            recovery_id: journal.id(),
            reason: "the VM as it was before its repair is kept; commit or roll back the recovery first".into(),
            may_start: true,
        }))?;
        journal.mark(Step::Kept)?;
        return Ok(status::describe(&journal));
    }
    commit::close(&mut dvm, &mut journal, events).await
}

/// From here on there is no way back: the directory in the VM's place is the VM.
pub(crate) fn settle(dir: &VmDir) -> Result<()> {
    let marker = dir.path().join(RETURNED);
    match fault::write().and_then(|()| fs::remove_file(&marker)) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(e).context(Kind::Internal, || format!("cannot remove {}", marker.display()))
        }
        _ => durable::sync_parent(&marker).context(Kind::Internal, || "cannot flush the VM's folder".into()),
    }
}

/// Whether [`settle`] was called: the repaired VM is in its place for good. An exchange that was taken back a moment
/// before a crash, and not written down, is not that.
pub(crate) fn is_settled(journal: &Journal, dir: &VmDir) -> bool {
    journal.done(Step::Started)
        && journal.done(Step::Swapped)
        && !is_returned(dir)
        && !staging(journal).join(RETURNED).exists()
}

/// The recovery of this VM that is open on this host.
pub(crate) fn open_journal(agent: &Agent, vm: &str) -> Result<Journal> {
    let journal = Journal::open_for(agent.store(), vm)?.ok_or_else(|| {
        Error::new(Kind::NotFound, format!("{vm} is in no recovery on this host"))
            .remedy(format!("drydock recovery status {vm}"))
    })?;
    if journal.side() != Side::Host {
        return Err(Error::new(
            Kind::WrongState,
            "this is the garage's side; `recovery reinstate` runs on the VM's host",
        ));
    }
    if !journal.is_exported() {
        return Err(Error::new(Kind::WrongState, status::describe(&journal).sentence));
    }
    Ok(journal)
}

/// Where the RG disk is. A file that travels may come back under another name.
fn rg_disk(journal: &Journal, from: Option<PathBuf>) -> Result<PathBuf> {
    let vm = journal.vm();
    match (journal.file(), from) {
        (None, None) => Ok(journal.dir().join("rg.vhdx")),
        (None, Some(_)) => Err(Error::new(Kind::BadInput, format!("{vm} did not leave this host in a file"))
            .remedy(format!("its RG disk is here: drydock recovery reinstate {vm}"))),
        (Some(exported), from) => Ok(from.unwrap_or_else(|| exported.to_owned())),
    }
}

/// That there is a file to look at.
fn check_file(disk: &Path) -> Result<()> {
    let bring = "bring it back from the garage's host and name it: drydock recovery reinstate VM --from FILE";
    let meta = fs::metadata(disk)
        .context(Kind::NotFound, || format!("{}: the RG disk is not there", disk.display()))
        .or_next(|| bring.into())?;
    if meta.is_file() && disk.is_absolute() {
        return Ok(());
    }
    Err(Error::new(Kind::BadInput, format!("{} is not the absolute path of a file", disk.display())).remedy(bring))
}

fn staging(journal: &Journal) -> PathBuf {
    journal.dir().join("staging")
}

pub(crate) fn is_returned(dir: &VmDir) -> bool {
    dir.path().join(RETURNED).exists()
}

/// What came back, after every check that needs no key.
struct Back {
    protector: Protector,
    generation: u64,
    receipt: Receipt,
    contents: rg::Contents,
}

async fn verify(journal: &Journal, disk: &Path, original: &VmDir) -> Result<Back> {
    let what = "the RG disk";
    let spec = original.spec()?;
    let contents = rg::read(disk).await?;
    let handback = contents.handback()?;
    let another = if journal.file().is_some() { "name the right file with --from, or " } else { "" };
    let give_up = format!(
        "nothing was changed; {another}give this recovery up and start another: drydock recovery abort {}",
        spec.name
    );
    let wrong = |field: &str, why: String| {
        Err(Error::new(Kind::BadInput, format!("{what}: field '{field}': {why}")).remedy(give_up.clone()))
    };
    if handback.mode != journal.mode() {
        return wrong("mode", "its disks travelled another way".into());
    }
    if handback.recovery_id != journal.id() {
        return wrong("recovery_id", "it is of another recovery".into());
    }
    if handback.vm_id != spec.id {
        return wrong("vm_id", "it is of another VM".into());
    }
    let ours = original.protector(original.current()?)?;
    let protector = handback.protector;
    protector
        .verify(OffsetDateTime::now_utc())
        .context(Kind::BadInput, || format!("{what}: its key protector does not verify"))
        .or_next(|| give_up.clone())?;
    let owner = ours.owner().signing_certificate().fingerprint();
    if protector.owner().signing_certificate().fingerprint() != owner {
        return wrong("protector", "its owner is not the VM's owner".into());
    }
    let signer = protector.signer();
    if signer.role() != Role::Recovery {
        return wrong("protector", "it is not signed by a recovery guardian".into());
    }
    let (receipt, by) = documents::read_receipt(&format!("{what}: the receipt"), &handback.receipt)?;
    if by.fingerprint() != signer.signing_certificate().fingerprint() {
        return wrong("receipt", "it is signed by another than the recovery guardian".into());
    }
    let expected = [
        ("receipt.recovery_id", receipt.recovery_id == journal.id()),
        ("receipt.vm_id", receipt.vm_id == spec.id),
        ("receipt.ingress_protector", receipt.ingress_protector == ours.digest()),
        ("receipt.egress_protector", receipt.egress_protector == protector.digest()),
        ("receipt.state", receipt.state == contents.state_digest()),
        (
            "receipt.disks",
            receipt.disks.len() == spec.disks.len()
                && receipt.disks.iter().zip(&spec.disks).all(|(r, d)| {
                    r.serial == d.serial && r.size == d.size && r.sha256.is_some() == (journal.mode() == Mode::Copy)
                }),
        ),
    ];
    for (field, holds) in expected {
        if !holds {
            return wrong(field, "it is not what this VM left with, or not what came back".into());
        }
    }
    if handback.generation <= original.current()? {
        return wrong("generation", "the state is not newer than the original".into());
    }
    Ok(Back { protector, generation: handback.generation, receipt, contents })
}

/// Builds the returned VM beside the original. Its shape is the original's: nothing that the tenant wrote says
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
            .remedy("it was altered or damaged after `recovery finish`; abort and start again"));
        }
        // Where it is after the exchange.
        disk.source = Source::new(original.path().join(file), Format::Raw);
    }
    Ok(())
}

/// Where a returned VM has the overlay of disk `index` until it is merged.
pub(crate) fn overlay_in(dir: &Path, index: usize) -> PathBuf {
    dir.join(format!("disk-{index}.repair.qcow2"))
}

/// The overlays as they came back, on links to the original disks: nothing is copied, and both directories are whole.
async fn link_disks(spec: &mut VmSpec, staging: &Path, original: &VmDir, journal: &Journal) -> Result<()> {
    let link = |from: &Path, name: &OsStr| {
        fault::write()
            .and_then(|()| fs::hard_link(from, staging.join(name)))
            .context(Kind::Internal, || format!("cannot link {} into {}", from.display(), staging.display()))
    };
    for (index, disk) in spec.disks.iter_mut().enumerate() {
        let overlay = rg::overlay(journal.dir(), index);
        let image = DiskSpec { source: Source::new(&overlay, Format::Qcow2), ..disk.clone() };
        machine::disk::check(&image)
            .context(Kind::BadInput, || format!("what came back of disk {index}"))
            .or_next(|| "it was altered outside the repair: abort the recovery and export again".into())?;
        rg::check_overlay(overlay.clone(), disk.size).await?;
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

/// Exchanges the two directories in one step: at no moment is there no VM.
fn swap(journal: &Journal, original: &VmDir) -> Result<()> {
    let staging = staging(journal);
    fault::write()
        .and_then(|()| Ok(renameat_with(CWD, &staging, CWD, original.path(), RenameFlags::EXCHANGE)?))
        .context(Kind::Internal, || format!("cannot put {} in its place", original.name()))?;
    durable::sync_parent(original.path())
        .and_then(|()| durable::sync_parent(&staging))
        .context(Kind::Internal, || "cannot flush the exchange".into())
}

/// Takes the exchange back.
pub(crate) fn unswap(journal: &mut Journal, dir: &VmDir) -> Result<()> {
    if is_returned(dir) {
        swap(journal, dir)?;
    }
    journal.unmark(Step::Swapped)
}

/// The first start asks the HGS, opens the sealed state and checks policy and generation in it. If that fails,
/// the original is back in its place before the error is shown.
async fn start(agent: &Agent, dvm: &mut VmLock, journal: &mut Journal, events: &Events) -> Result<()> {
    // Started by an agent that was killed before it could write that down.
    if dvm.is_running() || dvm.orphan()?.is_some() {
        return Ok(());
    }
    if let Err(error) = agent.first_start(dvm, events).await {
        unswap(journal, dvm.dir())?;
        return Err(error);
    }
    Ok(())
}
