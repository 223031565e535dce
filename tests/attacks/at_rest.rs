//! A thief with the host's disks and backups, and a fabric admin with time while the VM is off.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use drydock_tests::console::Console;
use drydock_tests::exit::REFUSED;
use drydock_tests::images;
use drydock_tests::process::run as run_program;
use drydock_tests::ssh::Ssh;
use drydock_tests::tenant::owner;
use drydock_tests::world::{DVM_ADDRESS, World, path};
use key_protector::{Protector, TransportKey};
use time::OffsetDateTime;

use crate::suite::{Row, Suite};
use drydock_tests::search::contains;

const SHORT: Duration = Duration::from_secs(120);
const BOOT: Duration = Duration::from_secs(600);
const SECTOR: usize = 512;

/// A guest of its own owner's, provisioned, started once, switched off; and what is kept of its disk and state.
pub(crate) struct Guest {
    world: World,
    ssh: Ssh,
}

const GUEST: &[Row<Guest>] = &[
    Row {
        name: "the_disk_is_unreadable",
        attacker: "a thief",
        holds: "the disk image of a VM that is off",
        tries: "reads it all: what the owner wrote, and files that every such guest has",
        must: "nothing of it is found",
        control: "the same search finds those files in the image from before the first boot",
        run: unreadable_disk,
    },
    Row {
        name: "another_boot_chain_does_not_open_the_disk",
        attacker: "fabric admin",
        holds: "the VM's disk while it is off, ESP included",
        tries: "a GRUB menu that asks for a root shell",
        must: "the vTPM keeps the key: the guest switches off, its disk shut",
        control: "with its own menu it boots and shows the owner's secret",
        run: another_menu,
    },
    Row {
        name: "destroyed_variables_open_no_disk",
        attacker: "fabric admin",
        holds: "the slot in force while the VM is off; where the firmware keeps its Secure Boot keys",
        tries: "overwrites the encrypted sectors of those keys, so that the firmware begins with Secure Boot off",
        must: "the guest switches off, its disk shut",
        control: "with its own variables it boots",
        run: destroyed_variables,
    },
    Row {
        name: "a_stolen_disk_stays_shut_in_a_vm_with_a_console",
        attacker: "fabric admin",
        holds: "the VM's disk; may make VMs of their own with any policy",
        tries: "gives the disk to a VM with a console and another vTPM, and watches it boot",
        must: "the guest says that the vTPM did not release the key, and switches off",
        control: "that console shows the guest's boot up to there",
        run: stolen_disk,
    },
];

const BLANK: &[Row<World>] = &[
    Row {
        name: "record_and_variables_at_rest_are_unreadable",
        attacker: "a thief",
        holds: "a slot of the store",
        tries: "searches record and UEFI variables for what is surely in them",
        must: "neither is found",
        control: "both are found once opened with the owner's key",
        run: unreadable_state,
    },
    Row {
        name: "state_that_the_attacker_made_does_not_start",
        attacker: "fabric admin",
        holds: "the store while the VM is off, the firmware's templates, a VM of their own",
        tries: "UEFI variables of their own: plain, under a key of theirs, with Secure Boot or without; another VM's \
                variables or vTPM; none",
        must: "the VM does not start, and is as it was",
        control: "the VM's own state starts",
        run: foreign_state,
    },
    Row {
        name: "firmware_of_the_attacker_does_not_start",
        attacker: "fabric admin",
        holds: "vm.json, and a firmware file of their own that would claim any boot to the vTPM",
        tries: "names it in vm.json",
        must: "refused before any key is asked for",
        control: "the same file, named as the distribution's is, is a firmware that starts",
        run: foreign_firmware,
    },
];

pub(crate) fn run(suite: &mut Suite) {
    suite.group(
        "at_rest_blank",
        BLANK,
        || {
            let world = World::new()?;
            world.create_blank("dvm", &["--memory", "256"])?;
            world.create_blank("other", &["--memory", "256", "--policy", "encryption-supported"])?;
            Ok(world)
        },
        World::close,
    );
    suite.group("at_rest_guest", GUEST, Guest::new, |guest| guest.world.close());
}

/// The transport key of the VM's slot in force, which its owner can open.
fn transport_key(world: &World, slot: &Path) -> Result<(Protector, TransportKey)> {
    let protector = Protector::parse(&fs::read(slot.join("protector.xml"))?)?;
    let key = protector.open(&owner(world)?, OffsetDateTime::now_utc())?;
    Ok((protector, key))
}

