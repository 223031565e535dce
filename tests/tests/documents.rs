//! The files that people carry from one machine to another: wrong, cut, swapped, stale. Each is refused by name.

use std::fs;

use anyhow::{Context, Result, ensure};
use drydock_tests::denial::Denials;
use drydock_tests::exit::{BAD_INPUT, NOT_FOUND, REFUSED, WRONG_STATE};
use drydock_tests::process::run;
use drydock_tests::request::{Asker, request};
use drydock_tests::tenant::{owner, recovery_guardian};
use drydock_tests::world::{World, drydock, path};
use key_protector::{Guardian, KeyKind, Protector, Role};
use recovery::documents::{write_request, write_request_file};
use time::{Duration, OffsetDateTime};

#[test]
fn a_grant_answers_a_good_request_only() -> Result<()> {
    let world = World::new()?;
    let garage = Asker::known(&world)?;
    let mut denials = Denials::default();
    let owner = owner(&world)?;
    let (protector, _) = Protector::new(&owner, &[], OffsetDateTime::now_utc())?;
    let guardian = recovery_guardian(Duration::hours(24))?;
    let good = garage.ask(&request(&protector, &guardian)?, &guardian)?;
    let file = world.offline("request");
    let grant = world.offline("grant");
    let (from, to) = (path(&file), path(&grant));
    let ask = |bytes: &[u8], owner: &str| {
        fs::write(&file, bytes)?;
        world.tenant(&["recovery", "grant", &from, "--owner", owner, "--yes", "--out", &to])
    };
    let mut refuse = |name: &str, code, says: &str, bytes: &[u8]| {
        denials.expect(name, code, says, ask(bytes, "tenant"));
        denials.note(&format!("{name}: nothing written"), (!grant.exists()).then_some(()).context("a grant"));
    };
    refuse("an empty file", BAD_INPUT, "request", b"");
    refuse("a text", BAD_INPUT, "request", b"please let me in\n");
    refuse("half a request", BAD_INPUT, "request", &good[..good.len() / 2]);
    for at in [10, good.len() / 3, good.len() / 2, good.len() - 20] {
        let mut bytes = good.clone();
        bytes[at] ^= 1;
        refuse(&format!("a request with byte {at} changed"), BAD_INPUT, "request", &bytes);
    }
    refuse("a key protector", BAD_INPUT, "request", &protector.to_xml());
    let stranger = recovery_guardian(Duration::hours(24))?;
    let signed_by_another = garage.ask(&request(&protector, &guardian)?, &stranger)?;
    refuse(
        "a request signed by another than its guardian",
        BAD_INPUT,
        "not signed by the recovery guardian",
        &signed_by_another,
    );
    let long = recovery_guardian(Duration::hours(100))?;
    refuse(
        "a guardian for four days",
        REFUSED,
        "for more than 72 hours",
        &garage.ask(&request(&protector, &long)?, &long)?,
    );
    let now = OffsetDateTime::now_utc();
    let past = Guardian::generate(
        "recovery",
        Role::Recovery,
        KeyKind::Rsa2048,
        now - Duration::hours(2),
        now - Duration::hours(1),
    )?;
    refuse("an expired guardian", BAD_INPUT, "not valid now", &garage.ask(&request(&protector, &past)?, &past)?);
    let fabric = Guardian::generate(
        "fabric",
        Role::Fabric,
        KeyKind::Rsa2048,
        now - Duration::hours(2),
        now + Duration::hours(1),
    )?;
    refuse(
        "a guardian that is not a recovery guardian",
        REFUSED,
        "not a recovery guardian",
        &garage.ask(&request(&protector, &fabric)?, &fabric)?,
    );
    let other = Guardian::generate(
        "tenant",
        Role::Owner,
        KeyKind::Rsa2048,
        now - Duration::hours(2),
        now + Duration::hours(1),
    )?;
    let (foreign, _) = Protector::new(&other, &[], now)?;
    refuse(
        "somebody else's VM",
        BAD_INPUT,
        "the VM belongs to",
        &garage.ask(&request(&foreign, &guardian)?, &guardian)?,
    );

    let mut elsewhere = request(&protector, &guardian)?;
    elsewhere.vm_name = "../../../tmp/dvm".into();
    refuse("a VM's name that is a path", BAD_INPUT, "'vm_name'", &garage.ask(&elsewhere, &guardian)?);
    // The fabric makes a request of its own: it has a guardian, the protector, and everything but the garage's key.
    let forger = Asker::new()?;
    let asked = request(&protector, &guardian)?;
    let forged = forger.ask(&asked, &guardian)?;
    refuse("a request of a garage that is not the tenant's", REFUSED, "not one of yours", &forged);
    let signature = forger.sign(&write_request(&asked, &guardian)?)?;
    let claimed = write_request_file(write_request(&asked, &guardian)?, &garage.public()?, &signature)?;
    refuse("a forged request under the garage's name", BAD_INPUT, "not signed by the garage 'vmre'", &claimed);
    let bare = write_request(&asked, &guardian)?;
    refuse("a request without a garage's signature", BAD_INPUT, "request", &bare);

    denials.expect("an owner that is not here", NOT_FOUND, "nobody", ask(&good, "nobody"));
    ask(&good, "tenant")?.ok().context("the control")?;
    denials.expect("an answer that exists already", WRONG_STATE, "already exists", ask(&good, "tenant"));
    denials.close();
    world.close()
}

