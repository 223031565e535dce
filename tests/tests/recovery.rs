//! A whole recovery with a real nested guest, and everything on the way that may go wrong without harm: a package
//! that is missing in the garage, a garage that restarts, grants that are not for this.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use drydock_tests::denial::Denials;
use drydock_tests::exit::{BAD_INPUT, KEY_RELEASE, MISSING_TOOL, NOT_FOUND, REFUSED, UNREACHABLE, WRONG_STATE};
use drydock_tests::process::{Finished, run};
use drydock_tests::ssh::Ssh;
use drydock_tests::story::Recovery;
use drydock_tests::tenant::{owner, recovery_guardian, rg_disk};
use drydock_tests::world::{VMRE_ADDRESS, World};
use garage::Device;
use key_protector::{Protector, signed};
use recovery::Step;
use recovery::documents::{RecoveryGrant, read_grant, write_grant};

const SHORT: Duration = Duration::from_secs(120);
const BOOT: Duration = Duration::from_secs(600);

#[test]
fn a_whole_recovery_with_obstacles() -> Result<()> {
    let mut recovery = Recovery::prepare()?;
    let told = tell(&mut recovery);
    recovery.conclude(told)
}

fn tell(recovery: &mut Recovery) -> Result<()> {
    recovery.start_and_break()?;
    let vmre = recovery.world.ssh(VMRE_ADDRESS)?;
    let mut denials = Denials::default();
    let garage = |args: &str| vmre.run(&format!("drydock {args}"), SHORT);
    denials.expect("an import before the export", NOT_FOUND, "no RG disk", garage("recovery import"));
    recovery.export()?;

    vmre.ok("mv /var/lib/drydock/garage-key /root/", SHORT)?;
    denials.expect(
        "an import in a garage that its owner does not know",
        WRONG_STATE,
        "garage init",
        garage("recovery import"),
    );
    vmre.ok("mv /root/garage-key /var/lib/drydock/", SHORT)?;
    // A VM of the same name, which is the tenant's own.
    vmre.ok("mkdir -m 700 /var/lib/drydock/vms/dvm && echo {} > /var/lib/drydock/vms/dvm/vm.json", SHORT)?;
    denials.expect("an import over another VM", WRONG_STATE, "already", garage("recovery import"));
    vmre.ok("test -s /var/lib/drydock/vms/dvm/vm.json && rm -r /var/lib/drydock/vms/dvm", SHORT)?;
    // A garage without its vTPM emulator.
    vmre.ok("apt-get remove -y -q swtpm > /dev/null", SHORT)?;
    denials.expect("an import without swtpm", MISSING_TOOL, "swtpm", garage("recovery import"));
    vmre.ok("drydock recovery import --install --out /root/first.recovery-request", SHORT)?;
    // From the start again, with an agent that dies before and after every step.
    vmre.ok("drydock recovery abort dvm", SHORT)?;
    die_at_every_step(&vmre, "import", "recovery import --out /root/first.recovery-request")?;
    restart_garage(&recovery.world, &vmre)?;
    let status = vmre.ok("drydock recovery status dvm", SHORT)?;
    ensure!(status.contains("waits for its owner"), "after the restart: {status}");

    // Imports again, and gets the grant; then tries others before it.
    recovery.import_and_grant()?;
    wrong_grants(&recovery.world, &vmre, &mut denials)?;
    denials.expect("finishing what was not granted", WRONG_STATE, "has not been granted", garage("recovery finish"));
    vmre.put(&recovery.world.offline("dvm.recovery-grant"), "/root/early.recovery-grant")?;
    die_at_every_step(&vmre, "import --grant", "recovery import --grant /root/early.recovery-grant")?;
    recovery.lower()?;
    lowered_state_on_the_fabric(&recovery.world, &vmre, &mut denials)?;
    copied_disk_with_a_console(&recovery.world, "while the policy is lowered", &mut denials)?;
    // The garage's own restart changes nothing: the VM is there, with its lowered policy.
    vmre.ok("systemctl restart drydock-garage", SHORT)?;
    recovery.repair()?;
    copied_disk_with_a_console(&recovery.world, "during the repair", &mut denials)?;
    denials.expect("finishing while it runs", WRONG_STATE, "is running", garage("recovery finish"));
    denials.expect(
        "reinstating while it is repaired",
        WRONG_STATE,
        "has not handed dvm back yet",
        recovery.world.admin(&["recovery", "reinstate", "dvm"]),
    );
    recovery.copy_the_key()?;
    vmre.ok("drydock vm stop dvm", BOOT)?;
    die_at_every_step(&vmre, "finish", "recovery finish")?;
    copied_disk_with_a_console(&recovery.world, "after the hand-back", &mut denials)?;
    denials.expect(
        "a grant that was used already",
        BAD_INPUT,
        "not imported here",
        garage("recovery import --grant /root/early.recovery-grant"),
    );
    recovery.return_home()?;
    denials.expect("importing what was handed back", NOT_FOUND, "no RG disk", garage("recovery import"));
    denials.close();
    Ok(())
}

