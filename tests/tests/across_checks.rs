//! What an export to a file, an attachment on another host and a reinstatement from a file check before they change
//! anything, each with an attempt that only this check stops.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use drydock_tests::denial::Denials;
use drydock_tests::exit::{BAD_INPUT, NO_SPACE, NOT_FOUND, REFUSED, USAGE, WRONG_STATE};
use drydock_tests::tenant::{Draft, Plan, forge, hand_back_disk};
use drydock_tests::world::{World, path};
use garage::{Manifest, Mode};
use machine::Policy;
use serde_json::{Value, json};
use uuid::Uuid;

#[test]
fn an_export_to_a_file_checks_before_it_changes() -> Result<()> {
    let world = World::new()?;
    world.create_blank("dvm", &["--memory", "256"])?;
    world.create_blank("open", &["--memory", "256", "--policy", "encryption-supported"])?;
    let before = world.fingerprint("recoveries")?;
    let mut denials = Denials::default();
    let file = path(&world.fabric("new.vhdx"));
    let mut export = |name: &str, code, says: &str, vm: &str, to: &[&str]| {
        denials.expect(name, code, says, world.admin(&[&["recovery", "export", vm], to].concat()));
    };
    export("an unknown VM", NOT_FOUND, "nosuch", "nosuch", &["--to-file", &file]);
    export("a VM that is not shielded", REFUSED, "open is not shielded", "open", &["--to-file", &file]);
    export("no destination", USAGE, "--to", "dvm", &[]);
    export("two destinations", USAGE, "--to", "dvm", &["--to-file", &file, "--to", "open"]);
    let taken = world.fabric("taken.vhdx");
    fs::write(&taken, "somebody's file")?;
    export("a file that exists", WRONG_STATE, "exists already", "dvm", &["--to-file", &path(&taken)]);
    let dangling = world.fabric("dangling.vhdx");
    std::os::unix::fs::symlink("/nowhere", &dangling)?;
    export("a link to nowhere", WRONG_STATE, "exists already", "dvm", &["--to-file", &path(&dangling)]);
    let lost = path(&world.fabric("no/folder.vhdx"));
    export("a folder that does not exist", BAD_INPUT, "directory does not exist", "dvm", &["--to-file", &lost]);
    world.admin(&["vm", "start", "dvm"])?.ok()?;
    export("a VM that runs", WRONG_STATE, "dvm is running", "dvm", &["--to-file", &file]);
    world.admin(&["vm", "stop", "dvm", "--force"])?.ok()?;
    let untouched = world.fingerprint("recoveries")? == before && !Path::new(&file).exists();
    denials.note("nothing changed", untouched.then_some(()).context("it did"));
    denials.note("the file is as it was", (fs::read(&taken)? == b"somebody's file").then_some(()).context("it is not"));

    world.admin(&["recovery", "export", "dvm", "--to-file", &file])?.ok().context("the control")?;
    let other = path(&world.fabric("other.vhdx"));
    let mut export = |name: &str, says: &str, to: &[&str]| {
        denials.expect(name, WRONG_STATE, says, world.admin(&[&["recovery", "export", "dvm"], to].concat()));
    };
    export("a second file for one VM", "in recovery already, in the file", &["--to-file", &other]);
    export("a garage for an exported VM", "in recovery already, in the file", &["--to", "open"]);
    denials.close();
    world.close()
}