#[test]
fn guardian_and_protector_files_are_checked() -> Result<()> {
    let world = World::new()?;
    let mut denials = Denials::default();
    let protector = world.offline("vm.protector.xml");
    let junk = world.offline("junk");
    fs::write(&junk, "<Protector/>")?;
    let (good, junk, out) = (path(&protector), path(&junk), path(&world.offline("out.xml")));
    let new = ["protector", "new", "--owner", "tenant", "--guardian", "fabric", "--out", &good];
    world.tenant(&new)?.ok()?;
    let mut refuse = |name: &str, code, says: &str, args: &[&str]| denials.expect(name, code, says, world.tenant(args));
    refuse("a protector that is none", BAD_INPUT, "junk", &["protector", "verify", &junk]);
    refuse("a protector that is not there", NOT_FOUND, "nosuch", &["protector", "show", "nosuch"]);
    refuse("a protector over another", WRONG_STATE, "already exists", &new);
    refuse(
        "a grant to an unknown guardian",
        NOT_FOUND,
        "nobody",
        &["protector", "grant", &good, "--owner", "tenant", "--to", "nobody", "--out", &out],
    );
    refuse(
        "a grant with only the public half of an owner",
        BAD_INPUT,
        "public half",
        &["protector", "grant", &good, "--owner", "fabric", "--to", "fabric", "--out", &out],
    );
    refuse(
        "a revocation of nobody",
        NOT_FOUND,
        "nobody",
        &["protector", "revoke", &good, "--owner", "tenant", "--from", "nobody", "--out", &out],
    );
    refuse("a guardian over another", WRONG_STATE, "already exists", &["guardian", "new", "tenant"]);
    refuse("a guardian file that is none", BAD_INPUT, "junk", &["guardian", "import", &junk]);
    refuse("a guardian's name that is a path", BAD_INPUT, "../x", &["guardian", "new", "../x"]);
    refuse("a guardian that is not there", NOT_FOUND, "nobody", &["guardian", "show", "nobody"]);
    let pem = world.offline(".config/drydock/guardians/tenant.pem");
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(&pem, fs::Permissions::from_mode(0o644))?;
    refuse(
        "a private key that others may read",
        REFUSED,
        "chmod 600",
        &["protector", "grant", &good, "--owner", "tenant", "--to", "fabric", "--out", &out],
    );
    fs::set_permissions(&pem, fs::Permissions::from_mode(0o600))?;
    let signed = world.tenant(&["protector", "verify", &good])?;
    signed.ok().context("the control")?;
    let exists = world.offline("out.xml").exists();
    denials.note("no file was written", (!exists).then_some(()).context("there is one"));

    let disk = world.fabric("disk.raw");
    fs::write(&disk, vec![0; 1 << 20])?;
    let disk = path(&disk);
    let create = |name: &str, disk: &str, protector: &str, switch: &str, memory: &str| {
        world.admin(&[
            "vm",
            "create",
            name,
            "--disk",
            disk,
            "--protector",
            protector,
            "--switch",
            switch,
            "--memory",
            memory,
        ])
    };
    denials.expect("a VM's name that is a path", BAD_INPUT, "../x", create("../x", &disk, &good, "br0", "256"));
    denials.expect("a disk that is not there", NOT_FOUND, "nosuch", create("vm", "nosuch", &good, "br0", "256"));
    denials.expect("a protector that is none", BAD_INPUT, "protector", create("vm", &disk, &junk, "br0", "256"));
    denials.expect("a switch that is not there", NOT_FOUND, "br9", create("vm", &disk, &good, "br9", "256"));
    denials.expect("no memory to speak of", BAD_INPUT, "memory", create("vm", &disk, &good, "br0", "1"));
    create("vm", &disk, &good, "br0", "256")?.ok().context("the control")?;
    denials.expect("a name that is taken", WRONG_STATE, "already", create("vm", &disk, &good, "br0", "256"));
    denials.close();
    world.close()
}

