//! A VM on one host, its repair garage on another: the RG disk is carried there and back as a file.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use drydock_tests::across::{Across, REPAIRED};
use drydock_tests::denial::Denials;
use drydock_tests::exit::{KEY_RELEASE, NOT_FOUND, REFUSED, WRONG_STATE};
use drydock_tests::host::Host;
use drydock_tests::tenant::{Plan, hand_back_disk, repair_copy};
use drydock_tests::world::path;
use machine::Policy;
use recovery::Step;
use serde_json::{Value, json};

const DVM_OFF: [&str; 4] = ["vm", "stop", "dvm", "--force"];
const VMRE_OFF: [&str; 4] = ["vm", "stop", "vmre", "--force"];
const ABORT: [&str; 3] = ["recovery", "abort", "dvm"];
const DETACH: [&str; 3] = ["recovery", "detach", "dvm"];
const STATUS: [&str; 3] = ["recovery", "status", "dvm"];

fn sentence(host: &Host) -> Result<String> {
    let status = host.admin_json(&STATUS)?;
    Ok(status[0]["sentence"].as_str().with_context(|| format!("no sentence: {status}"))?.to_owned())
}

/// The whole way, with a garage that runs when the disk comes.
#[test]
fn a_vm_is_repaired_on_another_host() -> Result<()> {
    let bench = Across::new(&["--nested"])?;
    let (world, second) = (&bench.world, &bench.second);
    let (here, there, back) = (path(&bench.here()), path(&bench.there()), world.fabric("back.vhdx"));
    second.admin(&["vm", "start", "vmre"])?.ok()?;

    bench.export()?;
    let mode = fs::metadata(bench.here())?.permissions().mode() & 0o777;
    ensure!(mode == 0o600, "others can read the RG disk: {mode:o}");
    let said = sentence(world)?;
    ensure!(said.contains(&here) && said.contains("recovery attach"), "it does not say what comes next: {said}");
    ensure!(world.admin(&["vm", "start", "dvm"])?.code == WRONG_STATE, "a VM in recovery starts");
    bench.export().context("the same command again")?;

    fs::copy(&here, &there)?;
    let attach = ["recovery", "attach", &there, "--to", "vmre"];
    second.admin(&attach)?.ok()?;
    second.admin(&attach)?.ok().context("the same command again")?;
    let said = sentence(second)?;
    ensure!(said.contains("recovery import") && said.contains("recovery detach dvm"), "what comes next? {said}");
    // Looked at through the running garage.
    let early = second.admin(&DETACH)?;
    ensure!(early.code == WRONG_STATE && early.stderr.contains("has not handed dvm back"), "taken: {}", early.stderr);
    ensure!(is_in_use(&bench.there())?, "the running garage does not have the disk");

    // The garage's part is played with its disk, which a running one keeps to itself.
    second.admin(&VMRE_OFF)?.ok()?;
    bench.handed_back()?;
    second.admin(&["vm", "start", "vmre"])?.ok().context("a later start of the garage")?;
    ensure!(is_in_use(&bench.there())?, "a later start of the garage is without the disk");
    // There is no system in it that could let go of a disk.
    second.admin(&VMRE_OFF)?.ok()?;
    second.admin(&DETACH)?.ok()?;
    second.admin(&["vm", "start", "vmre"])?.ok()?;
    ensure!(!is_in_use(&bench.there())?, "the garage still has the disk");
    let said = sentence(second)?;
    ensure!(said.contains("recovery reinstate dvm --from"), "what comes next? {said}");

    fs::copy(&there, &back)?;
    let reinstate = ["recovery", "reinstate", "dvm", "--from", &path(&back)];
    let wrong_host = second.admin(&reinstate)?;
    ensure!(wrong_host.code == NOT_FOUND, "reinstated on the garage's host: {}", wrong_host.stdout);
    let report = world.admin_json(&reinstate)?;
    ensure!(report["closed"] == true, "the recovery is still open: {report}");
    ensure!(world.admin_json(&["vm", "show", "dvm"])?["state"] == "running", "it does not run");
    world.admin(&DVM_OFF)?.ok()?;
    ensure!(world.disk_holds("dvm", REPAIRED.0, REPAIRED.1, 77)?, "the repair is gone");
    ensure!(world.disk("dvm")?[1 << 20..].starts_with(b"the disk of dvm"), "the disk's old contents are gone");

    // And once more, back under the name that the export gave; kept, and rolled back.
    bench.remove_files()?;
    let before = world.fingerprint("vms/dvm")?;
    bench.export()?;
    hand_back_disk(world, &bench.here(), &Plan::default(), |_| Ok(()))?;
    world.admin(&["recovery", "reinstate", "dvm", "--keep-original"])?.ok()?;
    world.admin(&DVM_OFF)?.ok()?;
    world.admin(&["recovery", "rollback", "dvm"])?.ok()?;
    ensure!(world.fingerprint("vms/dvm")? == before, "a rollback changed the VM");
    bench.close()
}

