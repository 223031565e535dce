//! Every write of every command in the garage, and of the tenant's grant, fails once, in turn for want of space and with
//! an input/output error. Each time the command says so, run again it completes, and nothing is left behind.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use drydock_tests::exit::WRONG_STATE;
use drydock_tests::faults::{Faulty, MOST, says_why};
use drydock_tests::garage::Garage;
use drydock_tests::process::Finished;
use drydock_tests::world::{World, path};
use garage::{Device, Direction};
use recovery::documents::read_grant;

const FINISH: [&str; 2] = ["recovery", "finish"];
const ABORT: [&str; 3] = ["recovery", "abort", "dvm"];

/// Fails each write of the command in turn, from the same beginning, and lets `after` look. Says how many there are.
fn every_write(garage: &Garage, from: &str, args: &[&str], after: impl Fn(&Finished) -> Result<()>) -> Result<u32> {
    let run = |args: &[&str]| garage.run(args);
    Faulty { args, orders: &garage.orders(), run: &run }.every_write(|| garage.restore(from), after)
}

/// The recovery key and everything of the VM are gone.
fn left_behind(garage: &Garage) -> Result<()> {
    for folder in ["store/guardians", "store/vms"] {
        let left: Vec<_> = fs::read_dir(garage.path(folder))?.flatten().map(|entry| entry.file_name()).collect();
        ensure!(left.is_empty(), "left in {folder}: {left:?}");
    }
    Ok(())
}

/// The RG disk is whole: either as it came, or handed back.
fn direction(garage: &Garage) -> Result<Direction> {
    let device = Device::open(&garage.rg_disk())?;
    let manifest = device.manifest()?;
    device.bundle()?;
    ensure!(manifest.receipt.is_some() == (manifest.direction == Direction::Handback), "a receipt too few or too many");
    Ok(manifest.direction)
}

fn finish(garage: &Garage) -> Result<()> {
    garage.run(&FINISH)?.ok().context("finish")?;
    ensure!(direction(garage)? == Direction::Handback, "the RG disk was not handed back");
    left_behind(garage)
}

fn is_open(garage: &Garage) -> Result<bool> {
    let status = garage.run(&["recovery", "status", "dvm", "--json"])?.ok()?.json()?;
    Ok(status["result"][0]["closed"] != true)
}

fn abort(garage: &Garage) -> Result<()> {
    garage.run(&ABORT)?.ok().context("abort")?;
    left_behind(garage)
}

#[test]
fn a_garage_loses_nothing() -> Result<()> {
    let world = World::new()?;
    world.create_blank("dvm", &["--memory", "256"])?;
    world.create_blank("vmre", &["--memory", "1024", "--nested"])?;
    world.admin(&["recovery", "export", "dvm", "--to", "vmre"])?.ok()?;
    let garage = Garage::new(&world, "dvm")?;
    let (key, request, grant) = (world.offline("vmre.pem"), world.offline("request"), world.offline("grant"));
    let (key, from, to) = (path(&key), path(&request), path(&grant));
    garage.run(&["garage", "init", "--out", &key])?.ok()?;
    world.tenant(&["garage", "import", &key, "--name", "vmre"])?.ok()?;
    garage.save("empty")?;

    let switch = ["--switch", drydock_tests::world::SWITCH];
    let import = [&["recovery", "import", "--out", &from], &switch[..]].concat();
    let count = every_write(&garage, "empty", &import, |_| {
        let shown = garage.run(&["vm", "start", "dvm"])?;
        ensure!(shown.code != 0, "it starts without a grant");
        let _ = fs::remove_file(&request);
        garage.run(&import)?.ok().context("again")?;
        ensure!(request.exists(), "no request");
        abort(&garage)
    })?;
    ensure!(count > 10, "only {count} writes were found");

    garage.restore("empty")?;
    garage.run(&import)?.ok()?;
    every_grant(&world, &from, &grant)?;
    garage.save("asked")?;
    let lower = ["recovery", "import", "--grant", &to];
    let count = every_write(&garage, "asked", &lower, |_| {
        garage.run(&lower)?.ok().context("again")?;
        let shown = garage.run(&["vm", "show", "dvm", "--json"])?.ok()?.json()?;
        ensure!(shown["result"]["policy"] == "encryption-supported", "not lowered: {shown}");
        ensure!(direction(&garage)? == Direction::Outbound, "the RG disk is handed back already");
        finish(&garage)
    })?;
    ensure!(count > 10, "only {count} writes were found");

    garage.restore("asked")?;
    garage.run(&lower)?.ok()?;
    garage.save("lowered")?;
    every_write(&garage, "lowered", &ABORT, |_| {
        if is_open(&garage)? {
            abort(&garage)?;
        }
        ensure!(direction(&garage)? == Direction::Outbound, "an abort hands back");
        left_behind(&garage)
    })?;
    let count = every_write(&garage, "lowered", &FINISH, |_| {
        direction(&garage)?;
        if is_open(&garage)? {
            finish(&garage)?;
        }
        ensure!(direction(&garage)? == Direction::Handback, "the RG disk was not handed back");
        left_behind(&garage)
    })?;
    ensure!(count > 10, "only {count} writes were found");

    // Nor does the host find anything wanting.
    garage.hand_in(&world, "dvm")?;
    world.admin(&["recovery", "reinstate", "dvm"])?.ok()?;
    world.admin(&["vm", "stop", "dvm", "--force"])?.ok()?;
    garage.close()?;
    world.close()
}

/// The tenant's side, on files: failed and killed at each write there is a whole grant or none, and a way on.
fn every_grant(world: &World, from: &str, grant: &Path) -> Result<()> {
    let (orders, to) = (world.offline("orders"), path(grant));
    let args = ["recovery", "grant", from, "--owner", "tenant", "--yes", "--out", &to];
    for error in ["ENOSPC", "EIO", "KILL"] {
        for nth in 1..MOST {
            fs::write(&orders, format!("{nth} {error}"))?;
            let done = world.tenant_with(&args, &[(fault::VARIABLE, &path(&orders))])?;
            if orders.exists() {
                fs::remove_file(&orders)?;
                done.ok()?;
                ensure!(nth > 2, "only {} writes were found", nth - 1);
                break;
            }
            let at = format!("write {nth} of the grant, {error}");
            ensure!(done.code != 0, "{at}: nothing is said");
            if error != "KILL" {
                says_why(&done).with_context(|| at.clone())?;
                ensure!(!grant.exists(), "{at}: a grant is left that was not given");
            }
            if grant.exists() {
                read_grant(&at, &fs::read(grant)?)?;
                ensure!(world.tenant(&args)?.code == WRONG_STATE, "{at}: the grant is replaced");
            } else {
                world.tenant(&args)?.ok().with_context(|| format!("again after {at}"))?;
            }
            fs::remove_file(grant)?;
        }
        fs::remove_file(grant)?;
    }
    world.tenant(&args)?.ok().map(drop)
}
