//! Keys that somebody had, has, or would like to have: revoked, destroyed, replaced, added.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration as Span;

use anyhow::{Context, Result, ensure};
use drydock_tests::exit::{BAD_INPUT, REFUSED};
use drydock_tests::process::run as run_program;
use drydock_tests::tenant::{owner, recovery_guardian};
use drydock_tests::world::{World, path};
use host::LocalGuardians;
use key_protector::{Guardian, GuardianPublic, KeyKind, Protector, Role};
use time::{Duration, OffsetDateTime};

use crate::suite::{Row, Suite};
use drydock_tests::search::contains;

const SHORT: Span = Span::from_secs(60);

const ROWS: &[Row<World>] = &[
    Row {
        name: "a_destroyed_recovery_key_is_not_on_the_disk",
        attacker: "whoever reads the garage's disk later",
        holds: "every block of the file system that the recovery guardian's key lay on",
        tries: "searches it for the private key after the garage has destroyed it",
        must: "no line of it is found",
        control: "before, the same search finds every line",
        run: destroyed,
    },
    Row {
        name: "a_revoked_guardian_opens_nothing_newer",
        attacker: "a guardian that was revoked",
        holds: "its private keys, the protector from before the revocation out of a backup, and the transport key that \
                it opened; what was sealed since",
        tries: "opens the new protectors and the new record; puts the old protector back",
        must: "nothing opens, and with the old protector the VM does not start",
        control: "it opens the old protector; the owner opens the new ones",
        run: revoked,
    },
    Row {
        name: "another_owners_protector_does_not_take_the_vm",
        attacker: "fabric admin",
        holds: "the store, and an owner guardian of the same name that they made, whose protectors the service opens",
        tries: "puts a protector of that owner in the VM's place",
        must: "the sealed state does not belong to it: refused",
        control: "a VM of their own with that protector starts",
        run: another_owner,
    },
    Row {
        name: "a_guardian_is_not_added_without_the_owner",
        attacker: "fabric admin",
        holds: "the VM's protector, and a guardian of their own with a wrapping that another owner signed",
        tries: "adds that wrapping to the VM's protector; exchanges the owner's for it",
        must: "the protector is refused by drydock and by the VM's start",
        control: "the same guardian, let in by the owner, is in a protector that verifies",
        run: added,
    },
];

pub(crate) fn run(suite: &mut Suite) {
    suite.group(
        "keys",
        ROWS,
        || {
            let world = World::on_device(64)?;
            world.create_blank("dvm", &["--memory", "128"])?;
            world.tenant(&["guardian", "new", "partner", "--role", "fabric"])?.ok()?;
            Ok(world)
        },
        World::close,
    );
}

fn destroyed(world: &mut World) -> Result<()> {
    let folder = world.store().join("guardians");
    let image = world.store().with_extension("ext4");
    let guardians = LocalGuardians::new(folder);
    let guardian = recovery_guardian(Duration::hours(1))?;
    let pem = guardian.to_pem();
    let body = pem.split("-----BEGIN PRIVATE KEY-----").nth(1).context("no private key in PKCS#8")?;
    let secret: Vec<&str> = body.lines().filter(|line| line.len() == 64 && !line.starts_with("MII")).collect();
    ensure!(secret.len() > 5, "too few lines to look for: {}", secret.len());
    let found = || -> Result<usize> {
        run_program(Command::new("sync").arg("--file-system").arg(world.store()), b"", SHORT)?.ok()?;
        let disk = fs::read(&image)?;
        Ok(secret.iter().filter(|line| contains(&disk, line.as_bytes())).count())
    };
    guardians.add("recovery", &guardian)?;
    ensure!(found()? == secret.len(), "the control: {} of {} lines", found()?, secret.len());
    guardians.destroy("recovery")?;
    ensure!(found()? == 0, "{} of {} lines are still on the disk", found()?, secret.len());
    Ok(())
}

fn guardian(world: &World, name: &str) -> Result<Guardian> {
    let pem = fs::read_to_string(world.offline(&format!(".config/drydock/guardians/{name}.pem")))?;
    Guardian::from_pem(&pem).context("its keys cannot be read")
}

fn revoked(world: &mut World) -> Result<()> {
    let now = OffsetDateTime::now_utc();
    let (old, new) = (world.offline("old.xml"), world.offline("new.xml"));
    let both = ["protector", "new", "--owner", "tenant", "--guardian", "fabric", "--guardian", "partner", "--out"];
    world.tenant(&[&both[..], &[&path(&old)]].concat())?.ok()?;
    let revoke = ["protector", "revoke", &path(&old), "--owner", "tenant", "--from", "partner", "--out", &path(&new)];
    world.tenant(&revoke)?.ok()?;
    let partner = guardian(world, "partner")?;
    let old = Protector::parse(&fs::read(old)?)?;
    let old_key = old.open(&partner, now).context("the control: the partner had a key")?;

    let disk = world.fabric("revoked.raw");
    fs::write(&disk, vec![0; 1 << 20])?;
    let create = ["vm", "create", "revoked", "--disk", &path(&disk), "--protector", &path(&new), "--switch", "br0"];
    let id = world.admin_json(&create)?["id"].as_str().context("no id")?.parse()?;
    let slot = world.store().join("vms/revoked/slots/1");
    let sealed = fs::read(slot.join("protector.xml"))?;
    for newer in [fs::read(&new)?, sealed.clone()] {
        let newer = Protector::parse(&newer)?;
        ensure!(newer.open(&partner, now).is_err(), "a revoked guardian opens a newer protector");
        newer.open(&owner(world)?, now).context("the control: the owner")?;
        let opened = machine::slot::open_record(&slot, &old_key, id, &newer.digest());
        ensure!(opened.is_err(), "the old transport key opens the newer record");
    }
    let protector = Protector::parse(&sealed)?;
    machine::slot::open_record(&slot, &protector.open(&owner(world)?, now)?, id, &protector.digest())
        .context("the control: the owner opens the record")?;

    fs::write(slot.join("protector.xml"), old.to_xml())?;
    let done = world.admin(&["vm", "start", "revoked"])?;
    ensure!(done.code == REFUSED && done.stderr.contains("sealed state"), "{}: {}", done.code, done.stderr);
    world.admin(&["vm", "delete", "revoked", "--yes"])?.ok().map(drop)
}

