//! Starts without the Host Guardian Service: as often as the owner allowed, on the host that kept the key, and only
//! while nobody answers.

use std::fs;

use anyhow::{Context, Result, ensure};
use drydock_tests::denial::Denials;
use drydock_tests::exit::{BAD_INPUT, KEY_RELEASE, USAGE};
use drydock_tests::tenant::{Plan, hand_back};
use drydock_tests::world::{World, path};
use serde_json::{Value, json};

const START: [&str; 3] = ["vm", "start", "dvm"];
const OFF: [&str; 4] = ["vm", "stop", "dvm", "--force"];
const KEPT: &str = "vms/dvm/offline.sealed";

/// An agent that keeps keys; the owner of `dvm` allows `unwraps` starts.
fn world(unwraps: &str) -> Result<World> {
    let mut world = World::new()?;
    world.kill_agent()?;
    world.start_agent_offline()?;
    world.new_protector("dvm", &["--offline-unwraps", unwraps])?;
    world.create_blank("dvm", &["--memory", "256"])?;
    Ok(world)
}

fn start_and_stop(world: &World) -> Result<String> {
    let said = world.admin(&START)?.ok()?.stderr;
    world.admin(&OFF)?.ok()?;
    Ok(said)
}

/// What `vm show` says of offline starts, and the generation.
fn show(world: &World) -> Result<(Value, u64)> {
    let vm = world.admin_json(&["vm", "show", "dvm"])?;
    Ok((vm["offline"].clone(), vm["generation"].as_u64().context("no generation")?))
}

fn left(remaining: u32, started: bool) -> Value {
    json!({ "remaining": remaining, "started": started })
}

#[test]
fn a_vm_starts_without_the_hgs_as_often_as_its_owner_allows() -> Result<()> {
    let mut world = world("2")?;
    let mut denials = Denials::default();
    world.create_blank("never", &["--memory", "256"])?;
    ensure!(!world.store().join(KEPT).exists(), "a key is kept before the first start");
    let said = start_and_stop(&world)?;
    ensure!(said.contains("2 starts without the Host Guardian Service"), "it does not say so: {said}");
    world.admin(&["vm", "start", "never"])?.ok()?;
    world.admin(&["vm", "stop", "never", "--force"])?.ok()?;
    let (offline, generation) = show(&world)?;
    ensure!(offline == left(2, false), "{offline}");
    ensure!(!world.store().join("vms/never/offline.sealed").exists(), "a key is kept that the owner does not allow");

    world.kill_hgs();
    let said = world.admin(&START)?.ok().context("the first start without a service")?.stderr;
    ensure!(said.contains("no Host Guardian Service answers") && said.contains("1 such starts left"), "{said}");
    ensure!(show(&world)? == (left(1, true), generation), "{:?}", show(&world)?);
    let shown = world.admin(&["vm", "show", "dvm"])?.ok()?.stdout;
    let remark = "1 start left without the Host Guardian Service; the VM was started without it";
    ensure!(shown.contains(remark), "not shown: {shown}");
    world.admin(&OFF)?.ok()?;
    let none = world.admin(&["vm", "start", "never"]);
    denials.expect("a VM whose owner allows none", KEY_RELEASE, "owner of never allows no start", none);

    // Counted on the disk, not in the agent.
    world.kill_agent()?;
    world.start_agent_offline()?;
    start_and_stop(&world).context("the second one")?;
    ensure!(show(&world)? == (left(0, false), generation), "{:?}", show(&world)?);
    denials.expect("one more than allowed", KEY_RELEASE, "no start without it left", world.admin(&START));
    ensure!(!world.store().join(KEPT).exists(), "a key without a start left");
    let log = fs::read_to_string(world.store().join("logs/dvm/offline-starts.log"))?;
    ensure!(log.lines().count() == 2, "not each start is in the log: {log}");

    // With the service the count begins anew, in a new slot.
    world.start_hgs()?;
    start_and_stop(&world)?;
    ensure!(show(&world)? == (left(2, false), generation + 1), "{:?}", show(&world)?);
    // A service that says no has the last word, also when it is cut off right after.
    let hgs = path(&world.fabric("hgs"));
    world.admin(&["hgs", "remove-host", "host-1", "--dir", &hgs])?.ok()?;
    denials.expect("a host that is trusted no longer", KEY_RELEASE, "UnauthorizedHost", world.admin(&START));
    world.kill_hgs();
    denials.expect("the same, the plug pulled", KEY_RELEASE, "no start without it left", world.admin(&START));
    denials.close();
    world.close()
}

