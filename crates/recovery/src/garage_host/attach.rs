//! On the garage's host, where that is not the VM's host: the RG disk that was carried here goes into the garage.
//!
//! The file comes from another host. It is read in user space, as an RG disk and nothing else, before anything is done
//! with it.

use std::fs;
use std::path::{Path, PathBuf};

use garage::Mode;
use host::Agent;
use outcome::Events;
use outcome::{Context, Error, Kind, Next, Result};

use crate::api::StatusReport;
use crate::garage_host::rg::{Arrived, arrived};
use crate::journal::{Beginning, Journal};
use crate::rg::rg_disk;
use crate::status::{self, in_another};
use crate::step::{Side, Step};
use crate::vmre::{check_nesting, check_specs, nested_on};

/// The remedy for anything but an RG disk in a file.
const EXPORTED: &str = "name the file that `drydock recovery export VM --to-file` made on the VM's host";

/// Runs or resumes an attachment.
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
    events.say("look", format!("inspecting {}", file.display()));
    let arrived = arrived(&file).await?;
    let vm = arrived.spec.name.clone();
    if vm == garage {
        return Err(Error::new(
            Kind::BadInput,
            format!("the VM on {} has the same name as the garage: {vm}", file.display()),
        )
        .remedy("use a garage with another name"));
    }
    // No other command brings the same VM in meanwhile.
    let _name = agent.lock_dir(agent.store().vm_dir(&vm)?)?;
    let resumed = find(agent, &vm, garage, &file, &arrived)?;
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

    let mut journal = match resumed {
        Some(journal) => journal,
        None => Journal::begin(
            agent.store(),
            Beginning {
                side: Side::GarageHost,
                id: arrived.recovery_id,
                vm: &vm,
                garage: Some(garage),
                file: Some(&file),
                mode: Mode::Copy,
            },
        )?,
    };
    journal.step(Step::GarageNested, async |_| nested_on(agent, &mut vmre, events).await).await?;
    let plug_in = async |_: &mut Journal| {
        events.say("attach", format!("attaching the RG disk to {garage}"));
        vmre.attach(&disk).await
    };
    journal.step(Step::PluggedIn, plug_in).await?;
    Ok(status::describe(&journal))
}

/// The file itself, whatever links lead to it: it is opened again at each start of the garage.
fn find_file(file: &Path) -> Result<PathBuf> {
    let found = file
        .canonicalize()
        .context(Kind::NotFound, || format!("{}: no such file", file.display()))
        .or_next(|| EXPORTED.into())?;
    if fs::metadata(&found).is_ok_and(|meta| meta.is_file()) {
        return Ok(found);
    }
    Err(Error::new(Kind::BadInput, format!("{} is not a file", file.display())).remedy(EXPORTED))
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
fn find(agent: &Agent, vm: &str, garage: &str, file: &Path, arrived: &Arrived) -> Result<Option<Journal>> {
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
