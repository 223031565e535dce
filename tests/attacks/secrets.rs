//! Whoever can read the host: its disk, its processes' arguments, environments and descriptors, its logs. Not the memory
//! of root's processes: see *Not protected*.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use drydock_tests::process::run as run_program;
use drydock_tests::world::World;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

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
        name: "a_crash_leaves_no_core",
        attacker: "a fabric admin who makes processes crash, and whoever reads the dumps",
        holds: "kill(1) and the kernel's core_pattern: to a file, to a program",
        tries: "ends the agent, swtpm and QEMU of a running VM with SIGSEGV, SIGABRT and SIGQUIT, under both",
        must: "nothing is dumped",
        control: "any other process is, and to a program even one whose limit is 0",
        run: crashes,
    },
    Row {
        name: "the_agent_has_no_right_that_it_does_not_need",
        attacker: "who took over an agent",
        holds: "the agent's rights, on a guarded host and in local mode",
        tries: "makes a device node, opens a raw socket, changes its root",
        must: "every thread has the documented capabilities only and can gain none; each attempt is refused",
        control: "root without the agent's restriction has more, and succeeds",
        run: rights,
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
        "secrets",
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
        ensure!(core.split_whitespace().nth(4) == Some("1"), "core dumps of {process}: {core}");
    }
    let status = fs::read_to_string(format!("/proc/{agent}/status"))?;
    let locked = status.lines().find(|line| line.starts_with("VmLck:")).context("no VmLck")?;
    ensure!(locked.split_whitespace().nth(1) != Some("0"), "the agent's memory can be swapped: {locked}");
    absent_in_temp(&needles)?;
    needles.control()
}

fn crashes(world: &mut World) -> Result<()> {
    // Somewhere that every user can write to, as a dump is written by who dies.
    let dumps = tempfile::Builder::new().prefix("drydock-dumps-").tempdir_in("/var/tmp")?;
    fs::set_permissions(dumps.path(), fs::Permissions::from_mode(0o777))?;
    let program = dumps.path().join("take");
    fs::write(&program, format!("#!/bin/sh\ncat > {}/core.$1\n", dumps.path().display()))?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    for pattern in [format!("{}/core.%p", dumps.path().display()), format!("|{} %p", program.display())] {
        let to_program = pattern.starts_with('|');
        let _restored = CorePattern::set(&pattern)?;
        for signal in [Signal::SEGV, Signal::ABORT, Signal::QUIT] {
            let qemu_pid = qemu(world)?;
            let qemu = process(qemu_pid)?;
            let swtpm = process(swtpm_beside(world, qemu_pid)?)?;
            let agent = process(u64::from(world.agent_pid()?))?;
            // The agent first: it would end the VM in order.
            for victim in [agent, swtpm, qemu] {
                crash(victim, signal)?;
            }
            world.agent_died()?;
            let left = dumped(dumps.path())?;
            ensure!(left.is_empty(), "{signal:?} under {pattern} left {left:?} of {agent:?}, {swtpm:?} and {qemu:?}");
            world.start_agent_with(&[("DRYDOCK_LOG", "trace")])?;
            world.admin(&["vm", "start", "dvm"])?.ok()?;
        }
        for (limit, expected) in [("unlimited", 1), ("0", usize::from(to_program))] {
            let mut plain = Command::new("sh");
            plain.args(["-c", &format!("ulimit -c {limit} || exit 0; kill -SEGV $$")]);
            ensure!(run_program(&mut plain, b"", SHORT)?.code != 0, "the control did not crash");
            let left = dumped(dumps.path())?;
            ensure!(left.len() == expected, "the control, limit {limit} under {pattern}: {left:?}");
            for (path, bytes) in left {
                ensure!(bytes > 0, "the control: nothing is in {}", path.display());
                fs::remove_file(path)?;
            }
        }
    }
    Ok(())
}

/// Where the kernel puts core dumps, as it was before when dropped.
struct CorePattern(String);

impl CorePattern {
    const FILE: &str = "/proc/sys/kernel/core_pattern";

    fn set(pattern: &str) -> Result<Self> {
        let before = fs::read_to_string(Self::FILE)?;
        fs::write(Self::FILE, pattern).with_context(|| format!("{} must be open to this test", Self::FILE))?;
        Ok(Self(before))
    }
}

impl Drop for CorePattern {
    fn drop(&mut self) {
        if let Err(error) = fs::write(Self::FILE, &self.0) {
            println!("{} is not restored to {}: {error}", Self::FILE, self.0);
        }
    }
}

