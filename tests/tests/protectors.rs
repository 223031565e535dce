//! The key protector of a VM that exists: its owner grants it to the fabric's next guardian, or revokes one, and the VM
//! takes it at its next start.

use std::fs;

use anyhow::{Context, Result, ensure};
use drydock_tests::denial::Denials;
use drydock_tests::exit::{BAD_INPUT, WRONG_STATE};
use drydock_tests::tenant::owner;
use drydock_tests::world::{World, path};
use key_protector::{Protector, Role};
use time::OffsetDateTime;

const OFF: [&str; 4] = ["vm", "stop", "dvm", "--force"];
const START: [&str; 3] = ["vm", "start", "dvm"];

/// The protector that the VM has now, as its owner gets it.
fn fetch(world: &World, name: &str) -> Result<String> {
    let file = path(&world.offline(name));
    world.admin(&["vm", "protector", "dvm", "--out", &file])?.ok()?;
    Ok(file)
}

fn read(file: &str) -> Result<Protector> {
    Ok(Protector::parse(&fs::read(file)?)?)
}

/// Fingerprints of the fabric's guardians that can open it.
fn fabrics(protector: &Protector) -> Vec<String> {
    let fabrics = protector.wrappings().iter().filter(|wrapping| wrapping.role() == Role::Fabric);
    fabrics.map(|wrapping| wrapping.signing_certificate().fingerprint()).collect()
}

#[test]
fn a_vm_moves_to_the_fabrics_next_guardian() -> Result<()> {
    let mut world = World::new()?;
    world.create_blank("dvm", &["--memory", "128"])?;
    let dir = path(&world.fabric("hgs"));
    world.admin(&START)?.ok()?;
    let first = fetch(&world, "first.xml")?;
    let old = fabrics(&read(&first)?);
    ensure!(old.len() == 1, "guardians of the fabric: {old:?}");

    // The VM runs through the rotation.
    world.admin(&["hgs", "rotate", "--dir", &dir])?.ok()?;
    world.kill_hgs();
    world.start_hgs()?;
    let guardian = path(&world.fabric("next.guardian.xml"));
    world.admin(&["hgs", "guardian", "--dir", &dir, "--out", &guardian])?.ok()?;
    world.tenant(&["guardian", "import", &guardian, "--name", "next"])?.ok()?;
    let mut denials = Denials::default();
    let retire = ["hgs", "retire", &old[0], "--dir", &dir];
    denials.expect(
        "retiring a guardian that the VM needs",
        WRONG_STATE,
        "depend on that guardian",
        world.admin(&retire),
    );

    let (granted, change) = (path(&world.offline("granted.xml")), path(&world.offline("dvm.change")));
    let grant =
        ["protector", "grant", &first, "--owner", "tenant", "--to", "next", "--out", &granted, "--change", &change];
    world.tenant(&grant)?.ok()?;
    wrong_changes(&world, &first, &granted, &mut denials)?;
    // While it runs; and nothing happens to it.
    let bring = ["vm", "set-protector", "dvm", &change];
    world.admin(&bring)?.ok()?;
    ensure!(read(&fetch(&world, "still.xml")?)?.digest() == read(&first)?.digest(), "the change came at once");
    denials.expect(
        "a migration that would lose the change",
        WRONG_STATE,
        "a signed protector update waits",
        world.admin(&["vm", "migrate", "dvm", "--to", "127.0.0.1:9"]),
    );
    // Taken back, it does nothing; the control for what follows.
    world.admin(&["vm", "set-protector", "dvm", "--drop"])?.ok()?;
    world.admin(&OFF)?.ok()?;
    world.admin(&bring)?.ok()?;
    world.admin(&START)?.ok()?;
    let now = read(&fetch(&world, "moved.xml")?)?;
    ensure!(fabrics(&now).iter().all(|fingerprint| *fingerprint != old[0]), "the old guardian can still open it");
    denials.expect(
        "the same change once more",
        BAD_INPUT,
        "another key protector than the active one",
        world.admin(&bring),
    );

    world.admin(&retire)?.ok().context("nobody needs it any more")?;
    world.kill_hgs();
    world.start_hgs()?;
    world.admin(&OFF)?.ok()?;
    world.admin(&START)?.ok().context("a start without the old guardian")?;
    world.admin(&OFF)?.ok()?;
    denials.close();
    world.close()
}