#[test]
fn an_attachment_checks_before_it_changes() -> Result<()> {
    let world = World::new()?;
    let mut second = world.second_host()?;
    second.add_switch("br1")?;
    world.create_blank("dvm", &["--memory", "256"])?;
    world.create_blank("vmre-here", &["--memory", "1024", "--nested"])?;
    second.create_blank("vmre", &["--memory", "1024", "--nested"])?;
    second.create_blank("spare", &["--memory", "1024", "--nested"])?;
    second.create_blank("flat", &["--memory", "1024"])?;
    second.create_blank("tiny", &["--memory", "512", "--nested"])?;
    second.create_blank("open", &["--memory", "1024", "--policy", "encryption-supported"])?;
    second.create_blank_on("elsewhere", "br1", &["--memory", "1024", "--nested"])?;
    let exported = world.fabric("dvm.vhdx");
    world.admin(&["recovery", "export", "dvm", "--to-file", &path(&exported)])?.ok()?;
    let good = second.fabric("good.vhdx");
    fs::copy(&exported, &good)?;
    let before = (second.fingerprint("vms")?, second.fingerprint("recoveries")?);
    let mut denials = Denials::default();

    let attach_to = |garage: &str, file: &Path| second.admin(&["recovery", "attach", &path(file), "--to", garage]);
    denials.expect("an unknown garage", NOT_FOUND, "nosuch", attach_to("nosuch", &good));
    denials.expect("a garage that is not shielded", REFUSED, "open is not shielded", attach_to("open", &good));
    denials.expect("too little memory", NO_SPACE, "tiny has 512 MiB", attach_to("tiny", &good));
    denials.expect("another switch", BAD_INPUT, "different bridges", attach_to("elsewhere", &good));
    second.admin(&["vm", "start", "flat"])?.ok()?;
    denials.expect("a garage that cannot nest", WRONG_STATE, "without nested", attach_to("flat", &good));
    second.admin(&["vm", "stop", "flat", "--force"])?.ok()?;
    let full: Vec<Value> = (0..machine::HOT_PORTS)
        .map(|n| json!({"path": good, "format": "raw", "serial": format!("other-{n}"), "size": 512}))
        .collect();
    let list = second.store().join("vms/vmre/attached.json");
    fs::write(&list, json!(full).to_string())?;
    denials.expect("no free port", NO_SPACE, "no free port", attach_to("vmre", &good));
    fs::remove_file(&list)?;
    let here = world.admin(&["recovery", "attach", &path(&exported), "--to", "vmre-here"]);
    denials.expect("a garage on the VM's own host", WRONG_STATE, "was exported on this host", here);

    // What another host could send.
    let bad = second.fabric("bad.vhdx");
    let mut file = |name: &str, code, says: &str, make: &dyn Fn(&Path) -> Result<()>| {
        let done = make(&bad).with_context(|| format!("making: {name}")).and_then(|()| attach_to("vmre", &bad));
        denials.expect(name, code, says, done);
        let _ = fs::remove_file(&bad);
    };
    file("no file", NOT_FOUND, "bad.vhdx", &|_| Ok(()));
    file("a folder", BAD_INPUT, "not a file", &|to| {
        std::os::unix::fs::symlink(to.parent().context("no folder")?, to)?;
        Ok(())
    });
    file("a device", BAD_INPUT, "not a file", &|to| Ok(std::os::unix::fs::symlink("/dev/zero", to)?));
    file("a text", BAD_INPUT, "bad.vhdx", &|to| Ok(fs::write(to, "not a disk at all\n")?));
    file("an empty file", BAD_INPUT, "bad.vhdx", &|to| Ok(fs::write(to, "")?));
    file("a file cut short", BAD_INPUT, "bad.vhdx", &|to| {
        fs::copy(&good, to)?;
        let whole = fs::OpenOptions::new().write(true).open(to)?;
        Ok(whole.set_len(whole.metadata()?.len() / 2)?)
    });
    file("an image that names another file", BAD_INPUT, "bad.vhdx", &|to| {
        let mut command = std::process::Command::new("qemu-img");
        command.args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b", "/etc/passwd"]).arg(to);
        drydock_tests::process::run(&mut command, b"", std::time::Duration::from_secs(60))?.ok().map(drop)
    });
    let forged = |change: &'static dyn Fn(&mut Manifest, &mut Value)| {
        let good = good.clone();
        move |to: &Path| forge(&good, to, |manifest, shape| change(manifest, shape))
    };
    file("a VM of no shape", BAD_INPUT, "'spec'", &forged(&|_, shape| *shape = json!(["a VM"])));
    file(
        "a name that is a path",
        BAD_INPUT,
        "'spec'",
        &forged(&|manifest, shape| {
            manifest.vm_name = "../../x".into();
            shape["spec"]["name"] = json!("../../x");
        }),
    );
    file("another name than the VM's", BAD_INPUT, "'vm_name'", &forged(&|manifest, _| manifest.vm_name = "web".into()));
    file("another id than the VM's", BAD_INPUT, "'vm_id'", &forged(&|manifest, _| manifest.vm_id = Uuid::new_v4()));
    file(
        "another disk than the VM's",
        BAD_INPUT,
        "'disks'",
        &forged(&|manifest, _| {
            manifest.disks[0].serial = "another".into();
        }),
    );
    file("no key protector", BAD_INPUT, "'protector'", &forged(&|manifest, _| manifest.protector = b"<a/>".to_vec()));
    file(
        "a VM that is not shielded",
        REFUSED,
        "dvm is not shielded",
        &forged(&|_, shape| {
            shape["spec"]["policy"] = json!("encryption-supported");
        }),
    );
    file(
        "a VM as large as the garage",
        NO_SPACE,
        "to run dvm inside it",
        &forged(&|_, shape| {
            shape["spec"]["memory_mib"] = json!(1024);
        }),
    );
    file(
        "a VM with the garage's name",
        BAD_INPUT,
        "same name as the garage",
        &forged(&|manifest, shape| {
            manifest.vm_name = "vmre".into();
            shape["spec"]["name"] = json!("vmre");
        }),
    );
    file(
        "disks that stayed at home",
        BAD_INPUT,
        "disks are not on it",
        &forged(&|manifest, _| {
            manifest.mode = Mode::Overlay;
            manifest.disks[0].name = garage::layout::overlay_serial(manifest.recovery_id, 0);
        }),
    );
    let finished = good.clone();
    file("one that is handed back", WRONG_STATE, "has already been handed back", &|to| {
        fs::copy(&finished, to)?;
        hand_back_disk(&world, to, &Plan::default(), |_| Ok(()))
    });
    let after = (second.fingerprint("vms")?, second.fingerprint("recoveries")?);
    let changed: Vec<_> = after.0.iter().filter(|(name, digest)| before.0.get(*name) != Some(*digest)).collect();
    // `flat` was started: its state is sealed anew.
    let untouched = changed.iter().all(|(name, _)| name.starts_with("flat/")) && after.1 == before.1;
    denials.note("nothing changed", untouched.then_some(()).with_context(|| format!("it did: {changed:?}")));

    attach_to("vmre", &good)?.ok().context("the control")?;
    denials.expect("a second garage for one VM", WRONG_STATE, "in recovery in vmre", attach_to("spare", &good));
    let copy = second.fabric("copy.vhdx");
    fs::copy(&good, &copy)?;
    denials.expect("the same RG disk once more", WRONG_STATE, "in recovery in vmre", attach_to("vmre", &copy));
    let two = second.fabric("two.vhdx");
    forge(&good, &two, |manifest, _| manifest.recovery_id = Uuid::new_v4())?;
    denials.expect("another recovery of the VM", WRONG_STATE, "in recovery in vmre", attach_to("spare", &two));
    let other = second.fabric("other.vhdx");
    forge(&good, &other, |manifest, shape| {
        manifest.recovery_id = Uuid::new_v4();
        manifest.vm_name = "web".into();
        shape["spec"]["name"] = json!("web");
    })?;
    denials.expect("a second VM in one garage", WRONG_STATE, "RG disk of dvm already", attach_to("vmre", &other));
    attach_to("spare", &other)?.ok().context("the control of that")?;
    let mut refuse = |name: &str, code, says: &str, args: &[&str]| denials.expect(name, code, says, second.admin(args));
    refuse("detaching what is not finished", WRONG_STATE, "has not handed", &["recovery", "detach", "dvm"]);
    refuse("detaching what is not attached", NOT_FOUND, "no RG disk of", &["recovery", "detach", "flat"]);
    let from = ["recovery", "reinstate", "dvm", "--from", &path(&good)];
    refuse("reinstating on the garage's host", NOT_FOUND, "no VM named 'dvm'", &from);
    second.admin(&["recovery", "abort", "dvm"])?.ok()?;
    second.admin(&["recovery", "abort", "web"])?.ok()?;
    denials.close();
    second.shut_down()?;
    world.close()
}

