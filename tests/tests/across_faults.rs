//! Across hosts, every write fails once: of the export to a file, of the attachment and the detachment on the garage's
//! host, and of the reinstatement from a file. Run again each completes, or `abort` gives everything back as it was.

use std::fs;

use anyhow::{Context, Result, ensure};
use drydock_tests::across::{Across, REPAIRED};
use drydock_tests::faults::{Faulty, failing_agent};
use drydock_tests::tenant::{Plan, hand_back_disk, repair_copy};
use drydock_tests::world::path;
use garage::Direction;

const ABORT: [&str; 3] = ["recovery", "abort", "dvm"];
const DETACH: [&str; 3] = ["recovery", "detach", "dvm"];
const OFF: [&str; 4] = ["vm", "stop", "dvm", "--force"];

#[test]
fn an_attachment_loses_nothing() -> Result<()> {
    let mut bench = Across::new(&["--nested"])?;
    let orders = failing_agent(&mut bench.second)?;
    let (second, there) = (&bench.second, path(&bench.there()));
    bench.export()?;
    fs::copy(bench.here(), bench.there())?;
    let before = second.fingerprint("vms/vmre")?;
    let unchanged = || {
        ensure!(second.fingerprint("vms/vmre")? == before, "the garage is not as it was");
        ensure!(bench.there().exists(), "the file that was carried here is gone");
        Ok(())
    };
    let run = |args: &[&str]| second.admin(args);
    let every_write = |args: &[&str], prepare: &dyn Fn() -> Result<()>, after: &dyn Fn() -> Result<()>| {
        Faulty { args, orders: &orders, run: &run }.every_write(prepare, |_| after())
    };

    let attach = ["recovery", "attach", &there, "--to", "vmre"];
    let count = every_write(&attach, &|| Ok(()), &|| {
        second.admin(&attach)?.ok().context("again")?;
        second.admin(&ABORT)?.ok().context("abort")?;
        unchanged()
    })?;
    ensure!(count > 3, "only {count} writes were found");
    let attached = || second.admin(&attach)?.ok().map(drop);
    every_write(&ABORT, &attached, &|| {
        if second.in_recovery("dvm")? {
            second.admin(&ABORT)?.ok().context("again")?;
        }
        unchanged()
    })?;

    attached()?;
    bench.handed_back()?;
    let handed_back = second.fabric("kept.vhdx");
    fs::copy(bench.there(), &handed_back)?;
    second.admin(&ABORT)?.ok()?;
    let attached_and_handed_back = || {
        fs::copy(bench.here(), bench.there())?;
        attached()?;
        fs::copy(&handed_back, bench.there()).map(drop).map_err(Into::into)
    };
    let count = every_write(&DETACH, &attached_and_handed_back, &|| {
        if second.in_recovery("dvm")? {
            second.admin(&DETACH)?.ok().context("again")?;
        }
        let manifest = garage::container::read(&bench.there())?.manifest;
        ensure!(manifest.direction == Direction::Handback, "what came out is not what was handed back");
        unchanged()
    })?;
    ensure!(count > 1, "only {count} writes were found");
    bench.close()
}

#[test]
fn an_export_to_a_file_and_its_return_lose_nothing() -> Result<()> {
    let mut bench = Across::new(&["--nested"])?;
    let orders = failing_agent(&mut bench.world)?;
    let (world, here) = (&bench.world, path(&bench.here()));
    let before = world.fingerprint("vms/dvm")?;
    let run = |args: &[&str]| world.admin(args);

    let export = ["recovery", "export", "dvm", "--to-file", &here];
    let count = Faulty { args: &export, orders: &orders, run: &run }.every_write(
        || Ok(()),
        |_| {
            world.admin(&export)?.ok().context("again")?;
            garage::container::read(&bench.here()).context("the RG disk")?;
            world.admin(&ABORT)?.ok().context("abort")?;
            ensure!(world.fingerprint("vms/dvm")? == before, "the VM changed");
            ensure!(!world.fabric("dvm.vhdx.partial").exists(), "half a file is left");
            bench.remove_files()
        },
    )?;
    ensure!(count > 10, "only {count} writes were found");

    let reinstate = ["recovery", "reinstate", "dvm", "--from", &here];
    let count = Faulty { args: &reinstate, orders: &orders, run: &run }.every_write(
        || {
            bench.export()?;
            repair_copy(&bench.here(), REPAIRED.0, REPAIRED.1)?;
            hand_back_disk(world, &bench.here(), &Plan::default(), |_| Ok(()))
        },
        |_| {
            if world.in_recovery("dvm")? {
                world.admin(&reinstate)?.ok().context("again")?;
            }
            world.admin(&OFF)?.ok()?;
            ensure!(world.disk_holds("dvm", REPAIRED.0, REPAIRED.1, 77)?, "the repair is gone");
            ensure!(world.disk("dvm")?[1 << 20..].starts_with(b"the disk of dvm"), "the old contents are gone");
            bench.remove_files()
        },
    )?;
    ensure!(count > 10, "only {count} writes were found");
    bench.close()
}
