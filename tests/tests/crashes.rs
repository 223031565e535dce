//! The agent is killed before and after every step of an export and of a reinstatement. Each time the same command,
//! run again, completes; and each time `abort` gives the VM back as it was. The points are the journal's own.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use drydock_tests::exit::{NOT_FOUND, WRONG_STATE};
use drydock_tests::process::Service;
use drydock_tests::tenant::{Plan, hand_back, repair};
use drydock_tests::world::{World, path};
use recovery::Step;
use serde_json::Value;

const EXPORT: [&str; 5] = ["recovery", "export", "dvm", "--to", "vmre"];
const EXPORT_COPY: [&str; 6] = ["recovery", "export", "dvm", "--to", "vmre", "--copy"];
const REINSTATE: [&str; 3] = ["recovery", "reinstate", "dvm"];
const REINSTATE_AND_KEEP: [&str; 4] = ["recovery", "reinstate", "dvm", "--keep-original"];
const COMMIT: [&str; 3] = ["recovery", "commit", "dvm"];
const ROLLBACK: [&str; 4] = ["recovery", "rollback", "dvm", "--stop"];
const ABORT: [&str; 3] = ["recovery", "abort", "dvm"];
const OFF: [&str; 4] = ["vm", "stop", "dvm", "--force"];

/// Where a repair writes, and how much, in bytes.
const REPAIRED: (u64, u64) = (3 << 20, 1 << 20);

/// Everything of the VM, but for the moments at which its files were written.
type Print = std::collections::BTreeMap<String, String>;

fn world() -> Result<World> {
    let world = World::new()?;
    world.create_blank("dvm", &["--memory", "256"])?;
    world.create_blank("vmre", &["--memory", "1024", "--nested"])?;
    Ok(world)
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
    for export in [&EXPORT[..], &EXPORT_COPY] {
        for (_, at) in &points {
            world.dies_at(export, at)?;
            world.admin(export)?.ok().with_context(|| format!("again after {at}"))?;
            world.admin(&ABORT)?.ok()?;
            unchanged(&world, &before, at)?;

            world.dies_at(export, at)?;
            world.admin(&ABORT)?.ok().with_context(|| format!("abort after {at}"))?;
            unchanged(&world, &before, at)?;
            println!("  survived: {at}");
        }
    }
    world.admin(&["vm", "start", "dvm"])?.ok()?;
    world.admin(&OFF)?.ok()?;
    world.close()
}

/// A world whose VM has a gigabyte to copy, and that VM as it is.
fn large() -> Result<(World, Print)> {
    let world = World::new()?;
    world.create_large("dvm", 1024)?;
    world.create_blank("vmre", &["--memory", "1024", "--nested"])?;
    let before = world.fingerprint("vms/dvm")?;
    Ok((world, before))
}

/// Ctrl-C in the middle of the copy, to the garage or to a file: the work stops, nothing half-made is left, and the same
/// command goes on.
#[test]
fn an_export_can_be_stopped_and_gone_on_with() -> Result<()> {
    let (world, before) = large()?;
    let folder = world.fabric("carried");
    std::fs::create_dir(&folder)?;
    let file = path(&folder.join("dvm.vhdx"));
    for export in [&EXPORT_COPY[..], &["recovery", "export", "dvm", "--to-file", &file]] {
        stop_and_go_on(&world, export).with_context(|| format!("{export:?}"))?;
        ensure!(names(&folder)?.is_empty() == (export == EXPORT_COPY), "in the folder: {:?}", names(&folder)?);
        world.admin(&ABORT)?.ok()?;
        unchanged(&world, &before, "Ctrl-C")?;
    }
    world.close()
}

fn stop_and_go_on(world: &World, export: &[&str]) -> Result<()> {
    let status = stopped(world, export, "copying dvm", "not complete; run")?;
    let id = status["recovery_id"].as_str().context("no recovery")?;
    ensure!(!status.to_string().contains("rg-disk-made"), "a gigabyte was copied before Ctrl-C came: {status}");
    let left = names(&world.store().join("recoveries").join(id))?;
    ensure!(left == ["journal.json"], "left behind: {left:?}");
    ensure!(names(&world.fabric("carried"))?.is_empty(), "half a file is left");
    world.admin(export)?.ok().context("the same command again").map(drop)
}

