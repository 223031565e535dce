//! On the garage's host, where that is another than the VM's: the RG disk that was carried here goes into the garage.
//!
//! The file comes from another host. It is read in user space, as an RG disk and nothing else, before anything is done
//! with it.

use std::fs;
use std::path::{Path, PathBuf};

use garage::Mode;
use host::{Agent, VmLock};
use outcome::Events;
use outcome::{Context, Error, Kind, Next, Result};

use crate::api::StatusReport;
use crate::host::export::{check_nesting, check_specs, in_another, nested_on, rg_disk, rg_serial};
use crate::journal::{Journal, Side, Step};
use crate::{rg, status};

/// Runs, or goes on with, an attachment.
///
/// # Errors
/// A refusal for each check of the table in `docs/recovery.md`; nothing has changed then.
pub(crate) async fn run(
    agent: &Agent,
    file: &Path,
    garage: &str,
    restart_garage: bool,
    events: &Events,
) -> Result<StatusReport> {
    if agent.keys().is_local() {
        return Err(Error::new(Kind::WrongState, "an RG disk is attached on the garage's host, not inside the garage"));
    }
    let mut vmre = agent.lock(garage)?;
    let file = find_file(file)?;
    if let Some(journal) = attached_already(agent, &file)? {
        return match journal.garage() {
            Some(named) if named == garage => Ok(status::describe(&journal)),
            _ => Err(in_another(&journal)),
        };
    }
    events.say("look", format!("looking at {}", file.display()));
    let arrived = rg::arrived(&file).await?;
    let vm = arrived.spec.name.clone();
    if vm == garage {
        return Err(Error::new(
            Kind::BadInput,
            format!("the VM on {} is named {vm}, as the garage is", file.display()),
        )
        .remedy("use a garage of another name"));
    }
    // Nobody else brings the same VM in meanwhile.
    let _name = agent.lock_dir(agent.store().vm_dir(&vm)?)?;
    let mut journal = resume(agent, &vm, garage, &file, &arrived)?;
    check_specs(&arrived.spec, &vmre.dir().spec()?)?;
    check_nesting(&mut vmre, restart_garage)?;
    let disk = rg_disk(&file, arrived.size, arrived.recovery_id);
    disk.validate()
        .context(Kind::BadInput, || format!("{} cannot be attached", file.display()))
        .or_next(|| "give the file another name".into())?;
    let others = vmre.dir().attached()?.iter().filter(|other| other.serial != disk.serial).count();
    if others >= machine::qemu::HOT_PORTS {
        return Err(Error::new(Kind::NoSpace, format!("{garage} has no free port: {others} disks are attached"))
            .remedy("end another recovery in it first, or use another garage"));
    }

    let journal = match &mut journal {
        Some(journal) => journal,
        None => {
            let id = arrived.recovery_id;
            let begun =
                Journal::begin(agent.store(), Side::GarageHost, id, &vm, Some(garage), Some(&file), Mode::Copy)?;
            journal.insert(begun)
        }
    };
    if !journal.done(Step::GarageNested) {
        nested_on(agent, &mut vmre, events).await?;
        journal.mark(Step::GarageNested)?;
    }
    events.say("attach", format!("attaching the RG disk to {garage}"));
    vmre.attach(&disk).await?;
    journal.mark(Step::PluggedIn)?;
    Ok(status::describe(journal))
}

/// The file itself, whatever links lead to it: it is opened again at each start of the garage.
fn find_file(file: &Path) -> Result<PathBuf> {
    let found = file
        .canonicalize()
        .context(Kind::NotFound, || format!("{}: there is no such file", file.display()))
        .or_next(|| "name the file that `drydock recovery export VM --to-file` made on the VM's host".into())?;
    if fs::metadata(&found).is_ok_and(|meta| meta.is_file()) {
        return Ok(found);
    }
    Err(Error::new(Kind::BadInput, format!("{} is not a file", file.display()))
        .remedy("name the file that `drydock recovery export VM --to-file` made on the VM's host"))
}

/// The open recovery for which this file is in a garage of this host. It is not read again: the garage has it.
fn attached_already(agent: &Agent, file: &Path) -> Result<Option<Journal>> {
    let is_it = |journal: &Journal| {
        journal.side() == Side::GarageHost
            && !journal.is_closed()
            && journal.done(Step::PluggedIn)
            && journal.file() == Some(file)
    };
    Ok(Journal::all(agent.store())?.into_iter().find(is_it))
}

/// An attachment that was cut short. Any other recovery of this VM, or in this garage, is in the way.
fn resume(agent: &Agent, vm: &str, garage: &str, file: &Path, arrived: &rg::Arrived) -> Result<Option<Journal>> {
    let mut found = None;
    for journal in Journal::all(agent.store())?.into_iter().filter(|journal| !journal.is_closed()) {
        let same = journal.id() == arrived.recovery_id;
        if same && journal.side() == Side::Host {
            return Err(Error::new(Kind::WrongState, format!("{vm} was exported on this host"))
                .remedy(format!("both VMs are here: abort, then drydock recovery export {vm} --to {garage}")));
        }
        if same && journal.garage() == Some(garage) && journal.file() == Some(file) {
            found = Some(journal);
        } else if same || journal.vm() == vm {
            return Err(in_another(&journal));
        } else if journal.garage() == Some(garage) {
            return Err(Error::new(Kind::WrongState, format!("{garage} has the RG disk of {} already", journal.vm()))
                .remedy("one at a time: use another garage, or wait for that recovery to end"));
        }
    }
    Ok(found)
}

/// The garage of a recovery. One that was deleted has let go of everything already.
pub(crate) fn lock_garage(agent: &Agent, journal: &Journal) -> Result<Option<VmLock>> {
    let there = journal.garage().filter(|garage| agent.store().vm(garage).is_ok());
    there.map(|garage| agent.lock(garage)).transpose()
}

/// Takes the RG disk out of the garage, now and at later starts.
pub(crate) async fn take_out(journal: &Journal, garage: Option<&mut VmLock>, events: &Events) -> Result<()> {
    if let Some(garage) = garage {
        events.say("detach", format!("detaching the RG disk from {}", garage.dir().name()));
        garage.detach(&rg_serial(journal.id())).await?;
    }
    Ok(())
}
