//! `drydock protector …`: make and change key protectors, where the owner's private key is.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use hgs::Permit;
use key_protector::protector::MAX_OFFLINE_UNWRAPS;
use key_protector::{Guardian, Protector, Wrapping};
use outcome::{Context, Error, Kind, Next, Result, rfc3339};
use serde_json::{Value, json};
use time::{Duration, OffsetDateTime};

use crate::keyring::{Keyring, OwnerArgs};
use crate::output::Output;
use crate::{files, fingerprint};

/// The longest life of a permit, in hours.
const MAX_PERMIT_HOURS: i64 = 24 * 30;

#[derive(Subcommand)]
pub(crate) enum ProtectorCommand {
    /// Make a key protector with a new transport key, for a new VM.
    ///
    /// It says who owns the VM and which guardians can open it. Give the file to the fabric admin for
    /// `drydock vm create`; it holds no key in the clear.
    #[command(
        after_long_help = "Example:\n  drydock protector new --owner tenant --guardian fabric --out web.protector.xml"
    )]
    New(New),
    /// Show who owns a protector, who can open it, and until when.
    ///
    /// Signatures are not checked; `drydock protector verify` does that.
    #[command(after_long_help = "Example:\n  drydock protector show web.protector.xml")]
    Show {
        /// The key protector.
        file: PathBuf,
    },
    /// Let one more guardian open a protector. The transport key stays the same.
    ///
    /// For another fabric that is to run the VM, for example, or for the next guardian of the same one.
    #[command(after_long_help = "Example, for a VM that exists:\n  \
        fabric admin:  drydock vm protector web --out web.xml\n  \
        owner:         drydock protector grant web.xml --owner tenant --to partner --out new.xml --change web.change\n  \
        fabric admin:  drydock vm set-protector web web.change")]
    Grant {
        #[command(flatten)]
        change: ChangeArgs,
        /// The guardian to let in, by name.
        #[arg(long, value_name = "GUARDIAN")]
        to: String,
    },
    /// Shut a guardian out: the new protector has a new transport key, and the guardian cannot open what is sealed
    /// from then on.
    ///
    /// What was sealed before stays open to whoever kept a copy of it and of the old protector.
    #[command(after_long_help = "Example, for a VM that exists:\n  \
        fabric admin:  drydock vm protector web --out web.xml\n  \
        owner:         drydock protector revoke web.xml --owner tenant --from partner --out new.xml --change web.change\n  \
        fabric admin:  drydock vm set-protector web web.change")]
    Revoke {
        #[command(flatten)]
        change: ChangeArgs,
        /// The guardian to shut out, by name or by the fingerprint of its signing certificate.
        #[arg(long, value_name = "GUARDIAN")]
        from: String,
    },
    /// Check every signature in a protector, and that all certificates chain to its owner's.
    #[command(after_long_help = "Example:\n  drydock protector verify web.protector.xml")]
    Verify {
        /// The key protector.
        file: PathBuf,
    },
    /// After a restore from a backup: permit a Host Guardian Service that refuses stale protectors to accept this one.
    ///
    /// The permit is for one restore. Give the file to the fabric admin, who passes it to `drydock hgs permit`.
    #[command(after_long_help = "Example:\n  \
        drydock protector permit-stale restored.xml --owner tenant --hours 4 --out web.permit")]
    PermitStale {
        /// The protector of the restored VM.
        file: PathBuf,
        #[command(flatten)]
        owner: OwnerArgs,
        /// Lifetime of the permit in hours.
        #[arg(long, default_value_t = 24, value_parser = clap::value_parser!(u32).range(1..=MAX_PERMIT_HOURS))]
        hours: u32,
        /// Where to write the permit.
        #[arg(long, short, value_name = "FILE")]
        out: PathBuf,
    },
}

#[derive(Args)]
pub(crate) struct New {
    #[command(flatten)]
    pub owner: OwnerArgs,
    /// A guardian that may open it, by name: the fabric's. Repeatable.
    #[arg(long = "guardian", required = true, value_name = "NAME")]
    pub allowed: Vec<String>,
    /// How often a host may start the VM without the Host Guardian Service after each start with it, if the
    /// fabric runs its agent with --offline.
    ///
    /// This is for outages of all nodes of the service. It has a price: the host keeps the VM's transport key, sealed
    /// to itself. A host that was removed from the service's list, or stolen, and that is cut off from the service can
    /// start the VM that many times more; in host-key mode, anyone who has the host's disk can read the key.
    #[arg(long, value_name = "N", default_value_t = 0,
        value_parser = clap::value_parser!(u32).range(..=i64::from(MAX_OFFLINE_UNWRAPS)))]
    pub offline_unwraps: u32,
    /// Where to write the protector; an existing file is never overwritten.
    #[arg(long, short, value_name = "FILE")]
    pub out: PathBuf,
}