/// On the way back the same: the original is what it was, whatever was copied beside it.
#[test]
fn a_reinstatement_can_be_stopped_and_gone_on_with() -> Result<()> {
    let (world, before) = large()?;
    world.admin(&EXPORT_COPY)?.ok()?;
    hand_back(&world, "dvm", &Plan::default(), |_| Ok(()))?;
    let stop = || stopped(&world, &REINSTATE, "copying disk 0 back", "on its way back; run");
    let original = world.fingerprint("vms/dvm")?;
    let status = stop()?;
    ensure!(!status.to_string().contains("\"copied\""), "a gigabyte was copied before Ctrl-C came: {status}");
    let now = world.fingerprint("vms/dvm")?;
    ensure!(original.iter().all(|(name, digest)| now.get(name) == Some(digest)), "the original changed");
    world.admin(&ABORT)?.ok().context("giving up")?;
    unchanged(&world, &before, "Ctrl-C")?;

    world.admin(&EXPORT_COPY)?.ok()?;
    hand_back(&world, "dvm", &Plan::default(), |_| Ok(()))?;
    stop()?;
    world.admin(&REINSTATE)?.ok().context("the same command again")?;
    start_and_stop(&world, "Ctrl-C")?;
    world.close()
}

/// Runs a command until it says `mark`, presses Ctrl-C, and waits until nothing works on the VM any more. The status then
/// `says` how to go on.
fn stopped(world: &World, command: &[&str], mark: &str, says: &str) -> Result<Value> {
    let (client, _) = Service::start("the command", &mut world.admin_command(command)?, mark, Duration::from_secs(60))?;
    // A gigabyte is copied in less time than a signal may need: the agent stands still until its client has gone.
    let agent = rustix::process::Pid::from_raw(i32::try_from(world.agent_pid()?)?).context("no agent")?;
    rustix::process::kill_process(agent, rustix::process::Signal::STOP)?;
    let gone = client.interrupt(Duration::from_secs(30));
    rustix::process::kill_process(agent, rustix::process::Signal::CONT)?;
    gone?;
    // The agent lets go of the VM once it has noticed and cleaned up.
    let end = Instant::now() + Duration::from_secs(60);
    while world.admin_json(&["vm", "show", "dvm"])?["state"] == "busy" {
        ensure!(Instant::now() < end, "the agent goes on without its client");
        std::thread::sleep(Duration::from_millis(50));
    }
    let mut status = world.admin_json(&["recovery", "status", "dvm"])?;
    let status = status[0].take();
    let sentence = status["sentence"].as_str().unwrap_or_default();
    ensure!(sentence.contains(says), "the status does not say how to go on: {sentence}");
    Ok(status)
}

fn names(folder: &Path) -> Result<Vec<String>> {
    let entries = std::fs::read_dir(folder)?;
    Ok(entries
        .map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()))
        .collect::<std::io::Result<_>>()?)
}

/// A recovery that is handed back, in overlay mode with a repaired disk; and the VM as it was before.
fn prepare(world: &World, export: &[&str]) -> Result<Print> {
    let before = world.fingerprint("vms/dvm")?;
    world.admin(export)?.ok()?;
    if export == EXPORT {
        repair(world, "dvm", REPAIRED.0, REPAIRED.1)?;
    }
    hand_back(world, "dvm", &Plan::default(), |_| Ok(()))?;
    Ok(before)
}

/// The VM's disk is one file again, with what was on it and, in overlay mode, with the repair.
fn repaired(world: &World, export: &[&str], at: &str) -> Result<()> {
    let spec = std::fs::read_to_string(world.store().join("vms/dvm/vm.json"))?;
    ensure!(!spec.contains("backing"), "after {at} the overlay is still there: {spec}");
    let bytes = world.disk("dvm")?;
    ensure!(bytes[1 << 20..].starts_with(b"the disk of dvm"), "after {at} the disk's old contents are gone");
    if export == EXPORT {
        let (offset, length) = (usize::try_from(REPAIRED.0)?, usize::try_from(REPAIRED.1)?);
        ensure!(bytes[offset..offset + length].iter().all(|b| *b == 77), "after {at} the repair is gone");
    }
    let left = names(&world.store().join("vms/dvm"))?;
    ensure!(!left.iter().any(|name| name.contains("repair") || name == "returned"), "after {at} left: {left:?}");
    Ok(())
}

/// The same command again. What a killed agent started runs on without an owner; where the command must direct it, it
/// says so, and goes on once that is ended.
fn again(world: &World, args: &[&str], at: &str) -> Result<()> {
    let done = world.admin(args)?;
    if done.code == WRONG_STATE && done.stderr.contains("of an earlier agent") {
        world.admin(&OFF)?.ok()?;
        world.admin(args)?.ok().with_context(|| format!("again after {at}, without the orphan"))?;
        return Ok(());
    }
    done.ok().with_context(|| format!("again after {at}")).map(drop)
}

