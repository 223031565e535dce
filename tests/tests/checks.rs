//! Every check that a command makes before it changes anything, each with an attempt that only this check stops.

use std::fs;

use anyhow::{Context, Result};
use drydock_tests::denial::Denials;
use drydock_tests::exit::{BAD_INPUT, KEY_RELEASE, NO_SPACE, NOT_FOUND, REFUSED, UNREACHABLE, WRONG_STATE};
use drydock_tests::world::{World, path};

#[test]
fn an_export_checks_before_it_changes() -> Result<()> {
    let world = World::new()?;
    world.add_switch("br1")?;
    world.create_blank("dvm", &["--memory", "256"])?;
    world.create_blank("vmre", &["--memory", "1024", "--nested"])?;
    world.create_blank("flat", &["--memory", "1024"])?;
    world.create_blank("tiny", &["--memory", "512", "--nested"])?;
    world.create_blank("open", &["--memory", "1024", "--policy", "encryption-supported"])?;
    world.create_blank_on("elsewhere", "br1", &["--memory", "1024", "--nested"])?;
    let before = (world.fingerprint("vms")?, world.fingerprint("recoveries")?);
    let mut denials = Denials::default();
    let mut export = |name: &str, code, says: &str, args: &[&str]| {
        let mut all = vec!["recovery", "export"];
        all.extend(args);
        denials.expect(name, code, says, world.admin(&all));
    };
    export("an unknown VM", NOT_FOUND, "nosuch", &["nosuch", "--to", "vmre"]);
    export("an unknown garage", NOT_FOUND, "nosuch", &["dvm", "--to", "nosuch"]);
    export("a VM into itself", BAD_INPUT, "its own repair garage", &["dvm", "--to", "dvm"]);
    export("a VM that is not shielded", REFUSED, "open is not shielded", &["open", "--to", "vmre"]);
    export("a garage that is not shielded", REFUSED, "open is not shielded", &["dvm", "--to", "open"]);
    export("a garage on another switch", BAD_INPUT, "different bridges", &["dvm", "--to", "elsewhere"]);
    export("a garage with too little memory", NO_SPACE, "tiny has 512 MiB", &["dvm", "--to", "tiny"]);
    world.admin(&["vm", "start", "dvm"])?.ok()?;
    export("a VM that runs", WRONG_STATE, "dvm is running", &["dvm", "--to", "vmre"]);
    world.admin(&["vm", "stop", "dvm", "--force"])?.ok()?;
    world.admin(&["vm", "start", "flat"])?.ok()?;
    export("a running garage that cannot nest", WRONG_STATE, "without nested", &["dvm", "--to", "flat"]);
    world.admin(&["vm", "stop", "flat", "--force"])?.ok()?;
    let after = (world.fingerprint("vms/vmre")?, world.fingerprint("recoveries")?);
    let of_vmre: std::collections::BTreeMap<_, _> = before
        .0
        .iter()
        .filter_map(|(name, digest)| Some((name.strip_prefix("vmre/")?.to_owned(), digest.clone())))
        .collect();
    denials.note("the garage is as it was", (after.0 == of_vmre).then_some(()).context("it changed"));
    denials.note("there is no recovery", (after.1 == before.1).then_some(()).context("there is"));

    // The control: nothing but those checks stood in the way. And then the ones of a recovery under way.
    world.admin_json(&["recovery", "export", "dvm", "--to", "vmre"])?;
    let mut refuse = |name: &str, code, says: &str, args: &[&str]| denials.expect(name, code, says, world.admin(args));
    refuse(
        "a second garage for one VM",
        WRONG_STATE,
        "in recovery in vmre",
        &["recovery", "export", "dvm", "--to", "flat"],
    );
    refuse("starting a VM in recovery", WRONG_STATE, "cannot be started", &["vm", "start", "dvm"]);
    refuse("deleting a VM in recovery", WRONG_STATE, "cannot be deleted", &["vm", "delete", "dvm", "--yes"]);
    refuse("reinstating what is not finished", WRONG_STATE, "has not handed", &["recovery", "reinstate", "dvm"]);
    refuse("reinstating what is not in recovery", NOT_FOUND, "not in recovery", &["recovery", "reinstate", "flat"]);
    refuse("aborting what is not in recovery", NOT_FOUND, "not in recovery", &["recovery", "abort", "flat"]);
    refuse("importing on a guarded host", REFUSED, "guarded host", &["recovery", "import"]);
    refuse("finishing on a guarded host", REFUSED, "guarded host", &["recovery", "finish"]);
    world.admin(&["recovery", "abort", "dvm"])?.ok()?;
    world.admin(&["vm", "start", "dvm"])?.ok().context("after the abort")?;
    world.admin(&["vm", "stop", "dvm", "--force"])?.ok()?;
    denials.close();
    world.close()
}