/// Whatever is wrong with the file that comes back, the refusal names it, the original is untouched, and the right one
/// is taken afterwards.
#[test]
fn a_wrong_file_is_not_reinstated() -> Result<()> {
    let world = World::new()?;
    world.create_blank("dvm", &["--memory", "256"])?;
    world.create_blank("other", &["--memory", "256"])?;
    let file = |name: &str| world.fabric(&format!("{name}.vhdx"));
    let export = |vm: &str, to: &Path| world.admin(&["recovery", "export", vm, "--to-file", &path(to)])?.ok();
    let mut denials = Denials::default();
    let honest = |to: &Path| hand_back_disk(&world, to, &Plan::default(), |_| Ok(()));
    // What an earlier recovery of the same VM handed back.
    export("dvm", &file("stale"))?;
    honest(&file("stale"))?;
    world.admin(&["recovery", "abort", "dvm"])?.ok()?;

    export("other", &file("other"))?;
    honest(&file("other"))?;
    let outbound = file("outbound");
    export("dvm", &outbound)?;
    let before = world.fingerprint("vms/dvm")?;
    let back = |name: &str, plan: &Plan, spoil: &dyn Fn(&mut Draft)| -> Result<PathBuf> {
        let to = file(name);
        fs::copy(&outbound, &to)?;
        hand_back_disk(&world, &to, plan, |draft| {
            spoil(draft);
            Ok(())
        })?;
        Ok(to)
    };
    let reinstate = |from: &Path| world.admin(&["recovery", "reinstate", "dvm", "--from", &path(from)]);
    let altered = back("altered", &Plan::default(), &|draft| draft.late_write = Some((1 << 20, b"altered".to_vec())))?;
    let lowered = back("lowered", &Plan { policy: Policy::EncryptionSupported, ..Plan::default() }, &|_| {})?;
    // Last: a service takes no protector that is older than one that it has seen.
    let right = back("right", &Plan::default(), &|_| {})?;
    let text = file("text");
    fs::write(&text, "not a disk at all\n")?;
    let short = file("short");
    fs::write(&short, &fs::read(&right)?[..fs::metadata(&right)?.len() as usize / 2])?;
    for (name, code, says, from) in [
        ("no file", NOT_FOUND, "the RG disk is missing", &file("nosuch")),
        ("a folder", BAD_INPUT, "of a file", &world.store()),
        ("a text", BAD_INPUT, "text.vhdx", &text),
        ("a file cut short", BAD_INPUT, "short.vhdx", &short),
        ("one that is not handed back", WRONG_STATE, "has not handed dvm back", &outbound),
        ("an earlier recovery's", BAD_INPUT, "'recovery_id'", &file("stale")),
        ("another VM's", BAD_INPUT, "'recovery_id'", &file("other")),
        ("a disk altered after it was signed", BAD_INPUT, "disk 0 is not what the owner signed", &altered),
        ("a policy left lowered", REFUSED, "policy", &lowered),
    ] {
        denials.expect(name, code, says, reinstate(from));
        denials
            .note("the original is as it was", (world.fingerprint("vms/dvm")? == before).then_some(()).context("no"));
    }
    denials.expect(
        "the exported file by default",
        WRONG_STATE,
        "has not",
        world.admin(&["recovery", "reinstate", "dvm"]),
    );
    reinstate(&right)?.ok().context("the control")?;
    world.admin(&["vm", "stop", "dvm", "--force"])?.ok()?;
    ensure!(world.disk("dvm")?[1 << 20..].starts_with(b"the disk of dvm"), "what came back is not the VM's disk");
    denials.close();
    world.close()
}