/// It starts, and the next one can be prepared.
fn start_and_stop(world: &World, at: &str) -> Result<()> {
    world.admin(&OFF)?.ok()?;
    world.admin(&["vm", "start", "dvm"])?.ok().with_context(|| format!("a start after {at}"))?;
    world.admin(&OFF)?.ok().map(drop)
}

fn survive_reinstate(export: &[&str]) -> Result<()> {
    let mut world = world()?;
    let points = points("reinstate");
    ensure!(points.len() == 14, "the steps of a reinstatement: {points:?}");
    for (step, at) in points {
        let closed = step == Step::Closed && at.ends_with("after");
        // Given up.
        let before = prepare(&world, export)?;
        world.dies_at(&REINSTATE, &at)?;
        let aborted = world.admin(&ABORT)?;
        if closed {
            ensure!(aborted.code == NOT_FOUND, "a closed recovery is aborted: {}", aborted.stdout);
        } else if step == Step::Closed || step == Step::Merged {
            // There is no original any more, and the repaired one runs: no way back, and it says so.
            ensure!(aborted.code != 0, "aborted without an original: {}", aborted.stdout);
            again(&world, &REINSTATE, &at)?;
        } else {
            aborted.ok().with_context(|| format!("abort after {at}"))?;
            unchanged(&world, &before, &at)?;
        }
        world.admin(&OFF)?.ok()?;
        // Gone on with.
        prepare(&world, export)?;
        world.dies_at(&REINSTATE, &at)?;
        if closed {
            let again = world.admin(&REINSTATE)?;
            ensure!(again.code == NOT_FOUND, "a closed recovery is closed again: {}", again.stdout);
        } else {
            again(&world, &REINSTATE, &at)?;
        }
        start_and_stop(&world, &at)?;
        repaired(&world, export, &at)?;
        println!("  survived: {at}");
    }
    world.close()
}

#[test]
fn a_reinstatement_of_a_copy_survives_its_agent() -> Result<()> {
    survive_reinstate(&EXPORT_COPY)
}

#[test]
fn a_reinstatement_of_an_overlay_survives_its_agent() -> Result<()> {
    survive_reinstate(&EXPORT)
}

/// `reinstate --keep-original`, then `commit` or `rollback`: killed at every step, each goes on to its end.
#[test]
fn a_kept_original_survives_its_agent() -> Result<()> {
    let mut world = world()?;
    for export in [&EXPORT[..], &EXPORT_COPY] {
        for (_, at) in points("reinstate --keep-original") {
            let before = prepare(&world, export)?;
            world.dies_at(&REINSTATE_AND_KEEP, &at)?;
            again(&world, &REINSTATE_AND_KEEP, &at)?;
            world.admin(&OFF)?.ok()?;
            world.admin(&ROLLBACK)?.ok().with_context(|| format!("rollback after {at}"))?;
            unchanged(&world, &before, &at)?;
            println!("  survived: {at}");
        }
        for (_, at) in points("rollback") {
            let before = prepare(&world, export)?;
            world.admin(&REINSTATE_AND_KEEP)?.ok()?;
            // It runs, and stops when it must.
            world.admin(&OFF)?.ok()?;
            world.dies_at(&ROLLBACK, &at)?;
            let again = world.admin(&ROLLBACK)?;
            let expected = if at.ends_with("after") { NOT_FOUND } else { 0 };
            ensure!(again.code == expected, "rollback again after {at}: {} {}", again.code, again.stderr);
            unchanged(&world, &before, &at)?;
            start_and_stop(&world, &at)?;
            println!("  survived: {at}");
        }
        for step in [Step::Merged, Step::Closed] {
            for at in [format!("{step}:before"), format!("{step}:after")] {
                prepare(&world, export)?;
                world.admin(&REINSTATE_AND_KEEP)?.ok()?;
                world.admin(&OFF)?.ok()?;
                world.dies_at(&COMMIT, &at)?;
                let again = world.admin(&COMMIT)?;
                let expected = if at == "closed:after" { NOT_FOUND } else { 0 };
                ensure!(again.code == expected, "commit again after {at}: {} {}", again.code, again.stderr);
                start_and_stop(&world, &at)?;
                repaired(&world, export, &at)?;
                println!("  survived, of commit: {at}");
            }
        }
    }
    world.close()
}