/// An owner guardian that the attacker made, of the tenant's name.
fn impostor() -> Result<Guardian> {
    let now = OffsetDateTime::now_utc();
    Ok(Guardian::generate("tenant", Role::Owner, KeyKind::Rsa2048, now - Duration::hours(1), now + Duration::hours(1))?)
}

/// The slot in force.
fn slot(world: &World) -> Result<std::path::PathBuf> {
    let vm = world.store().join("vms/dvm");
    Ok(vm.join("slots").join(fs::read_to_string(vm.join("current"))?.trim()))
}

fn with_protector(world: &World, xml: &[u8]) -> Result<drydock_tests::process::Finished> {
    let file = slot(world)?.join("protector.xml");
    let kept = fs::read(&file)?;
    fs::write(&file, xml)?;
    let done = world.admin(&["vm", "start", "dvm"]);
    fs::write(&file, kept)?;
    done
}

fn another_owner(world: &mut World) -> Result<()> {
    let fabric = GuardianPublic::parse(&fs::read(world.fabric("fabric.guardian.xml"))?)?;
    let (protector, _) = Protector::new(&impostor()?, &[fabric], OffsetDateTime::now_utc())?;
    let done = with_protector(world, &protector.to_xml())?;
    ensure!(done.code == REFUSED && done.stderr.contains("sealed state"), "{}: {}", done.code, done.stderr);
    let (file, disk) = (world.fabric("impostor.xml"), world.fabric("impostor.raw"));
    fs::write(&file, protector.to_xml())?;
    fs::write(&disk, vec![0; 1 << 20])?;
    let create = ["vm", "create", "own", "--disk", &path(&disk), "--protector", &path(&file), "--switch", "br0"];
    world.admin(&create)?.ok().context("the control")?;
    world.admin(&["vm", "start", "own"])?.ok().context("the control")?;
    world.admin(&["vm", "stop", "own", "--force"])?.ok()?;
    world.admin(&["vm", "delete", "own", "--yes"])?.ok().map(drop)
}

/// The wrappings in a protector's XML, each from its first to its last byte.
fn wrappings(xml: &str) -> Vec<&str> {
    let ends = xml.match_indices("</Wrapping>").map(|(at, tag)| at + tag.len());
    xml.match_indices("<Wrapping>").map(|(at, _)| at).zip(ends).map(|(from, to)| &xml[from..to]).collect()
}

fn added(world: &mut World) -> Result<()> {
    let partner = guardian(world, "partner")?.public().clone();
    let (forged, _) = Protector::new(&impostor()?, std::slice::from_ref(&partner), OffsetDateTime::now_utc())?;
    let forged = String::from_utf8(forged.to_xml())?;
    let good = fs::read_to_string(slot(world)?.join("protector.xml"))?;
    let (theirs, ours) = (wrappings(&forged), wrappings(&good));
    ensure!(theirs.len() == 2 && ours.len() == 2, "the owner and one guardian each: {} {}", theirs.len(), ours.len());
    let renumbered = theirs[1].replace("<Id>1</Id>", "<Id>2</Id>");
    for (what, xml) in [
        ("a wrapping added", good.replace("</Wrappings>", &format!("{}</Wrappings>", theirs[1]))),
        ("a wrapping added, with an id of its own", good.replace("</Wrappings>", &format!("{renumbered}</Wrappings>"))),
        ("the fabric's wrapping exchanged", good.replace(ours[1], theirs[1])),
        ("the owner's wrapping exchanged", good.replace(ours[0], theirs[0])),
    ] {
        ensure!(xml != good, "{what}: nothing changed");
        let file = world.offline("spliced.xml");
        fs::write(&file, &xml)?;
        let verified = world.tenant(&["protector", "verify", &path(&file)])?;
        ensure!(verified.code == BAD_INPUT, "{what}: verify: {}: {}", verified.code, verified.stderr);
        let done = with_protector(world, xml.as_bytes())?;
        ensure!([BAD_INPUT, 7].contains(&done.code), "{what}: start: {}: {}", done.code, done.stderr);
    }
    let (from, to) = (path(&world.offline("dvm.protector.xml")), world.offline("granted.xml"));
    world.tenant(&["protector", "grant", &from, "--owner", "tenant", "--to", "partner", "--out", &path(&to)])?.ok()?;
    world.tenant(&["protector", "verify", &path(&to)])?.ok().context("the control")?;
    verify_names(&to, "partner")?;
    world.admin(&["vm", "start", "dvm"])?.ok().context("the control")?;
    world.admin(&["vm", "stop", "dvm", "--force"])?.ok().map(drop)
}

fn verify_names(file: &Path, guardian: &str) -> Result<()> {
    let protector = Protector::parse(&fs::read(file)?)?;
    let there = protector.wrappings().iter().any(|w| w.signing_certificate().common_name() == guardian);
    there.then_some(()).context("the control: the guardian is not in it")
}
