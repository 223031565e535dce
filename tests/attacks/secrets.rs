//! Whoever can read the host: its disk, its processes' arguments, environments and descriptors, its logs. Not the memory
//! of root's processes: see *Not protected*.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use drydock_tests::world::World;

use crate::suite::{Row, Suite};
use drydock_tests::search::{Needles, files};

const SHORT: Duration = Duration::from_secs(120);

const ROWS: &[Row<World>] = &[
    Row {
        name: "keys_are_found_nowhere",
        attacker: "whoever reads a host's disk, processes and logs",
        holds: "every file of the fabric, all arguments and environments, the agent's log at its most talkative",
        tries: "searches for the transport keys of a running VM and all that is derived from them, in five spellings",
        must: "nothing is found; no core dump can be made, the agent's memory is not swapped",
        control: "the same search finds a key that was planted",
        run: found_nowhere,
    },
    Row {
        name: "descriptors_of_a_vm_are_its_own",
        attacker: "another process on the host",
        holds: "the list of what QEMU, swtpm and the agent have open",
        tries: "opens one of these files or sockets by its name",
        must: "every file is closed to other users, no socket but the agent's has a name",
        control: "a file that is open to all is noticed",
        run: descriptors,
    },
    Row {
        name: "a_start_that_was_killed_leaves_no_key",
        attacker: "whoever reads the disk after a crash",
        holds: "the store and /tmp after the agent was killed at every point of a start",
        tries: "searches for keys and for files that should not be there",
        must: "no key, no file but the known ones; the VM starts again",
        control: "the same search finds a key that was planted; the agent really died at each point",
        run: killed_starts,
    },
];

pub(crate) fn run(suite: &mut Suite) {
    suite.group(
        ROWS,
        || {
            let mut world = World::new()?;
            world.create_blank("dvm", &["--memory", "256"])?;
            world.kill_agent()?;
            world.start_agent_with(&[("DRYDOCK_LOG", "trace")])?;
            world.admin(&["vm", "start", "dvm"])?.ok()?;
            Ok(world)
        },
        World::close,
    );
}

fn qemu(world: &World) -> Result<u64> {
    world.admin_json(&["vm", "show", "dvm"])?["pid"].as_u64().context("no pid")
}

fn found_nowhere(world: &mut World) -> Result<()> {
    let mut needles = Needles::default();
    needles.add_vm(world, "dvm")?;
    ensure!(needles.keys() >= 12, "two slots, six keys each: {}", needles.keys());
    let log = world.agent_log();
    ensure!(log.lines().count() > 5, "the log says nothing, so this proves nothing: {log}");
    needles.absent("the agent's log", log.as_bytes())?;
    needles.absent_below(&world.fabric("store"))?;
    let agent = u64::from(world.agent_pid()?);
    for process in [qemu(world)?, agent] {
        for what in ["cmdline", "environ"] {
            let place = format!("/proc/{process}/{what}");
            needles.absent(&place, &fs::read(&place)?)?;
        }
        let limits = fs::read_to_string(format!("/proc/{process}/limits"))?;
        let core = limits.lines().find(|line| line.contains("core file size")).context("no limit")?;
        ensure!(core.split_whitespace().nth(4) == Some("0"), "core dumps of {process}: {core}");
    }
    let status = fs::read_to_string(format!("/proc/{agent}/status"))?;
    let locked = status.lines().find(|line| line.starts_with("VmLck:")).context("no VmLck")?;
    ensure!(locked.split_whitespace().nth(1) != Some("0"), "the agent's memory can be swapped: {locked}");
    absent_in_temp(&needles)?;
    needles.control()
}

/// Files that lie in the folder for temporary ones; others come and go there.
fn absent_in_temp(needles: &Needles) -> Result<()> {
    for entry in fs::read_dir(std::env::temp_dir())?.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_file())
            && entry.metadata().is_ok_and(|meta| meta.len() < 1 << 24)
            && let Ok(bytes) = fs::read(entry.path())
        {
            needles.absent(&entry.path().display().to_string(), &bytes)?;
        }
    }
    Ok(())
}