/// The garage's agent is killed before and after each of the command's steps; each run goes on where the last died.
fn die_at_every_step(vmre: &Ssh, command: &str, line: &str) -> Result<()> {
    const READY: &str = "systemctl reset-failed; systemctl restart drydock-garage; \
                         until [ -S /run/drydock/agent.sock ]; do sleep 0.1; done";
    for step in Step::ALL.into_iter().filter(|step| step.command() == command) {
        for at in [format!("{step}:before"), format!("{step}:after")] {
            let done =
                vmre.run(&format!("systemctl set-environment DRYDOCK_CRASH_AT={at}; {READY}; drydock {line}"), SHORT)?;
            ensure!(done.code == UNREACHABLE, "at {at}: exit code {}: {}{}", done.code, done.stdout, done.stderr);
            println!("  survived: {at}");
        }
    }
    vmre.ok(&format!("systemctl unset-environment DRYDOCK_CRASH_AT; {READY}"), SHORT).map(drop)
}

fn restart_garage(world: &World, vmre: &Ssh) -> Result<()> {
    world.admin(&["vm", "stop", "vmre"])?.ok().context("stopping the garage")?;
    world.admin(&["vm", "start", "vmre"])?.ok().context("starting the garage")?;
    vmre.wait(BOOT).map(drop)
}

/// Grants that the owner really signed, for something else; and one that somebody else signed.
fn wrong_grants(world: &World, vmre: &Ssh, denials: &mut Denials) -> Result<()> {
    let good = fs::read(world.offline("dvm.recovery-grant"))?;
    let (grant, _) = read_grant("the grant", &good)?;
    let owner = owner(world)?;
    let attempt = |bytes: &[u8]| -> Result<Finished> {
        let file = world.offline("wrong.recovery-grant");
        fs::write(&file, bytes)?;
        vmre.put(&file, "/root/wrong.recovery-grant")?;
        vmre.run("drydock recovery import --grant /root/wrong.recovery-grant", SHORT)
    };
    let changed = |change: &dyn Fn(&mut RecoveryGrant)| -> Result<Vec<u8>> {
        let mut grant = grant.clone();
        change(&mut grant);
        Ok(write_grant(&grant, &owner)?)
    };
    let stranger = recovery_guardian(time::Duration::hours(1))?;
    let (another, _) = Protector::new(&owner, &[stranger.public().clone()], time::OffsetDateTime::now_utc())?;
    let mut flipped = good.clone();
    flipped[good.len() / 2] ^= 1;
    let cases: [(&str, &str, Vec<u8>); 10] = [
        ("a grant for another recovery", "'recovery_id'", changed(&|g| g.recovery_id = uuid::Uuid::new_v4())?),
        ("a grant for another VM's id", "'vm_id'", changed(&|g| g.vm_id = uuid::Uuid::new_v4())?),
        ("a grant for a VM that is not here", "not imported here", changed(&|g| g.vm_name = "other".into())?),
        ("a grant to another garage", "'garage'", changed(&|g| g.garage = "other (0)".into())?),
        ("a grant to another guardian", "'guardian'", changed(&|g| g.guardian = "0".repeat(64))?),
        (
            "a grant for another key protector",
            "'ingress_protector'",
            changed(&|g| g.ingress_protector = "0".repeat(64))?,
        ),
        ("a grant that has ended", "'not_after'", changed(&|g| g.not_after = 1)?),
        (
            "a grant whose key protector our guardian cannot open",
            "does not open",
            changed(&|g| g.protector = String::from_utf8_lossy(&another.to_xml()).into_owned())?,
        ),
        (
            "a grant that the recovery guardian of another signed",
            "not signed by the owner",
            write_grant(&grant, &stranger)?,
        ),
        ("a grant with a flipped byte", "recovery grant", flipped),
    ];
    for (name, says, bytes) in cases {
        denials.expect(name, BAD_INPUT, says, attempt(&bytes));
    }
    let not_a_grant = signed::sign("drydock/recovery-request", b"{}", &owner)?;
    denials.expect("a request for a grant", BAD_INPUT, "recovery grant", attempt(&not_a_grant));
    let shown = vmre.ok("drydock vm show dvm --json", SHORT)?;
    let still = shown.contains("\"policy\":\"shielded\"");
    denials.note("the policy is not lowered by any of them", still.then_some(()).context(shown));
    Ok(())
}