/// A garage that outlived its agent cannot be directed: that is said before anything is done, and its end is the way on.
#[test]
fn a_garage_of_an_earlier_agent_is_left_alone() -> Result<()> {
    let mut bench = Across::new(&["--nested"])?;
    let there = path(&bench.there());
    let attach = ["recovery", "attach", &there, "--to", "vmre"];
    let mut denials = Denials::default();
    bench.export()?;
    fs::copy(bench.here(), bench.there())?;
    bench.second.admin(&["vm", "start", "vmre"])?.ok()?;
    orphan(&mut bench.second)?;
    let before = (bench.second.fingerprint("vms/vmre")?, bench.second.fingerprint("recoveries")?);
    let done = bench.second.admin(&attach);
    denials.expect("attaching", WRONG_STATE, "of an earlier agent", done);
    let after = (bench.second.fingerprint("vms/vmre")?, bench.second.fingerprint("recoveries")?);
    denials.note("nothing changed", (after == before).then_some(()).context("it did"));
    bench.second.admin(&VMRE_OFF)?.ok()?;
    bench.second.admin(&attach)?.ok()?;

    bench.handed_back()?;
    bench.second.admin(&["vm", "start", "vmre"])?.ok()?;
    orphan(&mut bench.second)?;
    denials.expect("detaching", WRONG_STATE, "of an earlier agent", bench.second.admin(&DETACH));
    denials.expect("aborting", WRONG_STATE, "of an earlier agent", bench.second.admin(&ABORT));
    denials.note("the garage has it still", is_in_use(&bench.there())?.then_some(()).context("it has not"));
    bench.second.admin(&VMRE_OFF)?.ok()?;
    bench.second.admin(&DETACH)?.ok()?;
    denials.close();
    bench.close()
}

/// Its agent is killed, and another takes its place.
fn orphan(host: &mut Host) -> Result<()> {
    host.kill_agent()?;
    host.start_agent()
}

/// Whether a VM has the image: QEMU's lock says so.
fn is_in_use(image: &Path) -> Result<bool> {
    match garage::container::read(image) {
        Ok(_) => Ok(false),
        Err(garage::Error::Image(image::Error::Busy { .. })) => Ok(true),
        Err(error) => Err(error.into()),
    }
}

fn points(steps: impl IntoIterator<Item = Step>) -> Vec<String> {
    steps.into_iter().flat_map(|step| [format!("{step}:before"), format!("{step}:after")]).collect()
}

fn points_of(command: &str) -> Vec<String> {
    points(Step::ALL.into_iter().filter(|step| step.command() == command))
}

fn unchanged(host: &Host, vm: &str, before: &BTreeMap<String, String>, at: &str) -> Result<()> {
    let now = host.fingerprint(&format!("vms/{vm}"))?;
    ensure!(now == *before, "after {at} and an abort, {vm} is not as it was: {now:?}");
    Ok(())
}