/// Changes that somebody else made, or that are for something else.
fn wrong_changes(world: &World, first: &str, granted: &str, denials: &mut Denials) -> Result<()> {
    let attempt = |bytes: &[u8]| -> Result<_> {
        let file = world.offline("wrong.change");
        fs::write(&file, bytes)?;
        world.admin(&["vm", "set-protector", "dvm", &path(&file)])
    };
    // The fabric admin makes an owner of the same name.
    let home = world.fabric("forger");
    let guardians = path(&home);
    world.admin(&["guardian", "new", "tenant", "--guardians", &guardians])?.ok()?;
    let forger = key_protector::Guardian::from_pem(&fs::read_to_string(home.join("tenant.pem"))?)?;
    let (foreign, _) = Protector::new(&forger, &[], OffsetDateTime::now_utc())?;
    let (other, _) = Protector::new(&forger, &[], OffsetDateTime::now_utc())?;
    let forged = host::protector_update::sign(&forger, &foreign, &other).map_err(|error| anyhow::anyhow!("{error}"))?;
    denials.expect("a change that another owner signed", BAD_INPUT, "not signed by the VM's owner", attempt(&forged));
    let owner = owner(world)?;
    let (another, _) = Protector::new(&owner, &[], OffsetDateTime::now_utc())?;
    let elsewhere =
        host::protector_update::sign(&owner, &another, &read(granted)?).map_err(|error| anyhow::anyhow!("{error}"))?;
    denials.expect(
        "a change for another VM of the same owner",
        BAD_INPUT,
        "another key protector than the active one",
        attempt(&elsewhere),
    );
    denials.expect("a bare protector", BAD_INPUT, "--change", attempt(&fs::read(first)?));
    let mut flipped = fs::read(world.offline("dvm.change"))?;
    let middle = flipped.len() / 2;
    flipped[middle] ^= 1;
    denials.expect("a change with a flipped byte", BAD_INPUT, "not a signed protector update", attempt(&flipped));
    Ok(())
}

#[test]
fn a_revoked_guardian_is_shut_out_of_a_vm_that_exists() -> Result<()> {
    let world = World::new()?;
    world.create_blank("dvm", &["--memory", "128"])?;
    // A partner who may open it.
    let partner = path(&world.fabric("partner"));
    world.admin(&["guardian", "new", "partner", "--role", "fabric", "--guardians", &partner])?.ok()?;
    let public = path(&world.fabric("partner.guardian.xml"));
    world.admin(&["guardian", "export", "partner", "--out", &public, "--guardians", &partner])?.ok()?;
    world.tenant(&["guardian", "import", &public, "--name", "partner"])?.ok()?;
    let key = key_protector::Guardian::from_pem(&fs::read_to_string(world.fabric("partner/partner.pem"))?)?;
    let opens = |file: &str| -> Result<bool> { Ok(read(file)?.open(&key, OffsetDateTime::now_utc()).is_ok()) };

    let step = |verb: &str, option: &str, n: u32| -> Result<String> {
        let from = fetch(&world, &format!("{verb}.from.xml"))?;
        let (to, change) = (path(&world.offline(&format!("{verb}.xml"))), path(&world.offline(&format!("{n}.change"))));
        let args =
            ["protector", verb, &from, "--owner", "tenant", option, "partner", "--out", &to, "--change", &change];
        world.tenant(&args)?.ok()?;
        world.admin(&["vm", "set-protector", "dvm", &change])?.ok()?;
        Ok(to)
    };
    let granted = step("grant", "--to", 1)?;
    ensure!(opens(&granted)?, "the control: the partner can open what was granted");
    world.admin(&START)?.ok()?;
    world.admin(&OFF)?.ok()?;
    ensure!(opens(&fetch(&world, "after.xml")?)?, "the control: the partner can open what is in force");
    let revoked = step("revoke", "--from", 2)?;
    ensure!(!opens(&revoked)?, "the partner opens what was revoked");
    world.admin(&START)?.ok().context("it starts under the new protector")?;
    ensure!(!opens(&fetch(&world, "in-force.xml")?)?, "the partner opens what is in force");
    world.admin(&OFF)?.ok()?;
    world.close()
}
