//! Attempts, each made as its attacker would make it, with a control that shows that the attempt itself was sound.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use base64::prelude::{BASE64_STANDARD, Engine as _};
use drydock_tests::images;
use drydock_tests::process::{Finished, run};
use drydock_tests::tenant::owner;
use drydock_tests::world::{DVM_ADDRESS, World, drydock, path};
use key_protector::{Protector, TransportKey};
use time::OffsetDateTime;

const SHORT: Duration = Duration::from_secs(120);
const BOOT: Duration = Duration::from_secs(300);
/// Users and groups of no account.
const NOBODY: &str = "65534";

/// Another user of the host has the program and knows every path.
#[test]
fn local_users_reach_neither_agent_nor_store() -> Result<()> {
    let world = World::new()?;
    world.create_blank("dvm", &["--memory", "256"])?;
    // Somewhere that everybody can enter, up to the doors that are tested.
    let public = tempfile::Builder::new().prefix("drydock-attack-").tempdir_in("/var/tmp")?;
    open_to_all(public.path(), 0o755)?;
    let program = public.path().join("drydock");
    fs::copy(drydock()?, &program)?;
    let socket = world.socket();
    let as_nobody = |script: String| -> Result<Finished> {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups", "sh", "-c", &script]);
        run(&mut command, b"", SHORT)
    };
    let ask = format!("{} vm list --socket {}", program.display(), socket.display());
    let refused = as_nobody(ask.clone())?;
    ensure!(refused.code == 11, "another user reaches the socket: {} {}", refused.code, refused.stdout);
    let record = world.store().join("vms/dvm/slots/1/record.sealed");
    let read = as_nobody(format!("cat {}", record.display()))?;
    ensure!(read.code != 0, "another user reads the store");

    // An admin opened every door on the way: the agent still asks who is there.
    let mut opened = Vec::new();
    for door in socket.ancestors().skip(1).take_while(|door| door.parent().is_some()) {
        opened.push((door.to_path_buf(), fs::metadata(door)?.permissions()));
        open_to_all(door, 0o755)?;
    }
    open_to_all(&socket, 0o666)?;
    let refused = as_nobody(ask);
    for (door, before) in opened {
        fs::set_permissions(door, before)?;
    }
    let refused = refused?;
    ensure!(refused.code == 3, "exit code {}: {}{}", refused.code, refused.stdout, refused.stderr);
    ensure!(refused.stderr.contains("65534 may not talk"), "{}", refused.stderr);
    // The control: the same program, by the agent's own user.
    let mut command = Command::new(&program);
    command.args(["vm", "list", "--socket"]).arg(&socket);
    ensure!(run(&mut command, b"", SHORT)?.ok()?.stdout.contains("dvm"), "the control");
    world.close()
}

fn open_to_all(path: &Path, mode: u32) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).with_context(|| format!("{}", path.display()))
}

/// Somebody reads everything on the host's disk, all arguments and environments, and the agent's most talkative log.
#[test]
fn keys_are_found_nowhere() -> Result<()> {
    let mut world = World::new()?;
    world.create_blank("dvm", &["--memory", "256"])?;
    world.kill_agent()?;
    world.start_agent_with(&[("DRYDOCK_LOG", "trace")])?;
    world.admin(&["vm", "start", "dvm"])?.ok()?;
    let pid = world.admin_json(&["vm", "show", "dvm"])?["pid"].as_u64().context("no pid")?;

    // The owner can open every protector; so the test knows what to look for.
    let mut needles = Vec::new();
    for slot in fs::read_dir(world.store().join("vms/dvm/slots"))? {
        let protector = Protector::parse(&fs::read(slot?.path().join("protector.xml"))?)?;
        let key = protector.open(&owner(&world)?, OffsetDateTime::now_utc())?;
        needles.extend(spellings(&key));
    }
    ensure!(needles.len() >= 20, "two slots, five keys each: {}", needles.len());
    let found = |place: &str, bytes: &[u8]| -> Result<()> {
        ensure!(!needles.iter().any(|n| contains(bytes, n)), "a key lies open in {place}");
        Ok(())
    };
    let log = world.agent_log();
    ensure!(log.lines().count() > 5, "the log says nothing, so this proves nothing: {log}");
    found("the agent's log", log.as_bytes())?;
    for file in files(&world.fabric("store"))? {
        found(&file.display().to_string(), &fs::read(&file)?)?;
    }
    let agent = u64::from(world.agent_pid()?);
    for process in [pid, agent] {
        for what in ["cmdline", "environ"] {
            let place = format!("/proc/{process}/{what}");
            found(&place, &fs::read(&place)?)?;
        }
        let limits = fs::read_to_string(format!("/proc/{process}/limits"))?;
        let core = limits.lines().find(|line| line.contains("core file size")).context("no limit")?;
        ensure!(core.split_whitespace().nth(4) == Some("0"), "core dumps of {process}: {core}");
    }
    let status = fs::read_to_string(format!("/proc/{agent}/status"))?;
    let locked = status.lines().find(|line| line.starts_with("VmLck:")).context("no VmLck")?;
    ensure!(locked.split_whitespace().nth(1) != Some("0"), "the agent's memory can be swapped: {locked}");
    for entry in fs::read_dir(std::env::temp_dir())?.flatten() {
        if entry.file_type()?.is_file() && entry.metadata()?.len() < 1 << 24 {
            found(&entry.path().display().to_string(), &fs::read(entry.path())?)?;
        }
    }
    // The control: what is searched for is found where it is.
    let planted = needles.first().context("no key")?;
    ensure!(found("the control", &[b"xx", planted.as_slice(), b"yy"].concat()).is_err(), "nothing is ever found");
    world.admin(&["vm", "stop", "dvm", "--force"])?.ok()?;
    world.close()
}

