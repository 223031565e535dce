//! Step 1, fabric admin on the host: the damaged VM goes onto an RG disk, and that into the repair garage. Its disks
//! go there as overlays on the originals, or, in copy mode, on the RG disk.

pub(crate) mod file;

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use garage::Mode;
use host::api::Hold;
use host::store::VmDir;
use host::{Agent, VmLock, disks, free_space};
use image::{Format, Source};
use machine::{DiskSpec, Policy, VmSpec};
use outcome::Events;
use outcome::{Context, Error, Kind, Result};
use uuid::Uuid;

use crate::api::StatusReport;
use crate::journal::{Journal, Side, Step};
use crate::{rg, status};

/// What the garage needs beyond the damaged VM's own memory: its kernel, QEMU, swtpm, the firmware.
pub(crate) const GARAGE_OVERHEAD_MIB: u32 = 512;
/// What the RG disk needs beyond the disks themselves.
const RG_OVERHEAD: u64 = 96 << 20;

pub(crate) struct Options {
    pub mode: Mode,
    pub stop: bool,
    pub restart_garage: bool,
}

/// Runs, or goes on with, an export.
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
    if agent.keys().is_local() {
        return Err(Error::new(Kind::WrongState, "an export starts on the guarded host, not inside a garage"));
    }
    if vm == garage {
        return Err(Error::new(Kind::BadInput, "a VM cannot be its own repair garage")
            .remedy("name another shielded VM with --to"));
    }
    let mut dvm = agent.lock(vm)?;
    let mut vmre = agent.lock(garage)?;
    let mut journal = resume(agent, vm, garage, options.mode)?;
    if let Some(journal) = &journal
        && journal.is_exported()
    {
        return Ok(status::describe(journal));
    }
    let (damaged, spec) = (dvm.dir().spec()?, vmre.dir().spec()?);
    check_specs(&damaged, &spec)?;
    check_damaged(&mut dvm, options.stop, &format!("--to {garage}"))?;
    check_nesting(&mut vmre, options.restart_garage)?;
    if options.mode == Mode::Overlay {
        check_ports(&damaged, vmre.dir().attached()?.len(), garage)?;
        check_blocks(&damaged)?;
    }
    check_space(&damaged, options.mode, agent.store().root())?;

    if dvm.is_running() {
        dvm.stop(false, events).await?;
    }
    let journal = match &mut journal {
        Some(journal) => journal,
        None => journal.insert(Journal::begin(
            agent.store(),
            Side::Host,
            Uuid::new_v4(),
            vm,
            Some(garage),
            None,
            options.mode,
        )?),
    };
    hold(agent, &dvm, journal, garage).await?;
    if !journal.done(Step::NestedOn) {
        nested_on(agent, &mut vmre, events).await?;
        journal.mark(Step::NestedOn)?;
    }
    let disk = journal.dir().join("rg.vhdx");
    if !journal.done(Step::RgDiskMade) {
        // Complete or not, nobody has written down that it is: a crash came in between.
        journal.clear_files()?;
        rg::create(&disk, journal.id(), dvm.dir(), options.mode, events).await?;
        journal.mark(Step::RgDiskMade)?;
    }
    events.say("attach", format!("attaching the RG disk to {garage}"));
    // The RG disk last: when the garage sees it, everything is there.
    if options.mode == Mode::Overlay {
        for overlay in rg::overlays(journal.dir(), journal.id(), &dvm.dir().spec()?) {
            vmre.attach(&overlay).await?;
        }
    }
    let size = disks::info(&disk).await?.virtual_size;
    vmre.attach(&rg_disk(&disk, size, journal.id())).await?;
    journal.mark(Step::Attached)?;
    Ok(status::describe(journal))
}

/// The VM can no longer be started or deleted.
async fn hold(agent: &Agent, dvm: &VmLock, journal: &mut Journal, place: &str) -> Result<()> {
    if !journal.done(Step::Held) {
        dvm.dir().set_hold(Some(&Hold {
            recovery_id: journal.id(),
            reason: format!("it is in recovery in {place}; reinstate or abort the recovery first"),
            may_start: false,
        }))?;
        agent.forget_offline_key(dvm.dir()).await?;
        journal.mark(Step::Held)?;
    }
    Ok(())
}