#[test]
fn an_export_to_a_file_survives_its_agent() -> Result<()> {
    let mut bench = Across::new(&["--nested"])?;
    let file = path(&bench.here());
    let export = ["recovery", "export", "dvm", "--to-file", &file];
    let before = bench.world.fingerprint("vms/dvm")?;
    for at in points([Step::Held, Step::RgDiskMade]) {
        bench.world.dies_at(&export, &at)?;
        bench.world.admin(&export)?.ok().with_context(|| format!("again after {at}"))?;
        garage::container::read(&bench.here()).with_context(|| format!("the RG disk after {at}"))?;
        bench.world.admin(&ABORT)?.ok()?;
        unchanged(&bench.world, "dvm", &before, &at)?;
        bench.remove_files()?;

        bench.world.dies_at(&export, &at)?;
        bench.world.admin(&ABORT)?.ok().with_context(|| format!("abort after {at}"))?;
        unchanged(&bench.world, "dvm", &before, &at)?;
        bench.remove_files()?;
        println!("  survived: {at}");
    }
    // What a run leaves that is killed in the middle of the copy is taken over, and taken away by an abort.
    let partial = bench.world.fabric("dvm.vhdx.partial");
    bench.world.dies_at(&export, "held:after")?;
    fs::write(&partial, "half of it")?;
    bench.world.admin(&ABORT)?.ok()?;
    ensure!(!partial.exists() && !bench.here().exists(), "an abort leaves half a file");
    bench.close()
}

#[test]
fn an_attachment_survives_its_agent() -> Result<()> {
    let mut bench = Across::new(&[])?;
    let there = path(&bench.there());
    let attach = ["recovery", "attach", &there, "--to", "vmre"];
    let (attach_points, detach_points) = (points_of("attach"), points_of("detach"));
    ensure!(attach_points.len() == 4 && detach_points.len() == 2, "{attach_points:?} {detach_points:?}");
    bench.export()?;
    fs::copy(bench.here(), bench.there())?;
    // Nested virtualization stays on.
    bench.second.admin(&attach)?.ok()?;
    bench.second.admin(&ABORT)?.ok()?;
    let before = bench.second.fingerprint("vms/vmre")?;
    for at in attach_points {
        bench.second.dies_at(&attach, &at)?;
        bench.second.admin(&attach)?.ok().with_context(|| format!("again after {at}"))?;
        bench.second.admin(&ABORT)?.ok()?;
        unchanged(&bench.second, "vmre", &before, &at)?;

        bench.second.dies_at(&attach, &at)?;
        bench.second.admin(&ABORT)?.ok().with_context(|| format!("abort after {at}"))?;
        unchanged(&bench.second, "vmre", &before, &at)?;
        println!("  survived: {at}");
    }
    ensure!(bench.there().exists(), "an abort in the garage's host removes what was carried there");
    bench.second.admin(&attach)?.ok()?;
    bench.handed_back()?;
    let handed_back = bench.second.fabric("kept.vhdx");
    fs::copy(bench.there(), &handed_back)?;
    bench.second.admin(&ABORT)?.ok()?;
    for at in detach_points.into_iter().chain(points([Step::Closed])) {
        fs::copy(bench.here(), bench.there())?;
        bench.second.admin(&attach)?.ok()?;
        fs::copy(&handed_back, bench.there())?;
        bench.second.dies_at(&DETACH, &at)?;
        let again = bench.second.admin(&DETACH)?;
        let expected = if at == "closed:after" { NOT_FOUND } else { 0 };
        ensure!(again.code == expected, "detach again after {at}: {} {}", again.code, again.stderr);
        unchanged(&bench.second, "vmre", &before, &at)?;
        println!("  survived: {at}");
    }
    // What came out is whole.
    bench.world.admin(&["recovery", "reinstate", "dvm", "--from", &there])?.ok()?;
    bench.close()
}