#[test]
fn nobody_else_starts_with_a_kept_key() -> Result<()> {
    let mut world = world("5")?;
    let mut denials = Denials::default();
    let kept = world.store().join(KEPT);
    world.new_protector("other", &["--offline-unwraps", "5"])?;
    world.create_blank("other", &["--memory", "256"])?;
    world.admin(&["vm", "start", "other"])?.ok()?;
    world.admin(&["vm", "stop", "other", "--force"])?.ok()?;
    start_and_stop(&world)?;
    let older = fs::read(&kept)?;
    start_and_stop(&world)?;
    let good = fs::read(&kept)?;
    world.kill_hgs();

    let mut value: Value = serde_json::from_slice(&good)?;
    value["remaining"] = json!(32);
    let foreign = fs::read(world.store().join("vms/other/offline.sealed"))?;
    for (name, says, bytes) in [
        ("the key of an older protector", "an earlier state", older),
        ("another VM's key", "another VM", foreign),
        ("more starts written into it", "altered", serde_json::to_vec(&value)?),
        ("a file cut short", "is damaged", good[..40].to_vec()),
    ] {
        fs::write(&kept, bytes)?;
        denials.expect(name, KEY_RELEASE, says, world.admin(&START));
    }
    fs::write(&kept, &good)?;

    // The fabric takes it back: the agent runs without --offline.
    world.kill_agent()?;
    world.start_agent()?;
    let plain = world.admin(&START)?;
    let silent = !plain.stderr.contains("without it") && show(&world)?.0.is_null();
    denials.note("an agent without --offline offers nothing", silent.then_some(()).context(plain.stderr.clone()));
    denials.expect("an agent without --offline", KEY_RELEASE, "cannot be reached", Ok(plain));

    // The store on another host, which has another key.
    let key = world.store().join("host-key.pem");
    let own = fs::read(&key)?;
    fs::remove_file(&key)?;
    let public = path(&world.fabric("second.pub.pem"));
    world.admin(&["host", "init", "--store", &path(&world.store()), "--out", &public])?.ok()?;
    world.kill_agent()?;
    world.start_agent_offline()?;
    denials.expect("another host's key", KEY_RELEASE, "kept by another host", world.admin(&START));
    fs::write(&key, own)?;
    world.kill_agent()?;
    world.start_agent_offline()?;

    // Somebody else answers in the service's place: that is no silence.
    let other = path(&world.fabric("other-hgs"));
    world.admin(&["hgs", "init", "--dir", &other])?.ok()?;
    let impostor = world.serve("an impostor", &["hgs", "serve", "--listen", "127.0.0.1:8443", "--dir", &other])?;
    denials.expect("another service answers", KEY_RELEASE, "is not the Host Guardian Service", world.admin(&START));
    drop(impostor);
    start_and_stop(&world).context("the control")?;

    // Into a recovery it takes no such key, and out of one it comes through the service only.
    world.start_hgs()?;
    world.create_blank("vmre", &["--memory", "1024", "--nested"])?;
    world.admin(&["recovery", "export", "dvm", "--to", "vmre"])?.ok()?;
    denials.note("an exported VM's key is gone", (!kept.exists()).then_some(()).context("it is there"));
    hand_back(&world, "dvm", &Plan::default(), |_| Ok(()))?;
    world.kill_hgs();
    let first = world.admin(&["recovery", "reinstate", "dvm"]);
    denials.expect("the first start after a repair", KEY_RELEASE, "cannot be reached", first);
    world.admin(&["recovery", "abort", "dvm"])?.ok()?;
    denials.expect("after an abort", KEY_RELEASE, "no start without it left", world.admin(&START));
    world.start_hgs()?;
    start_and_stop(&world)?;
    ensure!(kept.exists(), "no key is kept");
    world.admin(&["vm", "delete", "dvm", "--yes"])?.ok()?;
    denials.close();
    world.close()
}

#[test]
fn an_owner_reads_what_a_protector_allows() -> Result<()> {
    let world = World::new()?;
    let mut denials = Denials::default();
    world.new_protector("some", &["--offline-unwraps", "3"])?;
    world.new_protector("none", &[])?;
    let file = |name: &str| path(&world.offline(&format!("{name}.protector.xml")));
    for command in ["show", "verify"] {
        let said =
            |name: &str| -> Result<String> { Ok(world.tenant(&["protector", command, &file(name)])?.ok()?.stdout) };
        ensure!(said("some")?.contains("3 starts without the Host Guardian Service"), "{command}: {}", said("some")?);
        ensure!(said("none")?.contains("never"), "{command}: {}", said("none")?);
    }
    let new = |extra: &[&str]| {
        let mut args = vec!["protector", "new", "--owner", "tenant", "--guardian", "fabric", "--out", "x.xml"];
        args.extend(extra);
        world.tenant(&args)
    };
    denials.expect("more than there may be", USAGE, "33", new(&["--offline-unwraps", "33"]));
    // The fabric raises it.
    let text = fs::read_to_string(file("some"))?;
    let raised = world.offline("raised.xml");
    fs::write(&raised, text.replacen("MaxOfflineUnwraps=\"3\"", "MaxOfflineUnwraps=\"4\"", 1))?;
    let create = ["vm", "create", "dvm", "--disk", "/dev/null", "--switch", "br0", "--protector", &path(&raised)];
    denials.expect("a number that the fabric raised", BAD_INPUT, "MaxOfflineUnwraps", world.admin(&create));
    denials.close();
    world.close()
}
