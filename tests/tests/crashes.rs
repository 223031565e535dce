//! The agent is killed before and after every step of an export and of a reinstatement. Each time the same command,
//! run again, completes; and each time `abort` gives the VM back as it was. The points are the journal's own.

use std::io::Read;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use drydock_tests::process::Service;
use drydock_tests::tenant::{Plan, hand_back};
use drydock_tests::world::World;
use recovery::Step;

const UNREACHABLE: i32 = 11;
const NOT_FOUND: i32 = 5;

const EXPORT: [&str; 5] = ["recovery", "export", "dvm", "--to", "vmre"];
const REINSTATE: [&str; 3] = ["recovery", "reinstate", "dvm"];
const ABORT: [&str; 3] = ["recovery", "abort", "dvm"];

/// Everything of the VM, but for the moments at which its files were written.
type Print = std::collections::BTreeMap<String, String>;

fn world() -> Result<World> {
    let world = World::new()?;
    world.create_blank("dvm", &["--memory", "256"])?;
    world.create_blank("vmre", &["--memory", "1024", "--nested"])?;
    Ok(world)
}

/// Runs a command whose agent dies at the point, and brings an agent back.
fn die_in(world: &mut World, args: &[&str], point: &str) -> Result<()> {
    world.kill_agent()?;
    world.start_agent_with(&[("DRYDOCK_CRASH_AT", point)])?;
    let done = world.admin(args)?;
    world.agent_died().with_context(|| format!("at {point} nobody died: {}{}", done.stdout, done.stderr))?;
    ensure!(done.code == UNREACHABLE, "at {point}, the command ended with {}: {}", done.code, done.stderr);
    world.start_agent()
}

fn points(command: &str) -> Vec<(Step, String)> {
    let steps = Step::ALL.into_iter().filter(|step| step.command() == command);
    steps.flat_map(|step| [(step, format!("{step}:before")), (step, format!("{step}:after"))]).collect()
}

fn unchanged(world: &World, before: &Print, at: &str) -> Result<()> {
    let now = world.fingerprint("vms/dvm")?;
    ensure!(now == *before, "after {at} and an abort, the VM is not as it was: {now:?}");
    ensure!(!world.store().join("vms/vmre/attached.json").exists(), "after {at}, the RG disk is still attached");
    Ok(())
}

#[test]
fn an_export_survives_its_agent() -> Result<()> {
    let mut world = world()?;
    let before = world.fingerprint("vms/dvm")?;
    let points = points("export");
    ensure!(points.len() == 8, "the steps of an export: {points:?}");
    for (_, at) in points {
        die_in(&mut world, &EXPORT, &at)?;
        world.admin(&EXPORT)?.ok().with_context(|| format!("again after {at}"))?;
        world.admin(&ABORT)?.ok()?;
        unchanged(&world, &before, &at)?;

        die_in(&mut world, &EXPORT, &at)?;
        world.admin(&ABORT)?.ok().with_context(|| format!("abort after {at}"))?;
        unchanged(&world, &before, &at)?;
        println!("  survived: {at}");
    }
    world.admin(&["vm", "start", "dvm"])?.ok()?;
    world.admin(&["vm", "stop", "dvm", "--force"])?.ok()?;
    world.close()
}

/// Ctrl-C in the middle of the copy: the work stops, nothing half-made is left, and the same command goes on.
#[test]
fn an_export_can_be_stopped_and_gone_on_with() -> Result<()> {
    let world = World::new()?;
    let disk = world.fabric("large.raw");
    let mut random = std::fs::File::open("/dev/urandom")?.take(1 << 30);
    std::io::copy(&mut random, &mut std::fs::File::create(&disk)?)?;
    world.create_vm("dvm", &disk, &["--memory", "256"])?;
    std::fs::remove_file(&disk)?;
    world.create_blank("vmre", &["--memory", "1024", "--nested"])?;
    let before = world.fingerprint("vms/dvm")?;

    let (client, _) =
        Service::start("the export", &mut world.admin_command(&EXPORT)?, "copying dvm", Duration::from_secs(60))?;
    client.interrupt()?;
    // The agent lets go of the VM once it has noticed and cleaned up.
    let end = Instant::now() + Duration::from_secs(60);
    while world.admin_json(&["vm", "show", "dvm"])?["state"] == "busy" {
        ensure!(Instant::now() < end, "the agent goes on without its client");
        std::thread::sleep(Duration::from_millis(50));
    }
    let status = world.admin_json(&["recovery", "status", "dvm"])?;
    let id = status[0]["recovery_id"].as_str().context("no recovery")?;
    ensure!(!status.to_string().contains("rg-disk-made"), "a gigabyte was copied before Ctrl-C came: {status}");
    let left: Vec<_> = std::fs::read_dir(world.store().join("recoveries").join(id))?
        .map(|entry| entry.map(|entry| entry.file_name()))
        .collect::<std::io::Result<_>>()?;
    ensure!(left == ["journal.json"], "left behind: {left:?}");
    let sentence = status[0]["sentence"].as_str().unwrap_or_default();
    ensure!(sentence.contains("not complete; run"), "the status does not say how to go on: {sentence}");

    world.admin(&EXPORT)?.ok().context("the same command again")?;
    world.admin(&ABORT)?.ok()?;
    unchanged(&world, &before, "Ctrl-C")?;
    world.close()
}

#[test]
fn a_reinstatement_survives_its_agent() -> Result<()> {
    let mut world = world()?;
    let points = points("reinstate");
    ensure!(points.len() == 12, "the steps of a reinstatement: {points:?}");
    for (step, at) in points {
        let prepare = |world: &World| -> Result<Print> {
            let before = world.fingerprint("vms/dvm")?;
            world.admin(&EXPORT)?.ok()?;
            hand_back(world, "dvm", &Plan::default(), |_| Ok(()))?;
            Ok(before)
        };
        // Given up.
        let before = prepare(&world)?;
        die_in(&mut world, &REINSTATE, &at)?;
        let aborted = world.admin(&ABORT)?;
        if step == Step::Closed && at.ends_with("after") {
            ensure!(aborted.code == NOT_FOUND, "a closed recovery is aborted: {}", aborted.stdout);
            world.admin(&["vm", "stop", "dvm", "--force"])?.ok()?;
        } else if step == Step::Closed {
            // The original is gone by then, and the repaired one runs: there is no way back, and it says so.
            ensure!(aborted.code != 0, "aborted without an original: {}", aborted.stdout);
            world.admin(&REINSTATE)?.ok()?;
            world.admin(&["vm", "stop", "dvm", "--force"])?.ok()?;
        } else {
            aborted.ok().with_context(|| format!("abort after {at}"))?;
            unchanged(&world, &before, &at)?;
        }
        // Gone on with.
        prepare(&world)?;
        die_in(&mut world, &REINSTATE, &at)?;
        let again = world.admin(&REINSTATE)?;
        if step == Step::Closed && at.ends_with("after") {
            ensure!(again.code == NOT_FOUND, "a closed recovery is closed again: {}", again.stdout);
        } else {
            again.ok().with_context(|| format!("again after {at}"))?;
        }
        world.admin(&["vm", "stop", "dvm", "--force"])?.ok()?;
        world.admin(&["vm", "start", "dvm"])?.ok().with_context(|| format!("a start after {at}"))?;
        world.admin(&["vm", "stop", "dvm", "--force"])?.ok()?;
        println!("  survived: {at}");
    }
    world.close()
}
