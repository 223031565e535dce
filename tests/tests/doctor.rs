//! `drydock doctor` on a good host, and on hosts that each lack one thing: it names that, and how to get it.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use drydock_tests::exit::WRONG_STATE;
use drydock_tests::process::run;
use drydock_tests::world::{World, drydock, path};
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(120);

/// Outcome and remedy of each check, and the exit code.
struct Report {
    checks: BTreeMap<String, (String, String)>,
    code: i32,
}

impl Report {
    fn of(mut command: Command) -> Result<Self> {
        let done = run(&mut command, b"", LIMIT)?;
        let line = done.stdout.lines().next().with_context(|| format!("no report: {}", done.stderr))?;
        let value: Value = serde_json::from_str(line)?;
        let checks = value["result"]["checks"].as_array().with_context(|| format!("no checks: {line}"))?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let checks =
            checks.iter().map(|check| (text(&check["name"]), (text(&check["outcome"]), text(&check["fix"])))).collect();
        Ok(Report { checks, code: done.code })
    }

    fn outcome(&self, name: &str) -> &str {
        self.checks.get(name).map_or("", |(outcome, _)| outcome)
    }

    /// These fail, with a remedy that says so; everything else does not.
    fn expect(&self, what: &str, failing: &[(&str, &str)]) -> Result<()> {
        for (name, says) in failing {
            let (outcome, fix) = self.checks.get(*name).with_context(|| format!("{what}: there is no check {name}"))?;
            ensure!(outcome == "FAIL", "{what}: {name}: {outcome}");
            ensure!(fix.contains(says), "{what}: {name}: the remedy does not say {says:?}: {fix}");
        }
        let others: Vec<_> = self.checks.iter().filter(|(name, _)| !failing.iter().any(|(f, _)| f == name)).collect();
        ensure!(others.iter().all(|(_, (outcome, _))| outcome != "FAIL"), "{what}: more fails: {others:?}");
        let code = if failing.is_empty() { 0 } else { WRONG_STATE };
        ensure!(self.code == code, "{what}: exit code {}", self.code);
        println!("  {what}");
        Ok(())
    }
}

fn doctor(world: &World, store: &Path) -> Result<Command> {
    let ca = path(&world.fabric("hgs/hgs-ca.pem"));
    let hgs = "https://127.0.0.1:8443";
    world.admin_command(&["doctor", "--json", "--hgs", hgs, "--hgs-ca", &ca, "--store", &path(store)])
}

/// A folder of programs as they are, but without `without`.
fn programs(folder: &Path, without: &[&str]) -> Result<()> {
    fs::create_dir(folder)?;
    for program in ["qemu-system-x86_64", "qemu-img", "qemu-nbd", "swtpm", "setpriv", "ip"] {
        if !without.contains(&program) {
            let paths = std::env::var_os("PATH").unwrap_or_default();
            let found = std::env::split_paths(&paths).map(|dir| dir.join(program)).find(|file| file.is_file());
            symlink(found.with_context(|| format!("{program} is not installed"))?, folder.join(program))?;
        }
    }
    Ok(())
}

#[test]
fn each_missing_thing_is_named() -> Result<()> {
    let mut world = World::new()?;
    let store = world.store();
    let before = world.fingerprint("")?;
    let good = Report::of(doctor(&world, &store)?)?;
    good.expect("a good host passes", &[])?;
    for name in ["HGS", "attestation", "clock", "health", "fabric guardian", "qemu versions", "firmware", "store"] {
        ensure!(good.outcome(name) == "PASS", "{name}: {}", good.outcome(name));
    }
    ensure!(world.fingerprint("")? == before, "the doctor changed the store");

    let nowhere = world.fabric("nowhere");
    let report = Report::of(doctor(&world, &nowhere)?)?;
    report.expect("a host without a store", &[("store", "host init"), ("HGS", "host init")])?;
    ensure!(!nowhere.exists(), "the doctor made a store");

    fs::set_permissions(&store, fs::Permissions::from_mode(0o755))?;
    let open = Report::of(doctor(&world, &store)?)?;
    fs::set_permissions(&store, fs::Permissions::from_mode(0o700))?;
    open.expect("a store that others can enter", &[("store", "chmod 700"), ("HGS", "chmod 700")])?;

    let without = world.fabric("without-swtpm");
    programs(&without, &["swtpm"])?;
    let mut command = doctor(&world, &store)?;
    command.env("PATH", &without);
    Report::of(command)?.expect("a host without swtpm", &[("swtpm", "apt-get install swtpm")])?;

    let older = world.fabric("older-qemu-img");
    programs(&older, &["qemu-img"])?;
    fs::write(older.join("qemu-img"), "#!/bin/sh\necho 'qemu-img version 7.2.17 (Debian)'\n")?;
    fs::set_permissions(older.join("qemu-img"), fs::Permissions::from_mode(0o755))?;
    let mut command = doctor(&world, &store)?;
    command.env("PATH", &older);
    Report::of(command)?.expect("QEMU of two releases", &[("qemu versions", "same release")])?;

    let hgs = path(&world.fabric("hgs"));
    world.admin(&["hgs", "remove-host", "host-1", "--dir", &hgs])?.ok()?;
    let stranger = Report::of(doctor(&world, &store)?)?;
    stranger.expect("a host that the service does not know", &[("attestation", "add-host")])?;
    world.admin(&["hgs", "add-host", "host-1", &path(&world.fabric("host.pub.pem")), "--dir", &hgs])?.ok()?;

    let mut two = doctor(&world, &store)?;
    two.args(["--hgs", "https://127.0.0.1:9443"]);
    let two = Report::of(two)?;
    ensure!(two.code == WRONG_STATE && two.outcome("attestation") == "PASS", "one node of two is gone");

    world.kill_hgs();
    let alone = Report::of(doctor(&world, &store)?)?;
    alone.expect("no service", &[("HGS", "hgs serve"), ("attestation", "hgs serve")])?;

    // Another network namespace: no bridge, and nobody else either.
    let mut command = Command::new("unshare");
    command.arg("--net").arg(drydock()?).args(["doctor", "--json", "--store"]).arg(&store);
    Report::of(command)?.expect("no bridge", &[("bridge", "type bridge")])?;
    world.close()
}

#[test]
fn a_small_disk_and_small_rights_are_named() -> Result<()> {
    let world = World::on_small_store(64)?;
    Report::of(doctor(&world, &world.store())?)?.expect("a small file system", &[("space", "MiB free")])?;

    // A copy that another user can run, and a store of theirs.
    let folder = tempfile::Builder::new().permissions(fs::Permissions::from_mode(0o755)).tempdir()?;
    let program = folder.path().join("drydock");
    fs::copy(drydock()?, &program)?;
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&program);
    command.args(["doctor", "--json", "--store"]).arg(world.store());
    let report = Report::of(command)?;
    ensure!(report.code == WRONG_STATE && report.outcome("rights") == "FAIL", "rights: {}", report.outcome("rights"));
    ensure!(report.outcome("store") == "FAIL", "somebody else's store: {}", report.outcome("store"));
    world.close()
}
