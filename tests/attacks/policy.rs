//! A fabric admin with every file of the store, now and at every earlier moment: what the owner sealed stays as it is.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use drydock_tests::denial::Denials;
use drydock_tests::exit::{KEY_RELEASE, REFUSED};
use drydock_tests::world::{World, path};

use crate::at_rest::copy_dir;
use crate::suite::{Row, Suite};

const ROWS: &[Row<World>] = &[
    Row {
        name: "every_part_of_the_sealed_record_counts",
        attacker: "fabric admin",
        holds: "record.sealed of a VM that is off, and another VM's",
        tries: "changes a byte in each of its parts, cuts, lengthens, empties, removes, exchanges it",
        must: "refused: the VM does not start",
        control: "unaltered it starts",
        run: record,
    },
    Row {
        name: "generations_are_not_mixed",
        attacker: "fabric admin",
        holds: "every slot that the VM ever had",
        tries: "key protector, record, UEFI variables or vTPM of an earlier slot in the one in force",
        must: "the VM does not start",
        control: "with its own files it starts",
        run: mixed,
    },
    Row {
        name: "an_older_copy_is_noticed_and_refused_where_the_service_is_strict",
        attacker: "fabric admin",
        holds: "a whole copy of the VM from before its last starts",
        tries: "puts it back and starts it",
        must: "with `hgs strict on` no key is released; without, the service's log says that the protector was stale",
        control: "where the service is not strict the copy starts: it was whole",
        run: rolled_back,
    },
];

pub(crate) fn run(suite: &mut Suite) {
    suite.group(
        "policy",
        ROWS,
        || {
            let world = World::new()?;
            world.create_blank("dvm", &["--memory", "128"])?;
            world.create_blank("other", &["--memory", "128", "--policy", "encryption-supported"])?;
            Ok(world)
        },
        World::close,
    );
}

fn current(vm: &Path) -> Result<PathBuf> {
    Ok(vm.join("slots").join(fs::read_to_string(vm.join("current"))?.trim()))
}

fn start_and_stop(world: &World) -> Result<()> {
    world.admin(&["vm", "start", "dvm"])?.ok()?;
    world.admin(&["vm", "stop", "dvm", "--force"])?.ok().map(drop)
}

fn record(world: &mut World) -> Result<()> {
    let file = current(&world.store().join("vms/dvm"))?.join("record.sealed");
    let good = fs::read(&file)?;
    let mut denials = Denials::default();
    let mut attempt = |name: &str, bytes: Option<Vec<u8>>| -> Result<()> {
        match bytes {
            Some(bytes) => fs::write(&file, bytes)?,
            None => fs::remove_file(&file)?,
        }
        denials.expect(name, REFUSED, "sealed state", world.admin(&["vm", "start", "dvm"]));
        Ok(fs::write(&file, &good)?)
    };
    let flipped = |at: usize| {
        let mut bytes = good.clone();
        bytes[at] ^= 1;
        Some(bytes)
    };
    let end = good.len();
    attempt("a byte of its mark", flipped(0))?;
    attempt("its version", flipped(7))?;
    attempt("the VM's id", flipped(8))?;
    attempt("the nonce", flipped(24))?;
    attempt("the first byte of what is sealed", flipped(36))?;
    attempt("the last byte of what is sealed", flipped(end - 17))?;
    attempt("the first byte of the tag", flipped(end - 16))?;
    attempt("the last byte of the tag", flipped(end - 1))?;
    attempt("a byte less", Some(good[..end - 1].to_vec()))?;
    attempt("a byte more", Some([good.as_slice(), &[0]].concat()))?;
    attempt("the header alone", Some(good[..36].to_vec()))?;
    attempt("nothing", Some(Vec::new()))?;
    attempt("far too much", Some(good.repeat(1000)))?;
    attempt("no file", None)?;
    let other = fs::read(current(&world.store().join("vms/other"))?.join("record.sealed"))?;
    attempt("another VM's, which has a console", Some(other.clone()))?;
    let id = [&good[..24], &other[24..]].concat();
    attempt("another VM's under this one's id", Some(id))?;
    start_and_stop(world).context("the control")?;
    denials.close();
    Ok(())
}

fn mixed(world: &mut World) -> Result<()> {
    let vm = world.store().join("vms/dvm");
    let older = world.fabric("older-slot");
    copy_dir(&current(&vm)?, &older)?;
    start_and_stop(world)?;
    let slot = current(&vm)?;
    for file in ["protector.xml", "record.sealed", "vars.luks", "vtpm/tpm2-00.permall"] {
        let kept = fs::read(slot.join(file))?;
        fs::copy(older.join(file), slot.join(file))?;
        let done = world.admin(&["vm", "start", "dvm"])?;
        fs::write(slot.join(file), kept)?;
        ensure!(done.code != 0, "with an older {file} it starts");
        ensure!(world.admin_json(&["vm", "show", "dvm"])?["state"] == "off", "with an older {file} it runs");
        println!("  refused: an older {file}: exit code {}", done.code);
    }
    // All of the older state, under the number of the newer.
    let kept = world.fabric("newer-slot");
    fs::rename(&slot, &kept)?;
    copy_dir(&older, &slot)?;
    let done = world.admin(&["vm", "start", "dvm"])?;
    fs::remove_dir_all(&slot)?;
    fs::rename(&kept, &slot)?;
    ensure!(done.code == REFUSED && done.stderr.contains("'generation'"), "{}: {}", done.code, done.stderr);
    start_and_stop(world).context("the control")
}

fn rolled_back(world: &mut World) -> Result<()> {
    let hgs = path(&world.fabric("hgs"));
    let vm = world.store().join("vms/dvm");
    let (older, newer) = (world.fabric("older-vm"), world.fabric("newer-vm"));
    copy_dir(&vm, &older)?;
    start_and_stop(world)?;
    start_and_stop(world)?;
    let put = |copy: &Path| -> Result<()> {
        fs::remove_dir_all(&vm)?;
        copy_dir(copy, &vm)
    };
    copy_dir(&vm, &newer)?;
    put(&older)?;
    world.admin(&["hgs", "strict", "on", "--dir", &hgs])?.ok()?;
    let refused = world.admin(&["vm", "start", "dvm"])?;
    ensure!(refused.code == KEY_RELEASE, "exit code {}: {}", refused.code, refused.stderr);
    put(&newer)?;
    start_and_stop(world).context("the newest copy, where the service is strict")?;
    copy_dir(&vm, &world.fabric("newest-vm"))?;

    world.admin(&["hgs", "strict", "off", "--dir", &hgs])?.ok()?;
    put(&older)?;
    start_and_stop(world).context("the control")?;
    let log = world.admin(&["hgs", "audit", "--dir", &hgs])?.ok()?.stdout;
    ensure!(log.contains("stale-key-released"), "the log says nothing: {log}");
    put(&world.fabric("newest-vm"))
}