/// The RG disk as a garage gets it.
pub(crate) fn rg_disk(path: &Path, size: u64, recovery: Uuid) -> DiskSpec {
    DiskSpec::new(Source::new(path, Format::Vhdx), rg_serial(recovery), size)
}

/// The RG disk's serial number, by which it is found for detaching.
#[must_use]
pub(crate) fn rg_serial(recovery: Uuid) -> String {
    format!("rg-{}", &recovery.simple().to_string()[..16])
}

/// Takes from the garage everything that the export attached.
pub(crate) async fn detach(journal: &Journal, dvm: &VmDir, garage: &mut VmLock) -> Result<()> {
    garage.detach(&rg_serial(journal.id())).await?;
    if journal.mode() == Mode::Overlay {
        for overlay in rg::overlays(journal.dir(), journal.id(), &dvm.spec()?) {
            garage.detach(&overlay.serial).await?;
        }
    }
    Ok(())
}

fn resume(agent: &Agent, vm: &str, garage: &str, mode: Mode) -> Result<Option<Journal>> {
    let Some(journal) = Journal::open_for(agent.store(), vm)? else { return Ok(None) };
    if journal.side() == Side::Host && journal.garage() == Some(garage) {
        if journal.mode() == mode {
            return Ok(Some(journal));
        }
        let (began, flag) = match journal.mode() {
            Mode::Copy => ("as a copy", "with --copy"),
            Mode::Overlay => ("in overlay mode", "without --copy"),
        };
        return Err(Error::new(Kind::WrongState, format!("the export of {vm} began {began}"))
            .remedy(format!("go on with it {flag}, or give it up first: drydock recovery abort {vm}")));
    }
    Err(in_another(&journal))
}

/// The VM, or one of its name from another host, is in a recovery that this command does not go on with.
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

/// `to` is the command's own destination, for the remedy.
fn check_damaged(dvm: &mut VmLock, stop: bool, to: &str) -> Result<()> {
    dvm.refuse_orphan()?;
    if dvm.is_running() && !stop {
        let vm = dvm.dir().name();
        return Err(Error::new(Kind::WrongState, format!("{vm} is running"))
            .remedy(format!("stop it first, or let the export do it: drydock recovery export {vm} {to} --stop")));
    }
    Ok(())
}

/// The garage has nested virtualization, or may be given it.
pub(crate) fn check_nesting(vmre: &mut VmLock, restart: bool) -> Result<()> {
    vmre.refuse_orphan()?;
    let garage = vmre.dir().spec()?;
    if vmre.is_running() && !garage.nested && !restart {
        return Err(Error::new(Kind::WrongState, format!("{} runs without nested virtualization", garage.name))
            .remedy("stop it first, or let this command restart it: --restart-garage"));
    }
    Ok(())
}

/// The file system that holds `folder` has room for the RG disk.
fn check_space(damaged: &VmSpec, mode: Mode, folder: &Path) -> Result<()> {
    let mut needed = RG_OVERHEAD;
    for disk in damaged.disks.iter().filter(|_| mode == Mode::Copy) {
        // What it takes on the disk; asking QEMU would need a lock that a running VM holds.
        let file = std::fs::metadata(disk.source.path()).context(Kind::NotFound, || {
            format!("{}: the VM's disk cannot be looked at", disk.source.path().display())
        })?;
        needed = needed.saturating_add(file.blocks().saturating_mul(512));
    }
    let free = free_space(folder)?;
    if free < needed {
        return Err(Error::new(
            Kind::NoSpace,
            format!("the RG disk needs {} MiB and {} MiB are free", needed >> 20, free >> 20),
        )
        .remedy(format!("free space below {}", folder.display())));
    }
    Ok(())
}

/// In overlay mode each disk needs a port of the garage, and so does the RG disk.
fn check_ports(damaged: &VmSpec, attached: usize, garage: &str) -> Result<()> {
    let (needed, free) = (damaged.disks.len() + 1, machine::qemu::HOT_PORTS.saturating_sub(attached));
    if needed > free {
        return Err(Error::new(
            Kind::NoSpace,
            format!(
                "{} needs {needed} ports in {garage}, one for each disk and one more; {free} are free",
                damaged.name
            ),
        )
        .remedy("let the disks travel on one: add --copy"));
    }
    Ok(())
}