#[test]
fn a_full_file_system_stops_an_export_before_it_begins() -> Result<()> {
    let world = World::on_small_store(64)?;
    world.create_blank("dvm", &["--memory", "256"])?;
    world.create_blank("vmre", &["--memory", "1024", "--nested"])?;
    let before = world.fingerprint("vms")?;
    let mut denials = Denials::default();
    let done = world.admin(&["recovery", "export", "dvm", "--to", "vmre"]);
    denials.expect("an RG disk that does not fit", NO_SPACE, "MiB are free", done);
    let file = path(&world.store().join("rg.vhdx"));
    let done = world.admin(&["recovery", "export", "dvm", "--to-file", &file]);
    denials.expect("a file that does not fit", NO_SPACE, "MiB are free", done);
    denials.note("nothing changed", (world.fingerprint("vms")? == before).then_some(()).context("it did"));
    denials.close();
    world.close()
}

#[test]
fn no_key_no_start() -> Result<()> {
    let mut world = World::new()?;
    world.create_blank("dvm", &["--memory", "256"])?;
    let mut denials = Denials::default();
    world.kill_hgs();
    denials.expect("no HGS", KEY_RELEASE, "https://127.0.0.1:8443", world.admin(&["vm", "start", "dvm"]));
    world.start_hgs()?;
    let hgs = path(&world.fabric("hgs"));
    world.admin(&["hgs", "remove-host", "host-1", "--dir", &hgs])?.ok()?;
    denials.expect("a host that is trusted no longer", KEY_RELEASE, "add-host", world.admin(&["vm", "start", "dvm"]));
    let key = path(&world.fabric("host.pub.pem"));
    world.admin(&["hgs", "add-host", "host-1", &key, "--dir", &hgs])?.ok()?;
    world.admin(&["vm", "start", "dvm"])?.ok().context("the control")?;
    world.admin(&["vm", "stop", "dvm", "--force"])?.ok()?;
    denials.close();
    world.close()
}

/// The first node of two is gone, comes back, and refuses: an answer is taken from whoever gives one, a refusal too.
#[test]
fn another_node_answers_for_one_that_is_gone() -> Result<()> {
    let mut world = World::new()?;
    world.create_blank("dvm", &["--memory", "256"])?;
    let hgs = path(&world.fabric("hgs"));
    let second = world.serve("the second node", &["hgs", "serve", "--listen", "127.0.0.1:9443", "--dir", &hgs])?;
    world.kill_agent()?;
    world.start_agent_of(&["https://127.0.0.1:8443", "https://127.0.0.1:9443"], &[])?;
    let start_and_stop = |world: &World| -> Result<()> {
        world.admin(&["vm", "start", "dvm"])?.ok()?;
        world.admin(&["vm", "stop", "dvm", "--force"])?.ok().map(drop)
    };
    start_and_stop(&world).context("both nodes")?;
    world.kill_hgs();
    start_and_stop(&world).context("the second node alone")?;

    let mut denials = Denials::default();
    drop(second);
    let silence = world.admin(&["vm", "start", "dvm"])?;
    denials.expect("no node at all", KEY_RELEASE, "https://127.0.0.1:9443", Ok(silence.clone()));
    denials.expect("no node at all, the other one", KEY_RELEASE, "https://127.0.0.1:8443", Ok(silence));

    // The host is taken off the list; somebody's own service has it on theirs.
    world.start_hgs()?;
    world.admin(&["hgs", "remove-host", "host-1", "--dir", &hgs])?.ok()?;
    let other = path(&world.fabric("other-hgs"));
    world.admin(&["hgs", "init", "--dir", &other])?.ok()?;
    world.admin(&["hgs", "add-host", "host-1", &path(&world.fabric("host.pub.pem")), "--dir", &other])?.ok()?;
    world.kill_agent()?;
    world.start_agent_of(&["https://127.0.0.1:8443", "https://127.0.0.1:9443"], &[])?;
    let third = world.serve("another service", &["hgs", "serve", "--listen", "127.0.0.1:9443", "--dir", &other])?;
    let refused = world.admin(&["vm", "start", "dvm"])?;
    denials.note(
        "nobody else is asked after a refusal",
        (!refused.stderr.contains("9443")).then_some(()).context(refused.stderr.clone()),
    );
    denials.expect("a refusal at the first node", KEY_RELEASE, "UnauthorizedHost", Ok(refused));
    drop(third);
    denials.close();
    world.close()
}

