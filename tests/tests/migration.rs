//! Live migration between two guarded hosts: what goes over the network, who gets it, and where the VM runs when
//! something breaks on the way.

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use drydock_tests::capture::Capture;
use drydock_tests::denial::Denials;
use drydock_tests::exit::{KEY_RELEASE, REFUSED, WRONG_STATE};
use drydock_tests::host::Host;
use drydock_tests::images;
use drydock_tests::process::run;
use drydock_tests::search::{Needles, contains};
use drydock_tests::world::{DVM_ADDRESS, World, path};
use machine::exposure::ExposureReport;

const SHORT: Duration = Duration::from_secs(120);
const BOOT: Duration = Duration::from_secs(400);
const HERE: &str = "10.77.0.1:7446";
const THERE: &str = "10.77.0.2:7446";
const VARIABLE: &str = "/sys/firmware/efi/efivars/Drydock-6c8ed2f5-7e0f-4f0b-9c0a-2f3b1d1c5a10";
/// Of the guest's own making in its vTPM.
const NV: &str = "0x1500016";

/// A second host that takes VMs.
fn taking(world: &World) -> Result<Host> {
    let mut second = world.second_host()?;
    second.shut_down()?;
    second.start_agent_taking(THERE, &[])?;
    Ok(second)
}

fn state(host: &Host, vm: &str) -> Result<String> {
    Ok(host.admin_json(&["vm", "show", vm])?["state"].as_str().context("no state")?.to_owned())
}

/// Everything that is said of a running VM is true of this one.
fn holds(host: &Host, vm: &str) -> Result<()> {
    let proof: ExposureReport = serde_json::from_value(host.admin_json(&["vm", "show", vm, "--proof"])?)?;
    ensure!(proof.holds.len() > 20, "too little is said: {:?}", proof.holds);
    for statement in &proof.holds {
        ensure!(statement.holds, "{statement}");
    }
    let foreign = proof.block_nodes.iter().find(|node| node.driver == "nbd");
    ensure!(foreign.is_none(), "a copy is still under way: {foreign:?}");
    Ok(())
}

fn vms(host: &Host) -> Result<usize> {
    Ok(host.admin_json(&["vm", "list"])?.as_array().context("no list")?.len())
}

/// How many QEMUs this VM has, on both hosts together.
fn qemus(id: &str) -> Result<usize> {
    let mut found = 0;
    for entry in std::fs::read_dir("/proc")? {
        let line = std::fs::read(entry?.path().join("cmdline")).unwrap_or_default();
        let words: Vec<_> = line.split(|byte| *byte == 0).collect();
        let is_qemu = words.first().is_some_and(|word| word.ends_with(b"qemu-system-x86_64"));
        found += usize::from(is_qemu && words.contains(&id.as_bytes()));
    }
    Ok(found)
}

/// Markers put together only in the guest, so that no command line or SSH session is what is found.
fn whole(half: &str) -> String {
    format!("{half}-in-the-guest-only")
}

