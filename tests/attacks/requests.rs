//! A fabric that carries the recovery's papers, and an owner who must not be led to type a passphrase blindly.

use std::fs;
use std::process::Command;
use std::time::Duration as Span;

use anyhow::{Context, Result, ensure};
use drydock_tests::console::Console;
use drydock_tests::process::{Finished, run as run_program};
use drydock_tests::request::{Asker, request};
use drydock_tests::tenant::recovery_guardian;
use drydock_tests::world::{World, drydock, path};
use key_protector::{Guardian, KeyKind, Protector, Role};
use time::{Duration, OffsetDateTime};

use crate::suite::{Row, Suite};

const SHORT: Span = Span::from_secs(60);
const PASSPHRASE: &str = "a long passphrase";

/// A tenant host whose owner's keys are under a passphrase, and a garage that it knows.
pub(crate) struct Tenant {
    world: World,
    garage: Asker,
    protector: Protector,
}

const ROWS: &[Row<Tenant>] = &[
    Row {
        name: "the_owner_reads_what_is_granted_before_a_passphrase_is_asked_for",
        attacker: "fabric, with an honest request for something else than the owner thinks",
        holds: "the way between garage and tenant host",
        tries: "hopes that the owner types the passphrase before reading",
        must: "VM, garage, guardian and end are shown first, then a question; after a no nothing was asked or written",
        control: "after a yes the passphrase is asked for, and the grant is written",
        run: shown_first,
    },
    Row {
        name: "a_refused_request_leaves_the_passphrase_unread",
        attacker: "fabric",
        holds: "requests that are forged, altered, for somebody else's VM, for a guardian of another kind or of too \
                long a life",
        tries: "has the owner's passphrase read for nothing, as a script would give it",
        must: "refused, and the passphrase still lies unread in its pipe",
        control: "a good request takes it out of the same pipe",
        run: unread,
    },
];

pub(crate) fn run(suite: &mut Suite) {
    suite.group("requests", ROWS, Tenant::new, |tenant| tenant.world.close());
}

impl Tenant {
    fn new() -> Result<Self> {
        let world = World::new()?;
        let garage = Asker::known(&world)?;
        let protector = world.offline("dvm.xml");
        let made = [
            "guardian new safe --format pkcs12".to_owned(),
            format!("protector new --owner safe --guardian fabric --out {}", path(&protector)),
        ];
        for args in made {
            with_pipe(&world, &args)?.0.ok()?;
        }
        let protector = Protector::parse(&fs::read(protector)?)?;
        Ok(Tenant { world, garage, protector })
    }
}

/// Runs `drydock` with the passphrase in a pipe, and says what is left in it.
fn with_pipe(world: &World, args: &str) -> Result<(Finished, String)> {
    let script = format!(
        "exec 3< <(echo '{PASSPHRASE}'); timeout 30 {} {args} --passphrase-fd 3; code=$?; \
         if read -r left <&3; then echo \"left: $left\"; fi; exit $code",
        drydock()?.display()
    );
    let mut bash = Command::new("bash");
    bash.args(["-c", &script]).env("HOME", world.offline("."));
    let done = run_program(&mut bash, b"", SHORT)?;
    let left = done.stdout.lines().find_map(|line| line.strip_prefix("left: ")).unwrap_or_default().to_owned();
    Ok((done, left))
}

fn shown_first(tenant: &mut Tenant) -> Result<()> {
    let guardian = recovery_guardian(Duration::hours(24))?;
    let (file, grant) = (tenant.world.offline("request"), tenant.world.offline("shown.grant"));
    fs::write(&file, tenant.garage.ask(&request(&tenant.protector, &guardian)?, &guardian)?)?;
    let open = || {
        let line =
            format!("{} recovery grant {} --owner safe --out {}", drydock()?.display(), path(&file), path(&grant));
        let mut command = Command::new("script");
        command.args(["-q", "-e", "-c", &line, "/dev/null"]).env("HOME", tenant.world.offline("."));
        Console::open(&mut command)
    };
    let mut terminal = open()?;
    let shown = terminal.expect("Grant it?", SHORT)?;
    let end = outcome::rfc3339(guardian.public().not_after());
    for text in ["dvm", "vmre", "recovery", "until", &end[..16], "fabric"] {
        ensure!(shown.contains(text), "{text:?} is not shown: {shown}");
    }
    ensure!(!shown.contains("assphrase"), "asked before the question: {shown}");
    terminal.type_line("no")?;
    let rest = terminal.expect("not confirmed", SHORT)?;
    ensure!(!rest.contains("assphrase") && !grant.exists(), "asked after a no: {rest}");
    drop(terminal);

    let mut terminal = open()?;
    terminal.expect("Grant it?", SHORT)?;
    terminal.type_line("yes")?;
    terminal.expect("Passphrase of safe", SHORT).context("the control")?;
    terminal.type_line(PASSPHRASE)?;
    terminal.expect("grant written to", SHORT).context("the control")?;
    ensure!(grant.exists(), "the control: no grant");
    Ok(())
}

fn unread(tenant: &mut Tenant) -> Result<()> {
    let now = OffsetDateTime::now_utc();
    let of = |role, hours| {
        Guardian::generate("other", role, KeyKind::Rsa2048, now - Duration::hours(1), now + Duration::hours(hours))
    };
    let (good, long) = (recovery_guardian(Duration::hours(24))?, recovery_guardian(Duration::hours(100))?);
    let fabric = of(Role::Fabric, 1)?;
    let (foreign, _) = Protector::new(&of(Role::Owner, 1)?, &[], now)?;
    let honest = tenant.garage.ask(&request(&tenant.protector, &good)?, &good)?;
    let mut flipped = honest.clone();
    flipped[honest.len() / 2] ^= 1;
    let forged = Asker::new()?.ask(&request(&tenant.protector, &good)?, &good)?;
    let (file, grant) = (tenant.world.offline("request"), tenant.world.offline("unread.grant"));
    let ask = |bytes: &[u8]| {
        fs::write(&file, bytes)?;
        let args = format!("recovery grant {} --owner safe --yes --out {}", path(&file), path(&grant));
        with_pipe(&tenant.world, &args)
    };
    for (what, bytes) in [
        ("an altered request", flipped),
        ("a forged request", forged),
        ("somebody else's VM", tenant.garage.ask(&request(&foreign, &good)?, &good)?),
        ("a guardian of another kind", tenant.garage.ask(&request(&tenant.protector, &fabric)?, &fabric)?),
        ("a guardian of too long a life", tenant.garage.ask(&request(&tenant.protector, &long)?, &long)?),
    ] {
        let (done, left) = ask(&bytes)?;
        ensure!([3, 4].contains(&done.code), "{what}: exit code {}: {}", done.code, done.stderr);
        ensure!(left == PASSPHRASE, "{what}: the passphrase was read");
        ensure!(!grant.exists(), "{what}: a grant");
    }
    let (done, left) = ask(&honest)?;
    done.ok().context("the control")?;
    ensure!(left.is_empty() && grant.exists(), "the control: the passphrase was not read");
    Ok(())
}