/// The fabric admin edits the VM's files. Nothing that is not what the owner sealed starts.
#[test]
fn edited_files_do_not_start() -> Result<()> {
    let world = World::new()?;
    world.create_blank("dvm", &["--memory", "256"])?;
    world.create_blank("other", &["--memory", "256"])?;
    let mut denials = Denials::default();
    let vm = world.store().join("vms/dvm");
    let other = world.store().join("vms/other");
    let mut attempt = |name: &str, code, says: &str, spoil: &dyn Fn() -> Result<()>| {
        let kept = tempfile::tempdir()?;
        let copy = kept.path().join("dvm");
        copy_dir(&vm, &copy)?;
        let done = spoil().context("spoiling").and_then(|()| world.admin(&["vm", "start", "dvm"]));
        denials.expect(name, code, says, done);
        fs::remove_dir_all(&vm)?;
        copy_dir(&copy, &vm)
    };
    let edit = |from: &'static str, to: &'static str| {
        let file = vm.join("vm.json");
        move || -> Result<()> {
            let text = fs::read_to_string(&file)?;
            anyhow::ensure!(text.contains(from), "vm.json has no {from}");
            Ok(fs::write(&file, text.replacen(from, to, 1))?)
        }
    };
    let flip = |file: &'static str, at: usize| {
        let file = vm.join(file);
        move || -> Result<()> {
            let mut bytes = fs::read(&file)?;
            bytes[at] ^= 1;
            Ok(fs::write(&file, bytes)?)
        }
    };
    let swap = |file: &'static str| {
        let (from, to) = (other.join(file), vm.join(file));
        move || -> Result<()> { Ok(fs::copy(&from, &to).map(drop)?) }
    };
    attempt("a lowered policy", REFUSED, "'policy'", &edit("\"shielded\"", "\"encryption-supported\""))?;
    attempt("another MAC address", REFUSED, "'nics'", &edit("\"52:54:00:", "\"52:54:01:"))?;
    attempt("another disk's serial number", REFUSED, "'disks'", &edit("\"serial\": \"", "\"serial\": \"0"))?;
    attempt(
        "a field that does not exist",
        BAD_INPUT,
        "vm.json",
        &edit("\"nested\"", "\"extra_args\": \"-s\", \"nested\""),
    )?;
    attempt("a vm.json cut short", BAD_INPUT, "vm.json", &|| Ok(fs::write(vm.join("vm.json"), "{\"name\":\"dv")?))?;
    attempt("a flipped bit in the sealed record", REFUSED, "sealed state", &flip("slots/1/record.sealed", 60))?;
    attempt("no sealed record", REFUSED, "sealed state", &|| Ok(fs::remove_file(vm.join("slots/1/record.sealed"))?))?;
    attempt("another VM's sealed record", REFUSED, "sealed state", &swap("slots/1/record.sealed"))?;
    attempt("a flipped bit in the key protector", BAD_INPUT, "protector.xml", &flip("slots/1/protector.xml", 900))?;
    attempt("another VM's key protector", REFUSED, "sealed state", &swap("slots/1/protector.xml"))?;
    attempt("another slot number", BAD_INPUT, "slots/2", &|| Ok(fs::write(vm.join("current"), "2\n")?))?;
    attempt("a slot number that is none", BAD_INPUT, "current", &|| Ok(fs::write(vm.join("current"), "../../x\n")?))?;
    world.admin(&["vm", "start", "dvm"])?.ok().context("the control")?;
    world.admin(&["vm", "stop", "dvm", "--force"])?.ok()?;
    denials.close();
    world.close()
}