/// The tenant's garage gives away the state with the lowered policy, and the fabric admin puts it in the VM's place,
/// with a specification to match: the fabric's guardian cannot open it.
fn lowered_state_on_the_fabric(world: &World, vmre: &Ssh, denials: &mut Denials) -> Result<()> {
    let tar = world.fabric("lowered.tar");
    vmre.ok("tar -C /var/lib/drydock/vms/dvm -cf /root/lowered.tar slots current", SHORT)?;
    vmre.get("/root/lowered.tar", &tar)?;
    let done = in_place_of_the_vm(world, |vm| {
        let mut command = Command::new("tar");
        command.arg("-C").arg(vm).arg("-xf").arg(&tar);
        run(&mut command, b"", SHORT)?.ok().map(drop)
    });
    denials.expect("the lowered state on the fabric", KEY_RELEASE, "did not release the key", done);
    Ok(())
}

/// The hole of the original: a copy of the repair disk, taken at this moment, boots on the fabric with a console.
fn copied_disk_with_a_console(world: &World, at: &str, denials: &mut Denials) -> Result<()> {
    let (copy, raw) = (world.fabric("copy.vhdx"), world.fabric("copy.raw"));
    fs::copy(rg_disk(world, "dvm")?, &copy)?;
    let mut replay = Command::new("qemu-img");
    replay.args(["check", "-q", "-r", "all", "-f", "vhdx"]).arg(&copy);
    run(&mut replay, b"", SHORT)?;
    let mut convert = Command::new("qemu-img");
    convert.args(["convert", "-f", "vhdx", "-O", "raw"]).arg(&copy).arg(&raw);
    run(&mut convert, b"", SHORT)?.ok()?;
    let device = Device::open(&raw)?;
    let manifest = device.manifest()?;
    let done = in_place_of_the_vm(world, |vm| {
        let shape: serde_json::Value = serde_json::from_str(&manifest.spec)?;
        let generation = shape["generation"].as_u64().context("no generation")?;
        let slot = vm.join("slots").join(generation.to_string());
        fs::create_dir_all(vm.join("slots"))?;
        device.bundle()?.unpack(&slot)?;
        fs::write(slot.join("protector.xml"), &manifest.protector)?;
        Ok(fs::write(vm.join("current"), format!("{generation}\n"))?)
    });
    fs::remove_file(&copy)?;
    fs::remove_file(&raw)?;
    denials.expect(&format!("a copy of the RG disk {at}, with a console"), REFUSED, "'policy'", done);
    Ok(())
}

/// Puts other state where the VM's is, asks for a console in its specification, tries to start it, and puts all back.
fn in_place_of_the_vm(world: &World, place: impl FnOnce(&Path) -> Result<()>) -> Result<Finished> {
    let vm = world.store().join("vms/dvm");
    let kept = world.fabric("kept");
    fs::create_dir_all(&kept)?;
    let moved = ["slots", "current", "vm.json", "hold.json"];
    for name in moved {
        fs::rename(vm.join(name), kept.join(name))?;
    }
    let spec = fs::read_to_string(kept.join("vm.json"))?;
    fs::write(vm.join("vm.json"), spec.replace("\"shielded\"", "\"encryption-supported\""))?;
    let done = place(&vm).and_then(|()| world.admin(&["vm", "start", "dvm"]));
    for name in moved {
        let target = vm.join(name);
        let _ = if target.is_dir() { fs::remove_dir_all(&target) } else { fs::remove_file(&target) };
        fs::rename(kept.join(name), target)?;
    }
    done
}
