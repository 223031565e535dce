//! `drydock protector …`

use std::path::Path;

use hgs::Permit;
use key_protector::{Protector as Document, Signer, Wrapping};
use outcome::rfc3339;
use outcome::{Context, Error, Kind, Next, Result};
use serde_json::{Value, json};
use time::{Duration, OffsetDateTime};

use crate::cli::Protector;
use crate::guardian::write;
use crate::keyring::{self, Keyring};
use crate::output::Output;

pub(crate) fn run(command: Protector, out: &Output) -> Result<()> {
    let now = OffsetDateTime::now_utc();
    match command {
        Protector::New { owner, allowed, offline_unwraps, out: target } => {
            let keyring = Keyring::open(owner.folder.guardians)?;
            must_not_exist(&target)?;
            let allowed = allowed.iter().map(|name| keyring.public(name)).collect::<Result<Vec<_>>>()?;
            let keys = keyring.private(&owner.owner, owner.passphrase_fd)?;
            let protector = Document::new(&keys, &allowed, now)
                .and_then(|(protector, _)| match offline_unwraps {
                    0 => Ok(protector),
                    some => protector.allow_offline(&keys, some, now),
                })
                .context(Kind::BadInput, || "cannot make a protector of these guardians".into())?;
            finish(&protector, &target, out)
        }
        Protector::Show { file } => {
            let protector = load(&file)?;
            out.result(&view(&protector), || describe(&protector, now));
            Ok(())
        }
        Protector::Verify { file } => {
            let protector = load(&file)?;
            protector.verify(now).context(Kind::BadInput, || format!("{} does not verify", file.display()))?;
            out.result(&view(&protector), || {
                format!("{}: every signature chains to the owner\n{}", file.display(), offline(&protector))
            });
            Ok(())
        }
        Protector::Grant { file, owner, to, out: target, change } => {
            let keyring = Keyring::open(owner.folder.guardians)?;
            let protector = load(&file)?;
            let to = keyring.public(&to)?;
            let keys = keyring.private(&owner.owner, owner.passphrase_fd)?;
            let granted = protector
                .grant(&keys, &to, now)
                .context(Kind::BadInput, || format!("{} cannot be granted to '{}'", file.display(), to.name()))?;
            must_not_exist(&target)?;
            write_change(change.as_deref(), &keys, &protector, &granted)?;
            finish(&granted, &target, out)
        }
        Protector::PermitStale { file, owner, hours, out: target } => {
            let keyring = Keyring::open(owner.folder.guardians)?;
            let protector = load(&file)?;
            let keys = keyring.private(&owner.owner, owner.passphrase_fd)?;
            // As the permit has it: in whole seconds.
            let not_after = now.truncate_to_second() + Duration::hours(hours.into());
            let permit = Permit::sign(&keys, &protector, not_after)
                .context(Kind::BadInput, || format!("{} cannot be permitted", file.display()))?;
            must_not_exist(&target)?;
            write(&target, &permit)?;
            let value = json!({ "file": target, "protector": protector.digest(), "not_after": rfc3339(not_after) });
            out.result(&value, || {
                format!(
                    "permit in {}, for one restore until {}\nThe fabric admin takes it in: drydock hgs permit {}",
                    target.display(),
                    rfc3339(not_after),
                    target.file_name().unwrap_or_default().to_string_lossy()
                )
            });
            Ok(())
        }
        Protector::Revoke { file, owner, from, out: target, change } => {
            let keyring = Keyring::open(owner.folder.guardians)?;
            let protector = load(&file)?;
            let fingerprint = fingerprint_of(&protector, &from)?;
            let keys = keyring.private(&owner.owner, owner.passphrase_fd)?;
            let (_, revoked, _) = protector
                .revoke(&keys, &fingerprint, now)
                .context(Kind::BadInput, || format!("cannot revoke '{from}' from {}", file.display()))?;
            out.note(
                "The new protector has a new transport key: it opens nothing that was sealed before. \
                 Use it for a new VM, or with --change for the next start of the VM whose protector this was.",
            );
            must_not_exist(&target)?;
            write_change(change.as_deref(), &keys, &protector, &revoked)?;
            finish(&revoked, &target, out)
        }
    }
}

/// The owner's word that one protector comes after the other, for the VM that has the first.
fn write_change(target: Option<&Path>, owner: &dyn Signer, from: &Document, to: &Document) -> Result<()> {
    let Some(target) = target else { return Ok(()) };
    must_not_exist(target)?;
    write(target, &host::protector_update::sign(owner, from, to)?)
}

fn must_not_exist(target: &Path) -> Result<()> {
    if target.exists() {
        return Err(Error::new(Kind::WrongState, format!("{} exists already", target.display()))
            .remedy("choose another file; a protector is never overwritten"));
    }
    Ok(())
}

fn finish(protector: &Document, target: &Path, out: &Output) -> Result<()> {
    must_not_exist(target)?;
    write(target, &protector.to_xml())?;
    out.result(&view(protector), || {
        format!("{}written to {}", describe(protector, OffsetDateTime::now_utc()), target.display())
    });
    Ok(())
}

pub(crate) fn load(file: &Path) -> Result<Document> {
    Document::parse(&keyring::read(file)?)
        .context(Kind::BadInput, || format!("{} is not a key protector", file.display()))
        .or_next(|| "name what `drydock protector new`, `grant` or `revoke` wrote".into())
}

fn fingerprint_of(protector: &Document, who: &str) -> Result<String> {
    let matches: Vec<&Wrapping> = protector
        .wrappings()
        .iter()
        .filter(|w| w.signing_certificate().common_name() == who || w.signing_certificate().fingerprint() == who)
        .collect();
    match matches.as_slice() {
        [one] => Ok(one.signing_certificate().fingerprint()),
        [] => Err(Error::new(Kind::NotFound, format!("the protector has no guardian '{who}'"))
            .remedy("drydock protector show FILE names them")),
        _ => Err(Error::new(Kind::BadInput, format!("the protector has several guardians named '{who}'"))
            .remedy("give the certificate fingerprint")),
    }
}

fn view(protector: &Document) -> Value {
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
fn offline(protector: &Document) -> String {
    match protector.max_offline_unwraps() {
        0 => "offline    never: each start needs the Host Guardian Service".into(),
        n => format!("offline    {n} starts without the Host Guardian Service after each start with it"),
    }
}

fn describe(protector: &Document, now: OffsetDateTime) -> String {
    let owner = protector.owner();
    let mut text = format!(
        "owner      {} ({})\nsigned by  {}\n{}\ncan open\n",
        owner.signing_certificate().common_name(),
        crate::vm::short(&owner.signing_certificate().fingerprint()),
        protector.signer().signing_certificate().common_name(),
        offline(protector),
    );
    for wrapping in protector.wrappings() {
        let end = wrapping.encryption_certificate().not_after();
        text += &format!(
            "  {:<20} {:<9} {} {}  ({})\n",
            wrapping.signing_certificate().common_name(),
            wrapping.role(),
            if end < now { "EXPIRED" } else { "until" },
            rfc3339(end),
            crate::vm::short(&wrapping.signing_certificate().fingerprint()),
        );
    }
    text
}