#[test]
fn a_console_is_for_encryption_supported_vms_only() -> Result<()> {
    let world = World::new()?;
    world.create_blank("closed", &["--memory", "256"])?;
    world.create_blank("open", &["--memory", "256", "--policy", "encryption-supported"])?;
    let mut denials = Denials::default();
    denials.expect("a shielded VM that is off", REFUSED, "has no console", world.admin(&["vm", "console", "closed"]));
    world.admin(&["vm", "start", "closed"])?.ok()?;
    world.admin(&["vm", "start", "open"])?.ok()?;
    denials.expect("a shielded VM that runs", REFUSED, "has no console", world.admin(&["vm", "console", "closed"]));
    // The files may say what they want: the policy that it was started with counts.
    let file = world.store().join("vms/closed/vm.json");
    let text = fs::read_to_string(&file)?;
    fs::write(&file, text.replace("\"shielded\"", "\"encryption-supported\""))?;
    denials.expect("with its file edited", REFUSED, "has no console", world.admin(&["vm", "console", "closed"]));
    fs::write(&file, text)?;
    // The control.
    let mut console = drydock_tests::console::Console::open(&mut world.admin_command(&["vm", "console", "open"])?)?;
    console.expect("BdsDxe", std::time::Duration::from_secs(120)).context("the control")?;
    drop(console);
    for vm in ["closed", "open"] {
        world.admin(&["vm", "stop", vm, "--force"])?.ok()?;
    }
    denials.close();
    world.close()
}

/// An agent that is killed leaves its VMs running; the next one knows them, starts none twice, and can end them.
#[test]
fn a_killed_agent_loses_no_vm() -> Result<()> {
    let mut world = World::new()?;
    world.create_blank("dvm", &["--memory", "256"])?;
    world.admin(&["vm", "start", "dvm"])?.ok()?;
    let pid = world.admin_json(&["vm", "show", "dvm"])?["pid"].clone();
    world.kill_agent()?;
    let mut denials = Denials::default();
    denials.expect("a command without an agent", UNREACHABLE, "agent", world.admin(&["vm", "list"]));
    world.start_agent()?;
    let shown = world.admin_json(&["vm", "show", "dvm"])?;
    anyhow::ensure!(shown["state"] == "orphaned" && shown["pid"] == pid, "not recognised: {shown}");
    denials.expect("starting it a second time", WRONG_STATE, "still runs", world.admin(&["vm", "start", "dvm"]));
    denials.expect("deleting it", WRONG_STATE, "runs", world.admin(&["vm", "delete", "dvm", "--yes"]));
    world.admin(&["vm", "stop", "dvm", "--force"])?.ok()?;
    anyhow::ensure!(world.admin_json(&["vm", "show", "dvm"])?["state"] == "off", "it still runs");
    world.admin(&["vm", "start", "dvm"])?.ok().context("the control")?;
    world.admin(&["vm", "stop", "dvm", "--force"])?.ok()?;
    denials.close();
    world.close()
}

fn copy_dir(from: &std::path::Path, to: &std::path::Path) -> Result<()> {
    let mut command = std::process::Command::new("cp");
    command.arg("-a").arg(from).arg(to);
    drydock_tests::process::run(&mut command, b"", std::time::Duration::from_secs(60))?.ok().map(drop)
}
