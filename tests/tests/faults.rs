//! Every write of every command on the host fails once, in turn for want of space and with an input/output error. Each
//! time the command says so and changes nothing for good: run again it completes, or `abort` gives the VM back as it was.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use drydock_tests::faults::{Faulty, failing_agent};
use drydock_tests::tenant::{Plan, hand_back, repair};
use drydock_tests::world::World;

const EXPORT: [&str; 5] = ["recovery", "export", "dvm", "--to", "vmre"];
const EXPORT_COPY: [&str; 6] = ["recovery", "export", "dvm", "--to", "vmre", "--copy"];
const REINSTATE: [&str; 3] = ["recovery", "reinstate", "dvm"];
const KEEP: [&str; 4] = ["recovery", "reinstate", "dvm", "--keep-original"];
const COMMIT: [&str; 3] = ["recovery", "commit", "dvm"];
const ROLLBACK: [&str; 4] = ["recovery", "rollback", "dvm", "--stop"];
const ABORT: [&str; 3] = ["recovery", "abort", "dvm"];
const OFF: [&str; 4] = ["vm", "stop", "dvm", "--force"];

/// A fabric whose agent fails the writes that are ordered.
struct Bench {
    world: World,
    orders: PathBuf,
}

impl Bench {
    fn new() -> Result<Self> {
        let mut world = World::new()?;
        let orders = failing_agent(&mut world)?;
        world.create_blank("dvm", &["--memory", "256"])?;
        world.create_blank("vmre", &["--memory", "1024", "--nested"])?;
        Ok(Bench { world, orders })
    }

    fn every_write(
        &self,
        args: &[&str],
        prepare: impl Fn(&World) -> Result<()>,
        after: impl Fn(&World) -> Result<()>,
    ) -> Result<u32> {
        let run = |args: &[&str]| self.world.admin(args);
        Faulty { args, orders: &self.orders, run: &run }.every_write(|| prepare(&self.world), |_| after(&self.world))
    }
}

fn handed_back(world: &World) -> Result<()> {
    world.admin(&EXPORT)?.ok()?;
    repair(world, "dvm", 3 << 20, 1 << 20)?;
    hand_back(world, "dvm", &Plan::default(), |_| Ok(()))
}

#[test]
fn an_export_loses_nothing() -> Result<()> {
    let bench = Bench::new()?;
    let before = bench.world.fingerprint("vms/dvm")?;
    let unchanged = |world: &World| {
        ensure!(world.fingerprint("vms/dvm")? == before, "the VM changed");
        Ok(())
    };
    for export in [&EXPORT[..], &EXPORT_COPY] {
        let count = bench.every_write(
            export,
            |_| Ok(()),
            |world| {
                world.admin(export)?.ok().context("again")?;
                world.admin(&ABORT)?.ok().context("abort")?;
                unchanged(world)
            },
        )?;
        ensure!(count > 10, "only {count} writes were found");
    }
    bench.every_write(
        &ABORT,
        |world| world.admin(&EXPORT)?.ok().map(drop),
        |world| {
            if world.in_recovery("dvm")? {
                world.admin(&ABORT)?.ok().context("again")?;
            }
            unchanged(world)
        },
    )?;
    bench.world.close()
}

#[test]
fn a_reinstatement_loses_nothing() -> Result<()> {
    let bench = Bench::new()?;
    let count = bench.every_write(&REINSTATE, handed_back, |world| {
        if world.in_recovery("dvm")? {
            world.admin(&REINSTATE)?.ok().context("again")?;
        }
        world.admin(&OFF)?.ok()?;
        let bytes = world.disk("dvm")?;
        ensure!(bytes[1 << 20..].starts_with(b"the disk of dvm"), "the disk's old contents are gone");
        ensure!(bytes[(3 << 20)..(4 << 20)].iter().all(|b| *b == 77), "the repair is gone");
        ensure!(!world.store().join("vms/dvm/disk-0.repair.qcow2").exists(), "the overlay is left");
        Ok(())
    })?;
    ensure!(count > 10, "only {count} writes were found");
    bench.world.close()
}

#[test]
fn a_kept_original_is_not_lost() -> Result<()> {
    let bench = Bench::new()?;
    let before = std::cell::RefCell::new(std::collections::BTreeMap::new());
    let kept = |world: &World| -> Result<()> {
        before.replace(world.fingerprint("vms/dvm")?);
        handed_back(world)?;
        world.admin(&KEEP)?.ok()?;
        world.admin(&OFF)?.ok().map(drop)
    };
    bench.every_write(&ROLLBACK, kept, |world| {
        if world.in_recovery("dvm")? {
            world.admin(&ROLLBACK)?.ok().context("again")?;
        }
        ensure!(world.fingerprint("vms/dvm")? == *before.borrow(), "the VM is not as it was");
        Ok(())
    })?;
    bench.every_write(&COMMIT, kept, |world| {
        if world.in_recovery("dvm")? {
            world.admin(&COMMIT)?.ok().context("again")?;
        }
        ensure!(world.disk_holds("dvm", 3 << 20, 1 << 20, 77)?, "the repair is gone");
        world.admin(&["vm", "start", "dvm"])?.ok()?;
        world.admin(&OFF)?.ok().map(drop)
    })?;
    bench.world.close()
}
