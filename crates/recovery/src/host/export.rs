//! Step 1, fabric admin on the host: the damaged VM goes onto an RG disk, and that into the repair garage. Its disks
//! go there as overlays on the originals, or, in copy mode, on the RG disk.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use garage::Mode;
use host::api::Hold;
use host::{Agent, VmLock, disks, free_space};
use machine::{DiskSpec, VmSpec};
use outcome::Events;
use outcome::{Context, Error, Kind, Result};
use uuid::Uuid;

use crate::api::StatusReport;
use crate::damaged::require_off;
use crate::host::rg::{create, overlays};
use crate::journal::{Beginning, Journal};
use crate::rg::rg_disk;
use crate::status::{self, in_another};
use crate::step::{Side, Step};
use crate::vmre::{check_nesting, check_specs, nested_on};

/// What the RG disk needs beyond the disks themselves.
const RG_OVERHEAD: u64 = 96 << 20;
/// The way for disks that cannot travel as overlays.
const ADD_COPY: &str = "let the disks travel on the RG disk: add --copy";

pub(crate) struct Options {
    pub mode: Mode,
    pub stop: bool,
    pub restart_garage: bool,
}

/// Runs or resumes an export.
///
/// # Errors
/// A refusal for each check of the table in `docs/recovery.md`; nothing has changed then.
pub(crate) async fn run(
    agent: &Agent,
    vm: &str,
    garage: &str,
    options: Options,
    events: &Events,
) -> Result<StatusReport> {
    refuse_in_garage(agent)?;
    if vm == garage {
        return Err(Error::new(Kind::BadInput, "a VM cannot be its own repair garage")
            .remedy("name another shielded VM with --to"));
    }
    let mut dvm = agent.lock(vm)?;
    let mut vmre = agent.lock(garage)?;
    let resumed = find(agent, vm, garage, options.mode)?;
    if let Some(journal) = &resumed
        && journal.is_exported()
    {
        return Ok(status::describe(journal));
    }
    let (damaged, spec) = (dvm.dir().spec()?, vmre.dir().spec()?);
    check_specs(&damaged, &spec)?;
    require_off(&mut dvm, options.stop, &format!("export {vm} --to {garage}"))?;
    check_nesting(&mut vmre, options.restart_garage)?;
    if options.mode == Mode::Overlay {
        check_ports(&damaged, vmre.dir().attached()?.len(), garage)?;
        check_blocks(&damaged)?;
    }
    check_space(&damaged, options.mode, agent.store().root())?;

    if dvm.is_running() {
        dvm.stop(false, events).await?;
    }
    let mut journal = match resumed {
        Some(journal) => journal,
        None => Journal::begin(
            agent.store(),
            Beginning {
                side: Side::Host,
                id: Uuid::new_v4(),
                vm,
                garage: Some(garage),
                file: None,
                mode: options.mode,
            },
        )?,
    };
    hold(agent, &dvm, &mut journal, garage).await?;
    journal.step(Step::NestedOn, async |_| nested_on(agent, &mut vmre, events).await).await?;
    let make = async |journal: &mut Journal| {
        // Complete or not, it is not recorded: a crash came in between.
        journal.clear_files()?;
        create(&journal.rg_disk(), journal.id(), dvm.dir(), options.mode, events).await
    };
    journal.step(Step::RgDiskMade, make).await?;
    journal.step(Step::Attached, async |journal| attach(journal, &dvm, &mut vmre, events).await).await?;
    Ok(status::describe(&journal))
}

/// An export starts where the VM runs.
pub(super) fn refuse_in_garage(agent: &Agent) -> Result<()> {
    if agent.keys().is_local() {
        return Err(Error::new(Kind::WrongState, "an export starts on the guarded host, not inside a garage"));
    }
    Ok(())
}

/// The VM cannot be started or deleted any more.
pub(super) async fn hold(agent: &Agent, dvm: &VmLock, journal: &mut Journal, place: &str) -> Result<()> {
    let hold = async |journal: &mut Journal| {
        dvm.dir().set_hold(Some(&Hold {
            recovery_id: journal.id(),
            reason: format!("it is in recovery in {place}; reinstate or abort the recovery first"),
            may_start: false,
        }))?;
        agent.keys().forget_offline_key(dvm.dir()).await
    };
    journal.step(Step::Held, hold).await
}