/// The steps that are not as they are on one host: the file is looked at, and copied, anew.
#[test]
fn a_reinstatement_from_a_file_survives_its_agent() -> Result<()> {
    let mut bench = Across::new(&["--nested"])?;
    let file = path(&bench.here());
    let reinstate = ["recovery", "reinstate", "dvm", "--from", &file];
    for at in ["detached:after", "verified:after", "copied:before", "copied:after", "swapped:before"] {
        bench.export()?;
        repair_copy(&bench.here(), REPAIRED.0, REPAIRED.1)?;
        hand_back_disk(&bench.world, &bench.here(), &Plan::default(), |_| Ok(()))?;
        bench.world.dies_at(&reinstate, at)?;
        if at == "swapped:before" {
            // From here on the file is not needed any more.
            bench.remove_files()?;
        }
        bench.world.admin(&reinstate)?.ok().with_context(|| format!("again after {at}"))?;
        bench.world.admin(&DVM_OFF)?.ok()?;
        ensure!(bench.world.disk_holds("dvm", REPAIRED.0, REPAIRED.1, 77)?, "after {at} the repair is gone");
        bench.remove_files()?;
        println!("  survived: {at}");
    }
    bench.close()
}

/// Whoever has a copy of the RG disk, and root on another host that is trusted, gets no console from it.
#[test]
fn a_copied_rg_disk_opens_nothing_on_another_host() -> Result<()> {
    let bench = Across::new(&["--nested"])?;
    let mut denials = Denials::default();
    bench.export()?;
    // As it is in the garage: sealed for the owner and the recovery guardian, with the policy lowered.
    fs::copy(bench.here(), bench.there())?;
    let plan = Plan { policy: Policy::EncryptionSupported, to_fabric: false, ..Plan::default() };
    hand_back_disk(&bench.world, &bench.there(), &plan, |_| Ok(()))?;
    plant(&bench.second, "dvm", &bench.there(), "encryption-supported")?;
    let start = ["vm", "start", "dvm"];
    denials.expect("state sealed in the garage", KEY_RELEASE, "key", bench.second.admin(&start));
    // As it was exported: sealed for the fabric, and shielded.
    plant(&bench.second, "dvm", &bench.here(), "encryption-supported")?;
    denials.expect("with the policy edited", REFUSED, "'policy'", bench.second.admin(&start));
    plant(&bench.second, "dvm", &bench.here(), "shielded")?;
    bench.second.admin(&start)?.ok().context("the control: a shielded VM starts on every trusted host")?;
    denials.expect("its console", REFUSED, "has no console", bench.second.admin(&["vm", "console", "dvm"]));
    bench.second.admin(&DVM_OFF)?.ok()?;
    // Each host has a key of its own.
    let hgs = path(&bench.world.fabric("hgs"));
    bench.world.admin(&["hgs", "remove-host", "host-2", "--dir", &hgs])?.ok()?;
    denials.expect("a host that is trusted no longer", KEY_RELEASE, "add-host", bench.second.admin(&start));
    denials.close();
    bench.close()
}

/// Puts the VM of an RG disk into a host's store by hand, with this policy in its files.
fn plant(host: &Host, name: &str, rg_disk: &Path, policy: &str) -> Result<()> {
    let contents = garage::container::read(rg_disk)?;
    let shape: Value = serde_json::from_str(&contents.manifest.spec)?;
    let (mut spec, generation) = (shape["spec"].clone(), shape["generation"].clone());
    let dir = host.store().join("vms").join(name);
    if dir.exists() {
        fs::remove_dir_all(&dir)?;
    }
    let slot = dir.join("slots").join(generation.to_string());
    fs::create_dir_all(dir.join("slots"))?;
    contents.bundle.unpack(&slot)?;
    fs::write(slot.join("protector.xml"), &contents.manifest.protector)?;
    fs::write(dir.join("current"), generation.to_string())?;
    let disk = dir.join("disk-0.raw");
    fs::File::create(&disk)?.set_len(contents.manifest.disks[0].size)?;
    spec["policy"] = json!(policy);
    spec["disks"][0]["path"] = json!(disk);
    spec["disks"][0]["format"] = json!("raw");
    Ok(fs::write(dir.join("vm.json"), spec.to_string())?)
}