fn unreadable_state(world: &mut World) -> Result<()> {
    let slot = world.store().join("vms/dvm/slots/1");
    let (record, vars) = (fs::read(slot.join("record.sealed"))?, fs::read(slot.join("vars.luks"))?);
    ensure!(!contains(&record, b"shielded") && !contains(&record, b"52:54:00"), "the record is readable");
    // The names of the variable and of its owner, in UTF-16 as UEFI has it.
    let marker: Vec<u8> = "SecureBootEnable".encode_utf16().flat_map(u16::to_le_bytes).collect();
    ensure!(!contains(&vars, &marker), "the UEFI variables are readable");

    let (protector, key) = transport_key(world, &slot)?;
    let id = world.admin_json(&["vm", "show", "dvm"])?["id"].as_str().context("no id")?.parse()?;
    let opened = machine::slot::open_record(&slot, &key, id, &protector.digest())?;
    let opened = serde_json::to_vec(&opened)?;
    ensure!(contains(&opened, b"shielded") && contains(&opened, b"52:54:00"), "the control: the record");
    let plain = world.fabric("vars.plain");
    let script = format!(
        "qemu-img convert --object secret,id=k,file=/dev/stdin -O raw \
         --image-opts driver=luks,key-secret=k,file.driver=file,file.filename={} {}",
        path(&slot.join("vars.luks")),
        path(&plain)
    );
    let secret = key.derive(machine::slot::VARS_LABEL).hex();
    run_program(Command::new("sh").args(["-c", &script]), secret.as_bytes(), SHORT)?.ok()?;
    ensure!(contains(&fs::read(&plain)?, &marker), "the control: the variables");
    Ok(())
}

fn foreign_state(world: &mut World) -> Result<()> {
    let vm = world.store().join("vms/dvm");
    let slot = vm.join("slots").join(fs::read_to_string(vm.join("current"))?.trim());
    let other = world.store().join("vms/other/slots/1");
    let before = own_files(world)?;
    let under_own_key = |template: &str| -> Result<Vec<u8>> {
        let made = world.fabric("vars.forged");
        let script = format!(
            "rm -f {made} && qemu-img convert --object secret,id=k,data=the-attackers-own -f raw -O luks \
             -o key-secret=k,iter-time=10 {template} {made}",
            made = path(&made)
        );
        run_program(Command::new("sh").args(["-c", &script]), b"", SHORT)?.ok()?;
        Ok(fs::read(&made)?)
    };
    let attempts: [(&str, &str, Option<Vec<u8>>); 7] = [
        ("plain variables", "vars.luks", Some(fs::read("/usr/share/OVMF/OVMF_VARS_4M.ms.fd")?)),
        ("variables under another key", "vars.luks", Some(under_own_key("/usr/share/OVMF/OVMF_VARS_4M.ms.fd")?)),
        ("variables without Secure Boot", "vars.luks", Some(under_own_key("/usr/share/OVMF/OVMF_VARS_4M.fd")?)),
        ("another VM's variables", "vars.luks", Some(fs::read(other.join("vars.luks"))?)),
        ("no variables", "vars.luks", None),
        ("another VM's vTPM", "vtpm/tpm2-00.permall", Some(fs::read(other.join("vtpm/tpm2-00.permall"))?)),
        ("no vTPM", "vtpm/tpm2-00.permall", None),
    ];
    for (name, file, bytes) in attempts {
        let file = slot.join(file);
        let kept = fs::read(&file)?;
        match bytes {
            Some(bytes) => fs::write(&file, bytes)?,
            None => fs::remove_file(&file)?,
        }
        let started = world.admin(&["vm", "start", "dvm"])?;
        fs::write(&file, kept)?;
        ensure!(started.code != 0, "{name}: it starts");
        ensure!(started.stderr.contains("next:"), "{name}: no next step: {}", started.stderr);
        let now = world.admin_json(&["vm", "show", "dvm"])?;
        ensure!(now["state"] == "off", "{name}: {}", now["state"]);
        println!("  refused: {name}: exit code {}", started.code);
    }
    ensure!(own_files(world)? == before, "the VM changed");
    world.admin(&["vm", "start", "dvm"])?.ok().context("the control")?;
    world.admin(&["vm", "stop", "dvm", "--force"])?.ok().map(drop)
}