fn descriptors(world: &mut World) -> Result<()> {
    let qemu = qemu(world)?;
    let mut seen = 0;
    for process in [qemu, swtpm_beside(world, qemu)?, u64::from(world.agent_pid()?)] {
        for entry in fs::read_dir(format!("/proc/{process}/fd"))? {
            seen += usize::from(is_closed_to_others(&entry?.path())?);
        }
    }
    ensure!(seen >= 3, "at least disk, firmware variables and a log: {seen}");
    let open = world.fabric("open-to-all");
    fs::write(&open, "x")?;
    fs::set_permissions(&open, std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
    ensure!(is_closed_to_others(&open).is_err(), "the control");
    Ok(())
}

/// The swtpm that works in the VM's store.
fn swtpm_beside(world: &World, qemu: u64) -> Result<u64> {
    let vtpms = world.store().join("vms/dvm/slots");
    let mut found = fs::read_dir("/proc")?.flatten().filter_map(|entry| {
        let pid: u64 = entry.file_name().to_str()?.parse().ok()?;
        let folder = fs::read_link(entry.path().join("cwd")).ok()?;
        (pid != qemu && folder.starts_with(&vtpms)).then_some(pid)
    });
    found.next().context("no swtpm")
}

/// True for a file of the VM's, false for what is no file or the distribution's.
fn is_closed_to_others(descriptor: &Path) -> Result<bool> {
    // One that has been closed since is nobody's any more.
    let (Ok(name), Ok(meta)) =
        (fs::read_link(descriptor).or_else(|_| descriptor.canonicalize()), fs::metadata(descriptor))
    else {
        return Ok(false);
    };
    let kind = meta.file_type();
    if kind.is_socket() || kind.is_fifo() || kind.is_char_device() || !kind.is_file() || name.starts_with("/usr") {
        return Ok(false);
    }
    // Nobody can name an anonymous file.
    if name.to_string_lossy().ends_with(" (deleted)") || name.starts_with("/proc") || name.starts_with("/memfd:") {
        return Ok(false);
    }
    ensure!(meta.mode() & 0o077 == 0, "others can open {} (mode {:o})", name.display(), meta.mode() & 0o777);
    Ok(true)
}

/// What a start makes, in the order in which it appears; `N` is the new slot.
const POINTS: [&str; 9] = [
    "slots/N",
    "slots/N/vars.luks",
    "slots/N/vtpm",
    "slots/N/vtpm/tpm2-00.permall",
    "slots/N/record.sealed",
    "slots/N/protector.xml",
    "current is N",
    "QEMU runs",
    "the answer",
];
const KNOWN: [&str; 10] = [
    "vm.json",
    "current",
    "disk-0.qcow2",
    "protector.xml",
    "record.sealed",
    "vars.luks",
    "tpm2-00.permall",
    ".lock",
    "qemu.log",
    "swtpm.log",
];

fn killed_starts(world: &mut World) -> Result<()> {
    world.admin(&["vm", "stop", "dvm", "--force"])?.ok()?;
    let mut needles = Needles::default();
    for point in POINTS {
        let vm = world.store().join("vms/dvm");
        let next = fs::read_to_string(vm.join("current"))?.trim().parse::<u64>()? + 1;
        needles.add_vm(world, "dvm")?;
        let mut client = world.admin_command(&["vm", "start", "dvm"])?;
        let mut client = client.process_group(0).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let reached = wait_for(world, &vm, point, next, &mut client);
        world.kill_agent()?;
        client.wait()?;
        reached?;
        needles.add_vm(world, "dvm")?;
        needles.absent_below(&world.store()).with_context(|| format!("killed at: {point}"))?;
        absent_in_temp(&needles)?;
        for file in files(&vm)?.into_iter().chain(files(&world.store().join("logs"))?) {
            let name = file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let known = KNOWN.contains(&name.trim_end_matches(".partial"));
            ensure!(known, "killed at {point}, the start left {}", file.display());
        }
        world.start_agent_with(&[("DRYDOCK_LOG", "trace")])?;
        world.admin(&["vm", "stop", "dvm", "--force"])?.ok()?;
        println!("  killed at {point}");
    }
    ensure!(needles.keys() > 2 * POINTS.len(), "too few keys were looked for: {}", needles.keys());
    world.admin(&["vm", "start", "dvm"])?.ok()?;
    world.admin(&["vm", "stop", "dvm", "--force"])?.ok()?;
    needles.control()
}

/// Watches until the start has come this far. Nothing tells of it: the point is that nobody was asked.
fn wait_for(world: &World, vm: &Path, point: &str, next: u64, client: &mut std::process::Child) -> Result<()> {
    let end = Instant::now() + SHORT;
    let there = |client: &mut std::process::Child| -> Result<bool> {
        Ok(match point {
            "current is N" => fs::read_to_string(vm.join("current"))?.trim() == next.to_string(),
            "QEMU runs" => {
                world.store().join("logs/dvm/qemu.log").exists()
                    && fs::read_to_string(vm.join("current"))?.trim() == next.to_string()
            }
            "the answer" => client.try_wait()?.is_some(),
            file => vm.join(file.replace('N', &next.to_string())).exists(),
        })
    };
    while !there(client)? {
        ensure!(Instant::now() < end, "the start never came to: {point}");
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}