/// Keys in PKCS#12 open with their passphrase only, which comes over a descriptor.
#[test]
fn keys_can_be_under_a_passphrase() -> Result<()> {
    let world = World::new()?;
    let mut denials = Denials::default();
    let with = |passphrase: &str, args: &str| {
        let file = world.offline("passphrase");
        fs::write(&file, format!("{passphrase}\n"))?;
        let script = format!("exec {} {args} --passphrase-fd 3 3< {}", drydock()?.display(), file.display());
        let mut shell = std::process::Command::new("sh");
        shell.args(["-c", &script]).env("HOME", world.offline("."));
        run(&mut shell, b"", std::time::Duration::from_secs(60))
    };
    denials.expect(
        "a passphrase of four letters",
        BAD_INPUT,
        "shorter",
        with("abcd", "guardian new safe --format pkcs12"),
    );
    with("a long passphrase", "guardian new safe --format pkcs12")?.ok()?;
    let p12 = fs::read(world.offline(".config/drydock/guardians/safe.p12"))?;
    ensure!(!p12.windows(11).any(|w| w == b"PRIVATE KEY"), "the private key lies open");
    let out = path(&world.offline("safe.protector.xml"));
    let new = format!("protector new --owner safe --guardian fabric --out {out}");
    denials.expect("another passphrase", BAD_INPUT, "wrong passphrase", with("another passphrase", &new));
    let asked = world.tenant(&["protector", "new", "--owner", "safe", "--guardian", "fabric", "--out", &out]);
    denials.expect("no passphrase and no terminal", BAD_INPUT, "not a terminal", asked);
    with("a long passphrase", &new)?.ok().context("the control")?;
    denials.close();
    world.close()
}

/// What people read before they trust a file.
#[test]
fn show_says_who_owns_who_opens_and_until_when() -> Result<()> {
    let world = World::new()?;
    let file = path(&world.offline("vm.protector.xml"));
    world.tenant(&["protector", "new", "--owner", "tenant", "--guardian", "fabric", "--out", &file])?.ok()?;
    world.tenant(&["guardian", "new", "partner", "--role", "fabric"])?.ok()?;
    let granted = path(&world.offline("granted.xml"));
    world.tenant(&["protector", "grant", &file, "--owner", "tenant", "--to", "partner", "--out", &granted])?.ok()?;
    let shown = world.tenant(&["protector", "show", &granted])?.ok()?.stdout;
    for text in ["tenant", "owner", "fabric", "partner", "until 20"] {
        ensure!(shown.contains(text), "no {text:?} in: {shown}");
    }
    let revoked = path(&world.offline("revoked.xml"));
    world
        .tenant(&["protector", "revoke", &granted, "--owner", "tenant", "--from", "partner", "--out", &revoked])?
        .ok()?;
    let shown = world.tenant(&["protector", "show", &revoked])?.ok()?.stdout;
    ensure!(!shown.contains("partner"), "the revoked guardian is still there: {shown}");
    let exported = path(&world.offline("partner.xml"));
    world.tenant(&["guardian", "export", "partner", "--out", &exported])?.ok()?;
    ensure!(!fs::read_to_string(&exported)?.contains("PRIVATE"), "an export with a private key");
    world.tenant(&["guardian", "import", &exported, "--name", "again"])?.ok()?;
    let list = world.tenant(&["guardian", "list"])?.ok()?.stdout;
    ensure!(list.lines().any(|l| l.starts_with("again") && l.contains("public")), "not listed: {list}");
    ensure!(list.lines().any(|l| l.starts_with("tenant") && l.contains("private")), "not listed: {list}");
    world.close()
}