/// The protector that changes, its owner, and where the result goes.
#[derive(Args)]
pub(crate) struct ChangeArgs {
    /// The protector as it is now: what `drydock vm protector` or `drydock protector new` wrote.
    pub file: PathBuf,
    #[command(flatten)]
    pub owner: OwnerArgs,
    /// Where to write the new protector; an existing file is never overwritten.
    #[arg(long, short, value_name = "FILE")]
    pub out: PathBuf,
    /// For a VM that exists: also write the signed protector update from FILE to the new protector, for
    /// `drydock vm set-protector`.
    #[arg(long, value_name = "FILE")]
    pub change: Option<PathBuf>,
}

pub(crate) fn run(command: ProtectorCommand, out: &Output) -> Result<()> {
    match command {
        ProtectorCommand::New(args) => new(args, out),
        ProtectorCommand::Show { file } => {
            let protector = load(&file)?;
            out.result(&to_json(&protector), || describe(&protector, OffsetDateTime::now_utc()));
            Ok(())
        }
        ProtectorCommand::Verify { file } => verify(&file, out),
        ProtectorCommand::Grant { change, to } => grant(change, &to, out),
        ProtectorCommand::Revoke { change, from } => revoke(change, &from, out),
        ProtectorCommand::PermitStale { file, owner, hours, out: target } => {
            permit_stale(&file, owner, hours, &target, out)
        }
    }
}

fn new(args: New, out: &Output) -> Result<()> {
    let New { owner, allowed, offline_unwraps, out: target } = args;
    let now = OffsetDateTime::now_utc();
    let keyring = Keyring::open(owner.keyring)?;
    must_not_exist(&target)?;
    let allowed = allowed.iter().map(|name| keyring.public(name)).collect::<Result<Vec<_>>>()?;
    let keys = keyring.private(&owner.owner, owner.passphrase_fd)?;
    let protector = Protector::new(&keys, &allowed, now)
        .and_then(|(protector, _)| match offline_unwraps {
            0 => Ok(protector),
            some => protector.allow_offline(&keys, some, now),
        })
        .context(Kind::BadInput, || "cannot make a protector of these guardians".into())?;
    finish(&protector, &target, out)
}

fn verify(file: &Path, out: &Output) -> Result<()> {
    let protector = load(file)?;
    protector
        .verify(OffsetDateTime::now_utc())
        .context(Kind::BadInput, || format!("{} does not verify", file.display()))?;
    out.result(&to_json(&protector), || {
        format!("{}: every signature chains to the owner\n{}", file.display(), offline(&protector))
    });
    Ok(())
}

fn grant(args: ChangeArgs, to: &str, out: &Output) -> Result<()> {
    let ChangeArgs { file, owner, out: target, change } = args;
    let keyring = Keyring::open(owner.keyring)?;
    let protector = load(&file)?;
    let to = keyring.public(to)?;
    let keys = keyring.private(&owner.owner, owner.passphrase_fd)?;
    let granted = protector
        .grant(&keys, &to, OffsetDateTime::now_utc())
        .context(Kind::BadInput, || format!("{} cannot be granted to '{}'", file.display(), to.name()))?;
    must_not_exist(&target)?;
    write_update(change.as_deref(), &keys, &protector, &granted)?;
    finish(&granted, &target, out)
}

fn revoke(args: ChangeArgs, from: &str, out: &Output) -> Result<()> {
    let ChangeArgs { file, owner, out: target, change } = args;
    let keyring = Keyring::open(owner.keyring)?;
    let protector = load(&file)?;
    let fingerprint = fingerprint_of(&protector, from)?;
    let keys = keyring.private(&owner.owner, owner.passphrase_fd)?;
    let (_, revoked, _) = protector
        .revoke(&keys, &fingerprint, OffsetDateTime::now_utc())
        .context(Kind::BadInput, || format!("cannot revoke '{from}' from {}", file.display()))?;
    out.note(
        "The new protector has a new transport key: it opens nothing that was sealed before. \
         Use it for a new VM, or with --change for the next start of the VM that has this protector.",
    );
    must_not_exist(&target)?;
    write_update(change.as_deref(), &keys, &protector, &revoked)?;
    finish(&revoked, &target, out)
}