/// The VM's files, but for those of the slot that a start which failed was making, and locks.
fn own_files(world: &World) -> Result<std::collections::BTreeMap<String, String>> {
    let mut files = world.fingerprint("vms/dvm")?;
    files.retain(|file, _| !file.starts_with("slots/2/") && !file.ends_with(".lock"));
    Ok(files)
}

fn foreign_firmware(world: &mut World) -> Result<()> {
    let file = world.store().join("vms/dvm/vm.json");
    let text = fs::read_to_string(&file)?;
    let code = serde_json::from_str::<machine::VmSpec>(&text)?.firmware.code;
    // The very same bytes: only where they come from is wrong.
    let forged = world.fabric("forged.fd");
    fs::copy(&code, &forged)?;
    fs::write(&file, text.replace(&path(&code), &path(&forged)))?;
    let before = world.fingerprint("vms/dvm/slots")?;
    let refused = world.admin(&["vm", "start", "dvm"])?;
    fs::write(&file, &text)?;
    ensure!(refused.code == REFUSED && refused.stderr.contains("'firmware'"), "{} {}", refused.code, refused.stderr);
    ensure!(world.fingerprint("vms/dvm/slots")? == before, "a key was released all the same");
    world.admin(&["vm", "start", "dvm"])?.ok().context("the control")?;
    world.admin(&["vm", "stop", "dvm", "--force"])?.ok().map(drop)
}

impl Guest {
    fn new() -> Result<Self> {
        let world = World::new()?;
        let disk = world.provision_dvm(&images::folder()?.join("guest.raw"))?;
        world.create_vm("dvm", &disk, &["--memory", "768"])?;
        fs::remove_file(&disk)?;
        let ssh = world.ssh(DVM_ADDRESS)?;
        let guest = Guest { world, ssh };
        guest.world.admin(&["vm", "start", "dvm"])?.ok()?;
        guest.ssh.wait(BOOT)?;
        guest.ssh.ok("echo only-the-owner-knows > /root/secret; sync", SHORT)?;
        guest.world.admin(&["vm", "stop", "dvm"])?.ok()?;
        fs::copy(guest.disk(), guest.kept())?;
        Ok(guest)
    }

    fn disk(&self) -> std::path::PathBuf {
        self.world.store().join("vms/dvm/disk-0.qcow2")
    }

    fn kept(&self) -> std::path::PathBuf {
        self.world.fabric("kept.qcow2")
    }

    /// Starts the VM and waits until it has switched itself off without having let anybody in.
    fn switches_off(&self) -> Result<()> {
        self.world.admin(&["vm", "start", "dvm"])?.ok()?;
        let end = Instant::now() + BOOT;
        while self.world.admin_json(&["vm", "show", "dvm"])?["state"] != "off" {
            if Instant::now() > end {
                bail!("the VM runs on");
            }
            ensure!(!self.ssh.reachable(), "the VM is up");
        }
        Ok(())
    }
}

fn unreadable_disk(guest: &mut Guest) -> Result<()> {
    let before = fs::read(images::folder()?.join("guest.raw"))?;
    ensure!(contains(&before, b"ssh-keygen -q -t ed25519"), "the control: the image is readable");
    drop(before);
    let raw = guest.world.fabric("stolen.raw");
    convert(&guest.disk(), "qcow2", &raw, "raw")?;
    let bytes = fs::read(&raw)?;
    let marker = b"/etc/systemd/system/ssh-host-keys.service";
    for secret in [b"only-the-owner-knows".as_slice(), b"ssh-keygen -q -t ed25519", marker, b"root:x:0:0"] {
        ensure!(!contains(&bytes, secret), "readable offline: {}", String::from_utf8_lossy(secret));
    }
    Ok(fs::remove_file(&raw)?)
}