/// Gives the garage the overlays, and the RG disk last: when the garage sees that, everything has arrived.
async fn attach(journal: &Journal, dvm: &VmLock, vmre: &mut VmLock, events: &Events) -> Result<()> {
    events.say("attach", format!("attaching the RG disk to {}", vmre.dir().name()));
    if journal.mode() == Mode::Overlay {
        for overlay in overlays(journal.dir(), journal.id(), &dvm.dir().spec()?) {
            vmre.attach(&overlay).await?;
        }
    }
    let disk = journal.rg_disk();
    let size = disks::info(&disk).await?.virtual_size;
    vmre.attach(&rg_disk(&disk, size, journal.id())).await
}

/// An export that was cut short.
fn find(agent: &Agent, vm: &str, garage: &str, mode: Mode) -> Result<Option<Journal>> {
    let Some(journal) = Journal::open_for(agent.store(), vm)? else { return Ok(None) };
    if journal.side() == Side::Host && journal.garage() == Some(garage) {
        if journal.mode() == mode {
            return Ok(Some(journal));
        }
        let (began, flag) = match journal.mode() {
            Mode::Copy => ("in copy mode", "with --copy"),
            Mode::Overlay => ("in overlay mode", "without --copy"),
        };
        return Err(Error::new(Kind::WrongState, format!("the export of {vm} was started {began}"))
            .remedy(format!("run it again {flag}, or abort it first: drydock recovery abort {vm}")));
    }
    Err(in_another(&journal))
}

/// The file system that holds `directory` has room for the RG disk.
pub(super) fn check_space(damaged: &VmSpec, mode: Mode, directory: &Path) -> Result<()> {
    let mut needed = RG_OVERHEAD;
    for disk in damaged.disks.iter().filter(|_| mode == Mode::Copy) {
        // What it takes on the disk; asking QEMU would need a lock that a running VM holds.
        let file = std::fs::metadata(disk.source.path())
            .context(Kind::NotFound, || format!("cannot inspect the VM's disk {}", disk.source.path().display()))?;
        needed = needed.saturating_add(file.blocks().saturating_mul(512));
    }
    let free = free_space(directory)?;
    if free < needed {
        return Err(Error::new(
            Kind::NoSpace,
            format!("the RG disk needs {} MiB and {} MiB are free", needed >> 20, free >> 20),
        )
        .remedy(format!("free space below {}", directory.display())));
    }
    Ok(())
}

/// In overlay mode each disk needs a port of the garage, and so does the RG disk.
fn check_ports(damaged: &VmSpec, attached: usize, garage: &str) -> Result<()> {
    let (needed, free) = (damaged.disks.len() + 1, machine::HOT_PORTS.saturating_sub(attached));
    if needed > free {
        return Err(Error::new(
            Kind::NoSpace,
            format!(
                "{} needs {needed} ports in {garage}, one for each disk and one for the RG disk; {free} are free",
                damaged.name
            ),
        )
        .remedy(ADD_COPY));
    }
    Ok(())
}

/// An overlay is shown to the garage in blocks of 4096 bytes.
fn check_blocks(damaged: &VmSpec) -> Result<()> {
    match damaged.disks.iter().find(|disk| !disk.size.is_multiple_of(DiskSpec::OPAQUE_BLOCK)) {
        None => Ok(()),
        Some(disk) => Err(Error::new(
            Kind::BadInput,
            format!("disk {} has {} bytes, which is not a multiple of 4096", disk.serial, disk.size),
        )
        .remedy(ADD_COPY)),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use machine::{ConsoleProfile, Firmware, Policy};

    fn vm(disks: Vec<DiskSpec>) -> VmSpec {
        VmSpec {
            id: Uuid::new_v4(),
            name: "dvm".into(),
            memory_mib: 1024,
            vcpus: 1,
            nested: false,
            policy: Policy::Shielded,
            console_profile: ConsoleProfile::default(),
            disks,
            nics: Vec::new(),
            firmware: Firmware { code: "/code".into(), vars_template: "/vars".into() },
        }
    }

    #[test]
    fn what_cannot_travel_as_overlays_is_refused() {
        let damaged = vm(Vec::new());
        check_ports(&damaged, 1, "vmre").unwrap();
        assert_eq!(check_ports(&damaged, machine::HOT_PORTS, "vmre").unwrap_err().kind, Kind::NoSpace);

        let odd = vm(vec![DiskSpec::new(image::Source::new("/odd", image::Format::Raw), "odd", 4096 + 512)]);
        check_blocks(&damaged).unwrap();
        assert!(check_blocks(&odd).unwrap_err().remedy.is_some_and(|next| next.contains("--copy")));
    }
}