/// An overlay is shown to the garage in blocks of 4096 bytes.
fn check_blocks(damaged: &VmSpec) -> Result<()> {
    match damaged.disks.iter().find(|disk| !disk.size.is_multiple_of(DiskSpec::OPAQUE_BLOCK)) {
        None => Ok(()),
        Some(disk) => Err(Error::new(
            Kind::BadInput,
            format!("disk {} has {} bytes, which are no whole blocks of 4096", disk.serial, disk.size),
        )
        .remedy("let the disks travel on the RG disk: add --copy")),
    }
}

/// The checks that need only the two specifications.
pub(crate) fn check_specs(damaged: &VmSpec, garage: &VmSpec) -> Result<()> {
    for vm in [damaged, garage] {
        if vm.policy != Policy::Shielded {
            return Err(Error::new(Kind::Refused, format!("{} is not shielded but {}", vm.name, vm.policy))
                .remedy("an encryption-supported VM has a console on its host; recovery is for shielded ones"));
        }
    }
    let shared = damaged.nics.iter().any(|nic| garage.nics.iter().any(|other| other.switch == nic.switch));
    if !shared {
        return Err(Error::new(
            Kind::BadInput,
            format!("{} and {} are on different virtual switches", damaged.name, garage.name),
        )
        .remedy("use a garage on the same switch: inside it the repaired VM must reach its own network"));
    }
    let needed = damaged.memory_mib.saturating_add(GARAGE_OVERHEAD_MIB);
    if garage.memory_mib < needed {
        return Err(Error::new(
            Kind::NoSpace,
            format!(
                "{} has {} MiB of memory; to run {} inside it needs {needed} MiB",
                garage.name, garage.memory_mib, damaged.name
            ),
        )
        .remedy("use a garage with more memory"));
    }
    Ok(())
}

pub(crate) async fn nested_on(agent: &Agent, vmre: &mut VmLock, events: &Events) -> Result<()> {
    let mut spec = vmre.dir().spec()?;
    if spec.nested {
        return Ok(());
    }
    let was_running = vmre.is_running();
    if was_running {
        vmre.stop(false, events).await?;
    }
    spec.nested = true;
    vmre.dir().write_spec(&spec)?;
    if was_running {
        agent.start(vmre, events).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use machine::{ConsoleProfile, Firmware, NicSpec};

    fn vm(name: &str) -> VmSpec {
        VmSpec {
            id: Uuid::new_v4(),
            name: name.into(),
            memory_mib: 1024,
            vcpus: 1,
            nested: false,
            policy: Policy::Shielded,
            console_profile: ConsoleProfile::default(),
            disks: Vec::new(),
            nics: vec![NicSpec { switch: "br0".into(), mac: "52:54:00:00:00:01".into() }],
            firmware: Firmware { code: "/code".into(), vars_template: "/vars".into() },
        }
    }

    #[test]
    fn each_check_refuses_on_its_own() {
        let damaged = vm("dvm");
        let good = VmSpec { memory_mib: 1024 + GARAGE_OVERHEAD_MIB, ..vm("vmre") };
        check_specs(&damaged, &good).unwrap();

        let small = VmSpec { memory_mib: 1023 + GARAGE_OVERHEAD_MIB, ..good.clone() };
        assert_eq!(check_specs(&damaged, &small).unwrap_err().kind, Kind::NoSpace);

        let mut elsewhere = good.clone();
        elsewhere.nics[0].switch = "br1".into();
        let refused = check_specs(&damaged, &elsewhere).unwrap_err();
        assert!(refused.message.contains("different virtual switches"));

        check_ports(&damaged, 1, "vmre").unwrap();
        assert_eq!(check_ports(&damaged, machine::qemu::HOT_PORTS, "vmre").unwrap_err().kind, Kind::NoSpace);

        let mut odd = damaged.clone();
        odd.disks.push(DiskSpec::new(Source::new("/odd", Format::Raw), "odd", 4096 + 512));
        check_blocks(&damaged).unwrap();
        assert!(check_blocks(&odd).unwrap_err().remedy.is_some_and(|next| next.contains("--copy")));

        for open in [
            (VmSpec { policy: Policy::EncryptionSupported, ..damaged.clone() }, good.clone()),
            (damaged.clone(), VmSpec { policy: Policy::EncryptionSupported, ..good.clone() }),
        ] {
            assert_eq!(check_specs(&open.0, &open.1).unwrap_err().kind, Kind::Refused);
        }
    }
}