fn permit_stale(file: &Path, owner: OwnerArgs, hours: u32, target: &Path, out: &Output) -> Result<()> {
    let keyring = Keyring::open(owner.keyring)?;
    let protector = load(file)?;
    let keys = keyring.private(&owner.owner, owner.passphrase_fd)?;
    // Whole seconds: a permit has no fractions.
    let not_after = OffsetDateTime::now_utc().truncate_to_second() + Duration::hours(hours.into());
    let permit = Permit::sign(&keys, &protector, not_after)
        .context(Kind::BadInput, || format!("cannot make a permit for {}", file.display()))?;
    must_not_exist(target)?;
    files::write(target, &permit)?;
    let value = json!({ "file": target, "protector": protector.digest(), "not_after": rfc3339(not_after) });
    out.result(&value, || {
        format!(
            "permit in {}, for one restore until {}\nNext, the fabric admin: drydock hgs permit {}",
            target.display(),
            rfc3339(not_after),
            files::name(target)
        )
    });
    Ok(())
}

/// The owner's signed statement that one protector follows another, for the VM that has the first.
fn write_update(target: Option<&Path>, owner: &Guardian, from: &Protector, to: &Protector) -> Result<()> {
    let Some(target) = target else { return Ok(()) };
    must_not_exist(target)?;
    files::write(target, &host::protector_update::sign(owner, from, to)?)
}

fn must_not_exist(target: &Path) -> Result<()> {
    files::must_be_new(target, "choose another file; a protector is never overwritten")
}

fn finish(protector: &Protector, target: &Path, out: &Output) -> Result<()> {
    must_not_exist(target)?;
    files::write(target, &protector.to_xml())?;
    out.result(&to_json(protector), || {
        format!("{}written to {}", describe(protector, OffsetDateTime::now_utc()), target.display())
    });
    Ok(())
}

fn load(file: &Path) -> Result<Protector> {
    Protector::parse(&files::read(file)?)
        .context(Kind::BadInput, || format!("{} is not a key protector", file.display()))
        .or_next(|| "name a file that `drydock protector new`, `grant` or `revoke` wrote".into())
}

fn fingerprint_of(protector: &Protector, who: &str) -> Result<String> {
    let typed = fingerprint::plain(who);
    let matches: Vec<&Wrapping> = protector
        .wrappings()
        .iter()
        .filter(|w| w.signing_certificate().common_name() == who || w.signing_certificate().fingerprint() == typed)
        .collect();
    match matches.as_slice() {
        [one] => Ok(one.signing_certificate().fingerprint()),
        [] => Err(Error::new(Kind::NotFound, format!("the protector has no guardian '{who}'"))
            .remedy("list its guardians: drydock protector show FILE")),
        _ => Err(Error::new(Kind::BadInput, format!("the protector has several guardians named '{who}'"))
            .remedy("name it by the fingerprint of its signing certificate: drydock protector show FILE")),
    }
}

fn to_json(protector: &Protector) -> Value {
    let wrappings: Vec<Value> = protector
        .wrappings()
        .iter()
        .map(|w| {
            json!({
                "id": w.id(),
                "name": w.signing_certificate().common_name(),
                "role": w.role().as_str(),
                "fingerprint": w.signing_certificate().fingerprint(),
                "not_after": rfc3339(w.encryption_certificate().not_after()),
            })
        })
        .collect();
    json!({
        "digest": protector.digest(),
        "owner": protector.owner().signing_certificate().common_name(),
        "owner_fingerprint": protector.owner().signing_certificate().fingerprint(),
        "signed_by": protector.signer().signing_certificate().common_name(),
        "max_offline_unwraps": protector.max_offline_unwraps(),
        "can_open": wrappings,
    })
}

/// Whether a host may do without the Host Guardian Service, as its owner should read it.
fn offline(protector: &Protector) -> String {
    match protector.max_offline_unwraps() {
        0 => "offline    never: each start needs the Host Guardian Service".into(),
        n => format!("offline    {n} starts without the Host Guardian Service after each start with it"),
    }
}

fn describe(protector: &Protector, now: OffsetDateTime) -> String {
    let owner = protector.owner();
    let mut text = format!(
        "owner      {}\n           {}\nsigned by  {}\n{}\ncan open\n",
        owner.signing_certificate().common_name(),
        fingerprint::grouped(&owner.signing_certificate().fingerprint()),
        protector.signer().signing_certificate().common_name(),
        offline(protector),
    );
    for wrapping in protector.wrappings() {
        let end = wrapping.encryption_certificate().not_after();
        text += &format!(
            "  {:<20} {:<9} {} {}\n    {}\n",
            wrapping.signing_certificate().common_name(),
            wrapping.role(),
            if end < now { "EXPIRED" } else { "until" },
            rfc3339(end),
            fingerprint::grouped(&wrapping.signing_certificate().fingerprint()),
        );
    }
    text
}