fn another_menu(guest: &mut Guest) -> Result<()> {
    let raw = guest.world.fabric("stolen.raw");
    convert(&guest.kept(), "qcow2", &raw, "raw")?;
    let esp = format!("{}@@1M", raw.display());
    let grub = guest.world.fabric("grub.cfg");
    mtools(&["mcopy", "-n", "-i", &esp, "::/EFI/debian/grub.cfg", &path(&grub)])?;
    let text = fs::read_to_string(&grub)?;
    ensure!(text.contains("root=/dev/mapper/root"), "another GRUB menu than expected: {text}");
    fs::write(&grub, text.replace("root=/dev/mapper/root", "root=/dev/mapper/root init=/bin/sh"))?;
    mtools(&["mcopy", "-o", "-i", &esp, &path(&grub), "::/EFI/debian/grub.cfg"])?;
    convert(&raw, "raw", &guest.disk(), "qcow2")?;
    fs::remove_file(&raw)?;
    let done = guest.switches_off();
    fs::copy(guest.kept(), guest.disk())?;
    done.context("with another GRUB menu")?;
    guest.world.admin(&["vm", "start", "dvm"])?.ok()?;
    guest.ssh.wait(BOOT)?;
    ensure!(guest.ssh.ok("cat /root/secret", SHORT)?.trim() == "only-the-owner-knows", "the control");
    guest.world.admin(&["vm", "stop", "dvm"])?.ok().map(drop)
}

fn destroyed_variables(guest: &mut Guest) -> Result<()> {
    // Variables lie where the distribution's template has them: keys are written once, and others behind them.
    let template = fs::read("/usr/share/OVMF/OVMF_VARS_4M.ms.fd")?;
    let at = |name: &str| -> Result<usize> {
        let name: Vec<u8> = name.encode_utf16().chain([0]).flat_map(u16::to_le_bytes).collect();
        template.windows(name.len()).position(|bytes| bytes == name).context("no such variable in the template")
    };
    let keys = [at("PK")?, at("KEK")?, at("SecureBootEnable")?];
    let vm = guest.world.store().join("vms/dvm");
    let kept = guest.world.fabric("vm.kept");
    copy_dir(&vm, &kept)?;
    let vars = vm.join("slots").join(fs::read_to_string(vm.join("current"))?.trim()).join("vars.luks");
    let mut bytes = fs::read(&vars)?;
    // LUKS says in its header where the contents begin: big-endian, in sectors.
    let contents = u32::from_be_bytes(bytes[104..108].try_into()?) as usize * SECTOR;
    for key in keys {
        let sector = contents + key / SECTOR * SECTOR;
        bytes[sector..sector + SECTOR].fill(0xa5);
    }
    fs::write(&vars, bytes)?;
    guest.switches_off()?;
    fs::remove_dir_all(&vm)?;
    fs::rename(&kept, &vm)?;
    guest.world.admin(&["vm", "start", "dvm"])?.ok()?;
    guest.ssh.wait(BOOT).context("the control")?;
    guest.world.admin(&["vm", "stop", "dvm"])?.ok().map(drop)
}

fn stolen_disk(guest: &mut Guest) -> Result<()> {
    let world = &guest.world;
    world.create_vm("thief", &guest.kept(), &["--memory", "768", "--policy", "encryption-supported"])?;
    world.admin(&["vm", "start", "thief"])?.ok()?;
    let mut console = Console::open(&mut world.admin_command(&["vm", "console", "thief"])?)?;
    let said = console.expect("the disk stays locked: the vTPM did not release the key", BOOT)?;
    ensure!(said.contains("BdsDxe"), "the control: the console shows the boot: {said}");
    drop(console);
    ensure!(!guest.ssh.reachable(), "the stolen disk is open");
    world.admin(&["vm", "stop", "thief", "--force"])?.ok()?;
    world.admin(&["vm", "delete", "thief", "--yes"])?.ok().map(drop)
}

fn mtools(args: &[&str]) -> Result<()> {
    let mut command = Command::new(args[0]);
    command.env("MTOOLS_SKIP_CHECK", "1").args(&args[1..]);
    run_program(&mut command, b"", SHORT)?.ok().map(drop)
}

fn convert(from: &Path, from_format: &str, to: &Path, to_format: &str) -> Result<()> {
    let mut command = Command::new("qemu-img");
    command.args(["convert", "-f", from_format, "-O", to_format]).arg(from).arg(to);
    run_program(&mut command, b"", SHORT)?.ok().map(drop)
}

pub(crate) fn copy_dir(from: &Path, to: &Path) -> Result<()> {
    run_program(Command::new("cp").arg("-a").arg(from).arg(to), b"", SHORT)?.ok().map(drop)
}