fn dumped(folder: &Path) -> Result<Vec<(PathBuf, u64)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)?.flatten() {
        if entry.file_name().to_string_lossy().starts_with("core") {
            found.push((entry.path(), entry.metadata()?.len()));
        }
    }
    Ok(found)
}

fn process(pid: u64) -> Result<Pid> {
    i32::try_from(pid).ok().and_then(Pid::from_raw).context("no process id")
}

/// As docs/hardening.md has them, and their numbers in capability.h.
const RIGHTS: [(&str, u32); 10] = [
    ("chown", 0),
    ("dac_override", 1),
    ("kill", 5),
    ("setgid", 6),
    ("setuid", 7),
    ("setpcap", 8),
    ("net_admin", 12),
    ("ipc_lock", 14),
    ("sys_ptrace", 19),
    ("sys_admin", 21),
];
/// Those of an agent in local mode beside them.
const LOCAL_RIGHTS: [(&str, u32); 2] = [("fowner", 3), ("fsetid", 4)];

fn rights(world: &mut World) -> Result<()> {
    let local: Vec<(&str, u32)> = RIGHTS.iter().chain(&LOCAL_RIGHTS).copied().collect();
    has_only(world.agent_pid()?, &RIGHTS)?;
    world.admin(&["vm", "stop", "dvm", "--force"])?.ok()?;
    world.kill_agent()?;
    world.start_local_agent()?;
    let checked = has_only(world.agent_pid()?, &local);
    world.kill_agent()?;
    fs::remove_file(world.store().join("guardians/tenant.pem"))?;
    world.start_agent_with(&[("DRYDOCK_LOG", "trace")])?;
    world.admin(&["vm", "start", "dvm"])?.ok()?;
    checked?;
    ensure!(has_only(std::process::id(), &local).is_err(), "the control: this test has no more than an agent");

    let folder = tempfile::tempdir()?;
    let names: String = local.iter().map(|(name, _)| format!(",+{name}")).collect();
    let bounding = format!("--bounding-set=-all{names}");
    for attempt in [
        "mknod node b 8 0",
        "python3 -c 'import socket; socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)'",
        "chroot / true",
    ] {
        let mut taken_over = Command::new("setpriv");
        taken_over.args(["--no-new-privs", &bounding, "sh", "-c", attempt]).current_dir(folder.path());
        ensure!(run_program(&mut taken_over, b"", SHORT)?.code != 0, "the agent's rights suffice for: {attempt}");
        let mut root = Command::new("sh");
        root.args(["-c", attempt]).current_dir(folder.path());
        run_program(&mut root, b"", SHORT)?.ok().with_context(|| format!("the control: {attempt}"))?;
    }
    Ok(())
}

/// That no thread has a capability beside these, can gain one, or has fewer.
fn has_only(process: u32, rights: &[(&str, u32)]) -> Result<()> {
    let expected = rights.iter().fold(0u64, |all, (_, number)| all | 1 << number);
    let mut threads = 0;
    for thread in fs::read_dir(format!("/proc/{process}/task"))?.flatten() {
        let Ok(status) = fs::read_to_string(thread.path().join("status")) else { continue };
        let field = |name: &str| -> Result<u64> {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).context("no such field")?;
            Ok(u64::from_str_radix(line.trim_start_matches(':').trim(), 16)?)
        };
        for (name, value) in
            [("CapBnd", expected), ("CapPrm", expected), ("CapEff", expected), ("CapInh", 0), ("CapAmb", 0)]
        {
            ensure!(field(name)? == value, "{name} of {process} is {:x}, not {value:x}", field(name)?);
        }
        ensure!(field("NoNewPrivs")? == 1, "{process} can gain privileges");
        threads += 1;
    }
    ensure!(threads > 0, "{process} has no threads");
    Ok(())
}

/// Until it has ended: the kernel has finished a dump before, and Rust's runtime passes over the first SIGSEGV that
/// comes from outside. How long an end takes depends on what else the machine does.
fn crash(victim: Pid, signal: Signal) -> Result<()> {
    let descriptor = pidfd_open(victim, PidfdFlags::empty())?;
    for seconds in [1, 60] {
        pidfd_send_signal(&descriptor, signal)?;
        let patience = Timespec { tv_sec: seconds, tv_nsec: 0 };
        if poll(&mut [PollFd::new(&descriptor, PollFlags::IN)], Some(&patience))? > 0 {
            return Ok(());
        }
    }
    bail!("{victim:?} lives on after {signal:?}")
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
    fs::set_permissions(&open, fs::Permissions::from_mode(0o644))?;
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
