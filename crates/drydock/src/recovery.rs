//! `drydock recovery …`

use std::path::{Path, PathBuf};

use outcome::{Context, Error, Kind, Result};
use recovery::api::{Destination, Imported, RecoveryRequest, StatusReport};
use serde_json::{Value, json};
use time::OffsetDateTime;

use crate::agent_call::call;
use crate::cli::{Owner, Recovery};
use crate::guardian::write;
use crate::keyring::{self, Keyring};
use crate::output::Output;

pub(crate) fn run(command: Recovery, socket: &Path, out: &Output) -> Result<()> {
    match command {
        Recovery::Export { vm, to, to_file, copy, stop, restart_garage } => {
            let to = match (to, to_file) {
                (_, Some(file)) => Destination::File(absolute(&file)?),
                (garage, None) => Destination::Garage(garage.unwrap_or_default()),
            };
            sentence(&RecoveryRequest::RecoveryExport { vm, to, copy, stop, restart_garage }, socket, out)
        }
        Recovery::Attach { file, to, restart_garage } => {
            let request = RecoveryRequest::RecoveryAttach { file: absolute(&file)?, garage: to, restart_garage };
            sentence(&request, socket, out)
        }
        Recovery::Detach { vm } => sentence(&RecoveryRequest::RecoveryDetach { vm }, socket, out),
        Recovery::Import { out: target, grant, switch, hours, install } => {
            import(target, grant.as_deref(), switch, hours, install, socket, out)
        }
        Recovery::Grant { request, owner, out: target, yes } => grant(&request, owner, target, yes, out),
        Recovery::Finish { vm, stop } => sentence(&RecoveryRequest::RecoveryFinish { vm, stop }, socket, out),
        Recovery::Reinstate { vm, from, keep_original } => {
            let from = from.as_deref().map(absolute).transpose()?;
            sentence(&RecoveryRequest::RecoveryReinstate { vm, from, keep_original }, socket, out)
        }
        Recovery::Commit { vm } => sentence(&RecoveryRequest::RecoveryCommit { vm }, socket, out),
        Recovery::Rollback { vm, stop } => sentence(&RecoveryRequest::RecoveryRollback { vm, stop }, socket, out),
        Recovery::Abort { vm } => sentence(&RecoveryRequest::RecoveryAbort { vm }, socket, out),
        Recovery::Status { vm } => {
            let value = call(socket, &RecoveryRequest::RecoveryStatus { vm }, out)?;
            let reports: Vec<StatusReport> = parse(&value)?;
            out.result(&value, || {
                if reports.is_empty() {
                    return "no recovery here".into();
                }
                reports.iter().map(|r| format!("{}: {}\n", r.vm, r.sentence)).collect()
            });
            Ok(())
        }
    }
}

/// The agent has another working directory.
fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).context(Kind::BadInput, || format!("'{}' is not a path", path.display()))
}

fn parse<T: serde::de::DeserializeOwned>(value: &Value) -> Result<T> {
    serde_json::from_value(value.clone()).context(Kind::Internal, || "the agent's answer has another shape".into())
}

/// Commands whose answer is where the recovery stands now.
fn sentence(request: &RecoveryRequest, socket: &Path, out: &Output) -> Result<()> {
    let value = call(socket, request, out)?;
    let report: StatusReport = parse(&value)?;
    out.result(&value, || report.sentence);
    Ok(())
}

fn import(
    target: Option<PathBuf>,
    grant: Option<&Path>,
    switch: String,
    hours: u32,
    install: bool,
    socket: &Path,
    out: &Output,
) -> Result<()> {
    let (grant, grant_name) = match grant {
        Some(path) => {
            let text = String::from_utf8(keyring::read(path)?)
                .context(Kind::BadInput, || format!("{} is not a recovery grant", path.display()))?;
            (Some(text), Some(path.display().to_string()))
        }
        None => (None, None),
    };
    let request = RecoveryRequest::RecoveryImport { grant, grant_name, switch, hours, install };
    let value = call(socket, &request, out)?;
    let imported: Imported = parse(&value)?;
    match imported.request {
        Some(document) => {
            let target = target.unwrap_or_else(|| PathBuf::from(format!("{}.recovery-request", imported.vm)));
            write(&target, document.as_bytes())?;
            out.result(&json!({ "vm": imported.vm, "request": target, "next": imported.sentence }), || {
                format!("recovery request written to {}\n{}", target.display(), imported.sentence)
            });
        }
        None => out.result(&value, || imported.sentence),
    }
    Ok(())
}

fn grant(request: &Path, owner: Owner, target: Option<PathBuf>, yes: bool, out: &Output) -> Result<()> {
    let now = OffsetDateTime::now_utc();
    let what = request.display().to_string();
    let keyring = Keyring::open(owner.folder.guardians)?;
    let checked = recovery::documents::read_request(&what, &keyring::read(request)?, &keyring.garages()?, now)?;
    recovery::grant::check(&what, &checked, &keyring.public(&owner.owner)?, now)?;
    let target = target.unwrap_or_else(|| PathBuf::from(format!("{}.recovery-grant", checked.request.vm_name)));
    if target.exists() {
        return Err(Error::new(Kind::WrongState, format!("{} exists already", target.display()))
            .remedy("name another file with --out"));
    }
    let summary = recovery::grant::summary(&checked);
    out.note(&format!(
        "This request asks you to let a repair garage open your VM:\n  \
         VM         {} ({})\n  garage     {} (it calls itself {})\n  guardian   {} ({})\n  until      {}\n  \
         can open it already: {}",
        summary.vm_name,
        summary.vm_id,
        summary.garage,
        summary.garage_says,
        summary.guardian,
        crate::vm::short(&summary.guardian_fingerprint),
        summary.not_after,
        summary.can_open_now.join(", "),
    ));
    if !yes {
        keyring::confirm("Grant it?")?;
    }
    let keys = keyring.private(&owner.owner, owner.passphrase_fd)?;
    let document = recovery::grant::issue(&what, &checked, &keys, now)?;
    // A grant that was not given is not left lying about, nor in the way of the next try.
    write(&target, &document).inspect_err(|_| drop(std::fs::remove_file(&target)))?;
    out.result(&json!({ "grant": target, "summary": summary }), || {
        format!(
            "recovery grant written to {}\nBring it into the garage and run: drydock recovery import --grant {}",
            target.display(),
            target.file_name().unwrap_or_default().to_string_lossy()
        )
    });
    Ok(())
}