#[test]
fn a_running_guest_moves_and_nothing_of_it_is_seen() -> Result<()> {
    let world = World::new()?;
    let mut second = taking(&world)?;
    let disk = world.provision_dvm(&images::folder()?.join("guest.raw"))?;
    world.create_vm("dvm", &disk, &["--memory", "768"])?;
    std::fs::remove_file(disk)?;
    world.admin(&["vm", "start", "dvm"])?.ok()?;
    let ssh = world.ssh(DVM_ADDRESS)?;
    ssh.wait(BOOT)?;
    let (memory, file) = ("memory", "file");
    ssh.ok(
        &format!(
            "half=in-the-guest-only; for i in $(seq 2000); do echo {memory}-$half; done > /dev/shm/marker
             echo {file}-$half > /root/marker; sync
             nohup sh -c 'n=0; while :; do n=$((n+1)); echo $n > /dev/shm/count; sleep 0.2; done' > /dev/null 2>&1 &
             cat /proc/sys/kernel/random/boot_id > /dev/shm/boot"
        ),
        SHORT,
    )?;
    // Nothing but the guest's own run put this among its UEFI variables.
    ssh.ok(&format!("printf '\\007\\000\\000\\000{}' > {VARIABLE}", whole("variable")), SHORT)?;
    let vtpm = |commands: &str| ssh.ok(&format!("export TPM2TOOLS_TCTI=device:/dev/tpmrm0; {commands}"), SHORT);
    vtpm(&format!(
        "tpm2_nvdefine -Q -C o -s 64 -a 'ownerread|ownerwrite' {NV} && half=in-the-guest-only &&
         printf vtpm-$half | tpm2_nvwrite -Q -C o -i - {NV}"
    ))?;
    let mut keys = Needles::default();
    keys.add_vm(&world, "dvm")?;
    let count = || -> Result<u64> { Ok(ssh.ok("cat /dev/shm/count", SHORT)?.trim().parse()?) };

    let capture = Capture::start(second.netns(), &second.fabric("capture"))?;
    let before = count()?;
    world.admin(&["vm", "migrate", "dvm", "--to", THERE])?.ok()?;
    // The control: the same text, in the clear, by the same way.
    let plain = format!("printf %s {} > /dev/udp/10.77.0.1/9", whole("control"));
    let mut command = Command::new("ip");
    command.args(["netns", "exec", second.netns(), "bash", "-c", &plain]);
    run(&mut command, b"", SHORT)?.ok()?;
    ssh.wait(SHORT)?;
    let after = count()?;
    let captured = capture.stop()?;
    keys.add_vm(&second, "dvm")?;
    ensure!(after > before, "it does not count on: {before}, {after}");
    let same = ssh.ok("cmp /dev/shm/boot /proc/sys/kernel/random/boot_id && tail -n 1 /dev/shm/marker", SHORT)?;
    ensure!(same.trim() == whole(memory), "the memory did not come along: {same}");

    ensure!(vms(&world)? == 0, "it is still at the source");
    ensure!(state(&second, "dvm")? == "running");
    holds(&second, "dvm")?;
    unseen(&captured, &[memory, file, "variable", "vtpm"])?;
    keys.control()?;
    keys.absent("the network's traffic", &captured)?;
    drop(captured);
    let mut denials = Denials::default();
    denials.expect("a console after migration", REFUSED, "shielded", second.admin(&["vm", "console", "dvm"]));
    denials.close();

    // Its vTPM and its UEFI variables, under the new host's key: the disk opens by them.
    second.admin(&["vm", "stop", "dvm"])?.ok()?;
    second.admin(&["vm", "start", "dvm"])?.ok()?;
    ssh.wait(BOOT)?;
    ensure!(ssh.ok("cat /root/marker", SHORT)?.trim() == whole(file), "the disk did not come along");
    let variable = ssh.ok(&format!("cat {VARIABLE} | tail -c +5"), SHORT)?;
    ensure!(variable.trim() == whole("variable"), "the UEFI variables did not come along: {variable}");
    let kept = vtpm(&format!("tpm2_nvread -C o {NV} | tr -d '\\377\\0'"))?;
    ensure!(kept == whole("vtpm"), "the vTPM did not come along: {kept}");
    second.admin(&["vm", "stop", "dvm"])?.ok()?;
    second.shut_down()?;
    world.close()
}

/// Nothing of this was captured, though what was in the clear was.
fn unseen(captured: &[u8], secrets: &[&str]) -> Result<()> {
    let bytes = captured.len();
    ensure!(bytes > 64 << 20, "only {bytes} bytes were captured: the migration went by another way");
    let seen = |half| contains(captured, whole(half).as_bytes());
    ensure!(seen("control"), "the control: what is in the clear is not found either");
    for secret in secrets {
        ensure!(!seen(secret), "{secret} was seen on the network");
    }
    Ok(())
}

/// The source offers to whoever answers; who gets no key gets nothing else.
#[test]
fn a_host_that_is_not_trusted_takes_nothing() -> Result<()> {
    let world = World::new()?;
    let mut second = taking(&world)?;
    world.create_blank("dvm", &["--memory", "256"])?;
    let mut denials = Denials::default();
    let migrate = || world.admin(&["vm", "migrate", "dvm", "--to", THERE]);
    denials.expect("a VM that is off", WRONG_STATE, "vm start", migrate());
    world.admin(&["vm", "start", "dvm"])?.ok()?;
    denials.expect(
        "nobody there",
        11,
        "--migration-listen",
        world.admin(&["vm", "migrate", "dvm", "--to", "10.77.0.2:9"]),
    );
    let hgs = path(&world.fabric("hgs"));
    world.admin(&["hgs", "remove-host", "host-2", "--dir", &hgs])?.ok()?;
    denials.expect("a host that is trusted no longer", KEY_RELEASE, "add-host", migrate());
    ensure!(state(&world, "dvm")? == "running" && vms(&second)? == 0);
    ensure!(!second.store().join("vms/dvm").exists(), "something was left");
    // The control.
    world.admin(&["hgs", "add-host", "host-2", &path(&second.fabric("host.pub.pem")), "--dir", &hgs])?.ok()?;
    migrate()?.ok().context("the control")?;
    ensure!(state(&second, "dvm")? == "running" && vms(&world)? == 0);
    denials.close();
    second.admin(&["vm", "stop", "dvm", "--force"])?.ok()?;
    second.shut_down()?;
    world.close()
}