/// A key and those made from it, raw and as text.
fn spellings(key: &TransportKey) -> Vec<Vec<u8>> {
    let derived = [machine::record::LABEL, machine::state::VARS_LABEL, "drydock/vtpm/v1", "transport-key-signature"];
    let mut raw = vec![key.expose().to_vec()];
    raw.extend(derived.iter().map(|label| key.derive(label).expose().to_vec()));
    raw.iter()
        .flat_map(|bytes| {
            let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            let list = format!("{bytes:?}").trim_matches(['[', ']']).to_owned();
            [
                bytes.clone(),
                hex.clone().into_bytes(),
                hex.to_uppercase().into_bytes(),
                BASE64_STANDARD.encode(bytes).into_bytes(),
                list.into_bytes(),
            ]
        })
        .collect()
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

fn files(root: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(root)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.extend(files(&entry.path())?);
        } else if entry.file_type()?.is_file() {
            found.push(entry.path());
        }
    }
    Ok(found)
}

/// The fabric admin changes what the VM boots while it is off: its GRUB menu asks for a root shell. And reads its disk.
#[test]
fn another_boot_chain_does_not_open_the_disk() -> Result<()> {
    let world = World::new()?;
    let image = images::folder()?.join("guest.raw");
    // What can be read before the VM's first boot, and must not be afterwards.
    let marker = b"/etc/systemd/system/ssh-host-keys.service";
    ensure!(contains(&fs::read(&image)?, b"ssh-keygen -q -t ed25519"), "the control: the image is readable");
    let disk = world.provision_dvm(&image)?;
    world.create_vm("dvm", &disk, &["--memory", "768"])?;
    world.admin(&["vm", "start", "dvm"])?.ok()?;
    let ssh = world.ssh(DVM_ADDRESS)?;
    ssh.wait(BOOT)?;
    ssh.ok("echo only-the-owner-knows > /root/secret; sync", SHORT)?;
    world.admin(&["vm", "stop", "dvm"])?.ok()?;

    let qcow2 = world.store().join("vms/dvm/disk-0.qcow2");
    let (kept, raw) = (world.fabric("kept.qcow2"), world.fabric("stolen.raw"));
    fs::copy(&qcow2, &kept)?;
    convert(&qcow2, "qcow2", &raw, "raw")?;
    let bytes = fs::read(&raw)?;
    for secret in [b"only-the-owner-knows".as_slice(), b"ssh-keygen -q -t ed25519", marker, b"root:x:0:0"] {
        ensure!(!contains(&bytes, secret), "readable offline: {}", String::from_utf8_lossy(secret));
    }
    drop(bytes);

    let esp = format!("{}@@1M", raw.display());
    let grub = world.fabric("grub.cfg");
    mtools(&["mcopy", "-n", "-i", &esp, "::/EFI/debian/grub.cfg", &path(&grub)])?;
    let text = fs::read_to_string(&grub)?;
    ensure!(text.contains("root=/dev/mapper/root"), "another GRUB menu than expected: {text}");
    fs::write(&grub, text.replace("root=/dev/mapper/root", "root=/dev/mapper/root init=/bin/sh"))?;
    mtools(&["mcopy", "-o", "-i", &esp, &path(&grub), "::/EFI/debian/grub.cfg"])?;
    convert(&raw, "raw", &qcow2, "qcow2")?;
    world.admin(&["vm", "start", "dvm"])?.ok()?;
    let end = Instant::now() + BOOT;
    while world.admin_json(&["vm", "show", "dvm"])?["state"] != "off" {
        if Instant::now() > end {
            bail!("with another GRUB menu the VM runs on");
        }
        ensure!(!ssh.reachable(), "with another GRUB menu the VM is up");
    }
    // The control: its own boot chain again.
    fs::copy(&kept, &qcow2)?;
    world.admin(&["vm", "start", "dvm"])?.ok()?;
    ssh.wait(BOOT)?;
    ensure!(ssh.ok("cat /root/secret", SHORT)?.trim() == "only-the-owner-knows", "the control");
    world.admin(&["vm", "stop", "dvm"])?.ok()?;
    world.close()
}

fn mtools(args: &[&str]) -> Result<()> {
    let mut command = Command::new(args[0]);
    command.env("MTOOLS_SKIP_CHECK", "1").args(&args[1..]);
    run(&mut command, b"", SHORT)?.ok().map(drop)
}

fn convert(from: &Path, from_format: &str, to: &Path, to_format: &str) -> Result<()> {
    let mut command = Command::new("qemu-img");
    command.args(["convert", "-f", from_format, "-O", to_format]).arg(from).arg(to);
    run(&mut command, b"", SHORT)?.ok().map(drop)
}
