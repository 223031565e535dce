//! What `vm show --proof` says of a running VM, against what the kernel says to somebody else; and what other users,
//! another VM's among them, can do to it.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use drydock_tests::exit::WRONG_STATE;
use drydock_tests::process::run;
use drydock_tests::world::World;
use machine::exposure::{ChannelKind, ExposureReport, ProcessExposure};

const SHORT: Duration = Duration::from_secs(60);

fn proof(world: &World, name: &str) -> Result<ExposureReport> {
    Ok(serde_json::from_value(world.admin_json(&["vm", "show", name, "--proof"])?)?)
}

#[test]
fn the_proof_says_what_is_and_others_are_kept_out() -> Result<()> {
    let world = World::new()?;
    for name in ["dvm", "other"] {
        world.create_blank(name, &["--memory", "256"])?;
    }
    let off = world.admin(&["vm", "show", "dvm", "--proof"])?;
    ensure!(off.code == WRONG_STATE, "a VM that is off has a proof: {}{}", off.stdout, off.stderr);
    for name in ["dvm", "other"] {
        world.admin(&["vm", "start", name])?.ok()?;
    }
    let (dvm, other) = (proof(&world, "dvm")?, proof(&world, "other")?);

    let all = [&dvm.qemu, &dvm.swtpm, &other.qemu, &other.swtpm];
    let users: BTreeSet<u32> = all.iter().filter_map(|process| process.uids.first().copied()).collect();
    ensure!(users.len() == 4 && !users.contains(&0), "users are shared: {users:?}");
    for process in all {
        is_real(process)?;
    }
    for statement in dvm.holds.iter().chain(&other.holds) {
        ensure!(statement.holds, "{statement}");
    }
    let text = world.admin(&["vm", "show", "dvm", "--proof"])?.ok()?.stdout;
    ensure!(text.contains("swtpm: no capability") && !text.contains("NO "), "{text}");

    let store = world.store();
    let disk = store.join("vms/dvm/disk-0.qcow2");
    let held = |process: &ProcessExposure| process.descriptors.iter().any(|d| d.target == disk.display().to_string());
    ensure!(held(&dvm.qemu) && !held(&other.qemu), "who has the disk: {:?}", dvm.qemu.descriptors);
    let number = dvm.qemu.descriptors.iter().find(|d| d.target == disk.display().to_string()).map(|d| d.number);
    let descriptor = format!("/proc/{}/fd/{}", dvm.qemu.pid, number.context("no descriptor")?);

    // What QEMU of another VM, or somebody without an account, tries once it runs other code; and the agent's user.
    let attempts = [
        format!("head -c 1 {}", disk.display()),
        format!("ls {}", store.join("vms/dvm/slots/2/vtpm").display()),
        format!("head -c 1 {descriptor}"),
        format!("ls /proc/{}/fd", dvm.qemu.pid),
        format!("head -c 0 /proc/{}/mem", dvm.qemu.pid),
        format!("head -c 0 /proc/{}/mem", dvm.swtpm.pid),
        format!("kill -0 {}", dvm.swtpm.pid),
    ];
    let intruders = [other.qemu.uids[0], other.swtpm.uids[0], dvm.qemu.uids[0], 65534];
    for attempt in &attempts {
        for user in intruders {
            // A process of QEMU's own user is QEMU; what it must not reach is its swtpm and the store's paths.
            let own = user == dvm.qemu.uids[0] && attempt.contains(&format!("/proc/{}/", dvm.qemu.pid));
            if own {
                continue;
            }
            let id = user.to_string();
            let mut command = Command::new("setpriv");
            command.args(["--reuid", &id, "--regid", &id, "--clear-groups", "sh", "-c", attempt]);
            ensure!(run(&mut command, b"", SHORT)?.code != 0, "user {user} can: {attempt}");
        }
        // The control: each attempt is sound.
        run(Command::new("sh").args(["-c", attempt]), b"", SHORT)?.ok()?;
    }
    for name in ["dvm", "other"] {
        world.admin(&["vm", "stop", name, "--force"])?.ok()?;
    }
    world.close()
}

/// The proof of a process says the same as `ss`, the links in its `fd` and its `status`.
fn is_real(process: &ProcessExposure) -> Result<()> {
    let folder = format!("/proc/{}", process.pid);
    let status = fs::read_to_string(format!("{folder}/status"))?;
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        line.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    let uids: Vec<String> = process.uids.iter().map(u32::to_string).collect();
    ensure!(field("Uid:") == uids, "users: {:?} and {uids:?}", field("Uid:"));
    ensure!(field("Seccomp:") == ["2"] && field("NoNewPrivs:") == ["1"], "{status}");
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        ensure!(field(set) == ["0000000000000000"], "{set} {:?}", field(set));
    }
    ensure!(fs::read_link(format!("{folder}/exe"))? == process.program);
    ensure!(fs::read_link(format!("{folder}/ns/mnt"))? != fs::read_link("/proc/self/ns/mnt")?, "no view of its own");
    for hidden in ["tmp", "var", "root", "home"] {
        let seen = fs::read_dir(format!("{folder}/root/{hidden}"))?.count();
        ensure!(seen == 0, "it sees {seen} files in /{hidden}");
    }
    let digest = run(Command::new("sha256sum").arg(&process.program), b"", SHORT)?.ok()?.stdout;
    ensure!(digest.split_whitespace().next() == process.program_sha256.as_deref(), "{digest}");

    let mut open = BTreeSet::new();
    for entry in fs::read_dir(format!("{folder}/fd"))? {
        let name = entry?.file_name();
        open.insert(name.to_str().and_then(|name| name.parse::<u32>().ok()).context("not a number")?);
    }
    let told: BTreeSet<u32> = process.descriptors.iter().map(|descriptor| descriptor.number).collect();
    ensure!(open == told, "descriptors: {open:?} and {told:?}");
    for descriptor in process.descriptors.iter().filter(|d| d.kind == ChannelKind::File) {
        let file = fs::metadata(format!("{folder}/fd/{}", descriptor.number))?;
        ensure!(file.ino() == fs::metadata(&descriptor.target)?.ino(), "{}", descriptor.target);
    }
    let mut ss = Command::new("nsenter");
    ss.args(["--net", "-t", &process.pid.to_string(), "ss", "-H", "-a", "-n", "-p"]);
    let sockets = run(&mut ss, b"", SHORT)?.ok()?.stdout;
    let mark = format!("pid={},", process.pid);
    let own: Vec<&str> = sockets.lines().filter(|line| line.contains(&mark)).collect();
    let unnamed = process.descriptors.iter().filter(|d| d.kind == ChannelKind::UnnamedSocket).count();
    ensure!(own.len() == unnamed && unnamed > 0, "{unnamed} sockets, ss says: {own:?}");
    ensure!(own.iter().all(|line| line.starts_with("u_str") && line.contains("ESTAB")), "{own:?}");
    Ok(())
}