/// A VM that goes there and comes back: a key for starts without the service is kept only where it is, and only where
/// the fabric has keys kept.
#[test]
fn a_kept_key_does_not_stay_behind() -> Result<()> {
    let mut world = World::new()?;
    let mut second = taking(&world)?;
    world.shut_down()?;
    world.start_agent_taking(HERE, &["--offline"])?;
    world.new_protector("dvm", &["--offline-unwraps", "2"])?;
    world.create_blank("dvm", &["--memory", "256"])?;
    world.admin(&["vm", "start", "dvm"])?.ok()?;
    let kept = |host: &Host| host.store().join("vms/dvm/offline.sealed").exists();
    ensure!(kept(&world), "the control: no key is kept");
    world.admin(&["vm", "migrate", "dvm", "--to", THERE])?.ok()?;
    holds(&second, "dvm")?;
    ensure!(!kept(&world), "the key stayed behind");
    ensure!(!kept(&second), "a key is kept where the fabric has none kept");
    second.admin(&["vm", "migrate", "dvm", "--to", HERE])?.ok().context("back again")?;
    holds(&world, "dvm")?;
    let offline = &world.admin_json(&["vm", "show", "dvm"])?["offline"];
    ensure!(kept(&world) && offline["remaining"] == 2, "no key is kept after the way back: {offline}");
    ensure!(vms(&second)? == 0, "it is still there");
    world.admin(&["vm", "stop", "dvm", "--force"])?.ok()?;
    second.shut_down()?;
    world.close()
}

/// Kills an agent while the disk is being copied.
#[test]
fn an_agent_that_dies_on_the_way_leaves_one_vm() -> Result<()> {
    let mut world = World::new()?;
    let mut second = taking(&world)?;
    let vm = world.create_large("dvm", 256)?;
    let id = vm["id"].as_str().context("no id")?.to_owned();
    world.admin(&["vm", "start", "dvm"])?.ok()?;

    let mut command = world.admin_command(&["vm", "migrate", "dvm", "--to", THERE, "--json"])?;
    wait_for_copy(&mut command, || second.kill_agent())?;
    ensure!(state(&world, "dvm")? == "running", "the source's VM does not run on");
    second.start_agent_taking(THERE, &[])?;
    ensure!(vms(&second)? == 0 && !second.store().join("vms/dvm").exists(), "something was left");
    ensure!(qemus(&id)? == 1, "{} QEMUs", qemus(&id)?);

    let mut command = world.admin_command(&["vm", "migrate", "dvm", "--to", THERE, "--json"])?;
    wait_for_copy(&mut command, || world.kill_agent())?;
    world.start_agent()?;
    ensure!(state(&world, "dvm")? == "orphaned", "the source's VM does not run on");
    ensure!(vms(&second)? == 0, "the VM is there too");
    world.admin(&["vm", "stop", "dvm", "--force"])?.ok()?;
    world.admin(&["vm", "start", "dvm"])?.ok()?;
    // The control.
    world.admin(&["vm", "migrate", "dvm", "--to", THERE])?.ok().context("the control")?;
    ensure!(qemus(&id)? == 1 && state(&second, "dvm")? == "running");
    second.admin(&["vm", "stop", "dvm", "--force"])?.ok()?;
    second.shut_down()?;
    world.close()
}

/// Runs a migration, which must fail, and does this once its disk is being copied.
fn wait_for_copy(command: &mut Command, kill: impl FnOnce() -> Result<()>) -> Result<()> {
    let mut child = command.process_group(0).stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    let mut lines = BufReader::new(child.stdout.take().context("no output")?).lines();
    loop {
        match lines.next() {
            Some(line) if line.as_ref().is_ok_and(|line| line.contains("copy-disk")) => break,
            Some(line) => drop(line?),
            None => bail!("the migration ended before its disk was copied"),
        }
    }
    kill()?;
    lines.for_each(drop);
    ensure!(!child.wait()?.success(), "the migration succeeded");
    Ok(())
}
