//! `drydock hgs …`

use std::path::Path;
use std::sync::Arc;

use hgs::server::{self, Transport};
use hgs::{Check, HostKind};
use hgs::{Error as HgsError, Hgs as Service, InitOptions};
use outcome::rfc3339;
use outcome::{Error, Kind, Result};
use serde_json::json;

use crate::cli::{Audit, CheckArg, Hgs, HgsDir, ModeArg, OnOff};
use crate::guardian::{view, write};
mod nodes;
use crate::host::{runtime, shutdown};
use crate::keyring;
use crate::output::Output;

pub(crate) fn run(command: Hgs, out: &Output) -> Result<()> {
    runtime()?.block_on(async {
        match command {
            Hgs::Init { dir, name, san, mode, store, strict } => {
                outcome::check_name(&name)?;
                let mode = match mode {
                    ModeArg::HostKey => HostKind::HostKey,
                    ModeArg::Tpm => HostKind::Tpm,
                };
                let store = nodes::store(&store)?;
                init(&dir.dir, InitOptions { name, server_names: san, mode, store, strict, ..InitOptions::default() }, out)
                    .await
            }
            Hgs::Serve { dir, listen, plain_http } => {
                let transport = if plain_http { Transport::PlainHttp { force: false } } else { Transport::Https };
                let service = Arc::new(open(&dir).await?);
                let serving = server::serve(service, listen, transport, shutdown()?).await.map_err(lift)?;
                let scheme = if plain_http { "http" } else { "https" };
                out.note(&format!("listening on {scheme}://{}", serving.local_addr()));
                serving.wait().await.map_err(lift)
            }
            Hgs::AddHost { name, key, tpm, dir } => {
                let service = open(&dir).await?;
                let entry = match (key, tpm) {
                    (_, Some(tpm)) => service.add_tpm_host(&name, &keyring::read(&tpm)?).await,
                    (Some(key), None) => service.add_host(&name, &keyring::read(&key)?).await,
                    // The command line takes one of them.
                    (None, None) => return Err(Error::new(Kind::BadInput, "a key file is missing")),
                };
                let entry = entry.map_err(lift)?;
                let (fingerprint, kind) = (entry.identity.fingerprint(), entry.identity.kind().name());
                out.result(&json!({ "host": entry.name, "fingerprint": fingerprint, "kind": kind }), || {
                    format!("host '{}' may attest from now on\n  key {fingerprint}", entry.name)
                });
                Ok(())
            }
            Hgs::AddBaseline { name, log, pcrs, dir } => {
                let service = open(&dir).await?;
                let baseline = service.add_baseline(&name, &keyring::read(&log)?, &pcrs).await.map_err(lift)?;
                let pcrs: Vec<_> = baseline.pcrs.keys().collect();
                out.result(&json!({ "baseline": name, "pcrs": pcrs }), || {
                    format!("boots with these values of PCR {pcrs:?} are known good from now on")
                });
                Ok(())
            }
            Hgs::Rotate { dir, days } => {
                let lifetime = time::Duration::days(days.into());
                let guardian = open(&dir).await?.rotate_guardian(lifetime).await.map_err(lift)?;
                out.result(&json!({ "guardian": view(&guardian) }), || {
                    format!(
                        "new fabric guardian '{}'\n  signing certificate {}\n\
                         Next: start the service again, give tenants `drydock hgs guardian`, and have them grant it;\n      \
                         `drydock hgs status` lists what still depends on the old one, `drydock hgs retire` ends it.",
                        guardian.name(),
                        guardian.signing().fingerprint(),
                    )
                });
                Ok(())
            }
            Hgs::Retire { fingerprint, force, dir } => {
                open(&dir).await?.retire_guardian(&fingerprint, force).await.map_err(lift)?;
                out.result(&json!({ "retired": fingerprint }), || {
                    format!("the guardian {fingerprint} is gone; start the service again")
                });
                Ok(())
            }
            Hgs::RemoveBaseline { name, dir } => {
                open(&dir).await?.remove_baseline(&name).await.map_err(lift)?;
                out.result(&json!({ "removed": name }), || format!("boots as in '{name}' are not known good any more"));
                Ok(())
            }
            Hgs::AddPolicy { check, dir } => policy(&open(&dir).await?, check, true, out).await,
            Hgs::RemovePolicy { check, dir } => policy(&open(&dir).await?, check, false, out).await,
            Hgs::RemoveHost { name, dir } => {
                open(&dir).await?.remove_host(&name).await.map_err(lift)?;
                out.result(&json!({ "removed": name }), || format!("host '{name}' gets no key any more"));
                Ok(())
            }
            Hgs::Trace { dir } => trace(&open(&dir).await?, out).await,
            Hgs::Status { dir } => status(&open(&dir).await?, out).await,
            Hgs::Audit { command: Some(Audit::Verify { dir, kept }), .. } => {
                let verified = open(&dir).await?.verify_audit_since(kept.as_deref()).await;
                let (rows, head) = verified.map_err(lift)?;
                out.result(&json!({ "rows": rows, "head": head }), || {
                    format!("the chain of {rows} rows is whole and signed; keep its last hash elsewhere:\n{head}")
                });
                Ok(())
            }
            Hgs::Audit { command: None, dir, last } => {
                let service = open(&dir).await?;
                let (_, head) = service.verify_audit_since(None).await.map_err(lift)?;
                audit(&service, last, &head, out).await
            }
            Hgs::Export { dir, out: target, passphrase_fd } => {
                nodes::export(&open(&dir).await?, &target, passphrase_fd, out).await
            }
            Hgs::Import { file, dir, store, passphrase_fd } => {
                nodes::import(&file, &dir.dir, &store, passphrase_fd, out).await
            }
            Hgs::Strict { state, dir } => {
                let on = state == OnOff::On;
                open(&dir).await?.set_strict(on).await.map_err(lift)?;
                out.result(&json!({ "strict": on }), || {
                    let done = if on { "refused" } else { "released, and reported in the audit log," };
                    format!("stale protectors are {done} from now on")
                });
                Ok(())
            }
            Hgs::Permit { file, dir } => {
                let permit = open(&dir).await?.permit(&keyring::read(&file)?).await.map_err(lift)?;
                let not_after = rfc3339(permit.not_after);
                out.result(&json!({ "protector": permit.protector, "owner": permit.owner, "not_after": not_after }), || {
                    format!("the protector {} may be rolled until {not_after}, for one restore", permit.protector)
                });
                Ok(())
            }
            Hgs::Guardian { dir, out: target } => {
                let guardian = open(&dir).await?.guardian();
                write(&target, &guardian.to_xml())?;
                out.result(&json!({ "file": target, "guardian": view(&guardian) }), || {
                    format!(
                        "the fabric guardian '{}' is in {}\n  signing certificate {}\n\
                         Tell tenants the fingerprint over another channel.",
                        guardian.name(),
                        target.display(),
                        guardian.signing().fingerprint(),
                    )
                });
                Ok(())
            }
        }
    })
}

async fn open(dir: &HgsDir) -> Result<Service> {
    Service::open(&dir.dir).await.map_err(lift)
}

async fn policy(service: &Service, check: CheckArg, on: bool, out: &Output) -> Result<()> {
    let check = match check {
        CheckArg::SecureBoot => Check::SecureBoot,
        CheckArg::NoDebugMode => Check::NoDebugMode,
        CheckArg::SecureBootSettings => Check::SecureBootSettings,
        CheckArg::KnownGood => Check::KnownGood,
    };
    service.set_policy(check, on).await.map_err(lift)?;
    out.result(&json!({ "policy": check.name(), "on": on }), || {
        format!("the check '{}' is {} from now on", check.name(), if on { "made" } else { "not made" })
    });
    Ok(())
}

async fn init(dir: &Path, options: InitOptions, out: &Output) -> Result<()> {
    let mode = options.mode;
    let service = Service::init(dir, options).await.map_err(lift)?;
    let ca = service.ca_file();
    let folder = dir.display().to_string();
    let add_host = match mode {
        HostKind::HostKey => format!("add-host NAME host.pub.pem --dir {folder}"),
        HostKind::Tpm => format!(
            "add-host NAME --tpm ek.pem --dir {folder}\n      \
             drydock hgs add-baseline NAME binary_bios_measurements --dir {folder}"
        ),
    };
    out.result(&json!({ "dir": dir, "ca": ca, "mode": mode.name(), "guardian": view(&service.guardian()) }), || {
        format!(
            "Host Guardian Service in {folder}\n\
             hosts check it by {}\n\
             Next: drydock hgs {add_host}\n      \
             drydock hgs guardian --out fabric.guardian.xml --dir {folder}\n      \
             drydock hgs serve --dir {folder}",
            ca.display(),
        )
    });
    Ok(())
}

async fn status(service: &Service, out: &Output) -> Result<()> {
    let hosts = service.hosts().await.map_err(lift)?;
    let guardian = service.guardian();
    let rows: Vec<_> = hosts
        .iter()
        .map(|h| json!({ "name": h.name, "fingerprint": h.identity.fingerprint(), "added": rfc3339(h.added_at) }))
        .collect();
    let mode = service.mode();
    let strict = service.strict().await.map_err(lift)?;
    let policy = service.policy().await.map_err(lift)?;
    let checks: Vec<_> = policy.checks.iter().map(|check| check.name()).collect();
    let baselines: Vec<_> =
        policy.baselines.iter().map(|b| json!({ "name": b.name, "pcrs": b.pcrs.keys().collect::<Vec<_>>() })).collect();
    let primary = guardian.signing().fingerprint();
    let old: Vec<_> = service.guardians().into_iter().skip(1).collect();
    let in_use = service.in_use().await.map_err(lift)?;
    let dependents: Vec<_> = in_use.iter().filter(|protector| protector.guardian != primary).collect();
    let depending: Vec<_> = dependents
        .iter()
        .map(|p| json!({ "protector": p.digest, "guardian": p.guardian, "owner": p.owner, "host": p.host, "at": rfc3339(p.at) }))
        .collect();
    let value = json!({
        "old_guardians": old.iter().map(view).collect::<Vec<_>>(), "dependents": depending,
        "guardian": view(&guardian), "hosts": rows, "ca": service.ca_file(), "mode": mode.name(),
        "checks": checks, "baselines": baselines, "strict": strict,
    });
    out.result(&value, || {
        let mut text = format!(
            "fabric guardian '{}', valid until {}\n  signing certificate {}\n",
            guardian.name(),
            rfc3339(guardian.not_after()),
            guardian.signing().fingerprint(),
        );
        for guardian in &old {
            let fingerprint = guardian.signing().fingerprint();
            text += &format!("old guardian, signing certificate {fingerprint}\n");
            for protector in dependents.iter().filter(|protector| protector.guardian == fingerprint) {
                text += &format!(
                    "  needed by a VM on {}, owner {}, protector {}, since {}\n",
                    protector.host,
                    crate::vm::short(&protector.owner),
                    crate::vm::short(&protector.digest),
                    rfc3339(protector.at)
                );
            }
        }
        for host in &hosts {
            text += &format!(
                "host {:<20} {}  since {}\n",
                host.name,
                crate::vm::short(&host.identity.fingerprint()),
                rfc3339(host.added_at)
            );
        }
        if hosts.is_empty() {
            let key = if mode == HostKind::Tpm { "--tpm ek.pem" } else { "host.pub.pem" };
            text += &format!("no host may attest; add one: drydock hgs add-host NAME {key}\n");
        }
        text += if strict { "stale protectors are refused\n" } else { "stale protectors are reported, not refused\n" };
        if mode == HostKind::Tpm {
            text += &format!("checks of measured boots: {}\n", checks.join(", "));
            for baseline in &policy.baselines {
                text += &format!("baseline {:<16} PCR {:?}\n", baseline.name, baseline.pcrs.keys().collect::<Vec<_>>());
            }
            if policy.baselines.is_empty() {
                text += "no boot is known good; take one: drydock hgs add-baseline NAME binary_bios_measurements\n";
            }
        }
        text
    });
    Ok(())
}

/// One thing that was looked at: its name, and what is wrong with it and what helps.
type Finding = (&'static str, std::result::Result<String, String>);

async fn trace(service: &Service, out: &Output) -> Result<()> {
    let mut findings: Vec<Finding> = Vec::new();
    let left = (service.guardian().not_after() - time::OffsetDateTime::now_utc()).whole_days();
    findings.push((
        "guardian",
        if left > 30 {
            Ok(format!("valid for {left} more days"))
        } else {
            Err(format!("valid for {left} more days; make the next one: drydock hgs rotate"))
        },
    ));
    let hosts = service.hosts().await.map_err(lift)?;
    let (mode, fitting) = (service.mode(), hosts.iter().filter(|host| host.identity.kind() == service.mode()).count());
    findings.push((
        "hosts",
        if fitting > 0 {
            Ok(format!("{fitting} may attest in {} mode", mode.name()))
        } else {
            Err(format!("none may attest in {} mode; add one: drydock hgs add-host", mode.name()))
        },
    ));
    if mode == HostKind::Tpm {
        let policy = service.policy().await.map_err(lift)?;
        let compares = policy.checks.iter().any(|check| matches!(check, Check::KnownGood | Check::SecureBootSettings));
        findings.push((
            "policy",
            if policy.checks.is_empty() {
                Err("no check is made, any boot passes; make one: drydock hgs add-policy".to_owned())
            } else if compares && policy.baselines.is_empty() {
                Err("no boot is known good, so none passes; take one: drydock hgs add-baseline".to_owned())
            } else {
                Ok(format!("{} checks, {} baselines", policy.checks.len(), policy.baselines.len()))
            },
        ));
    }
    findings.push((
        "audit log",
        match service.verify_audit_since(None).await {
            Ok((rows, _)) => Ok(format!("{rows} rows, whole and signed")),
            Err(error @ (HgsError::AuditBroken { .. } | HgsError::AuditForged { .. })) => {
                Err(format!("{error}; keep a copy of the folder and find out who had access to it"))
            }
            Err(error) => return Err(lift(error)),
        },
    ));
    let rows: Vec<_> = findings
        .iter()
        .map(|(what, found)| {
            let text = found.as_ref().unwrap_or_else(|wrong| wrong);
            json!({ "check": what, "passed": found.is_ok(), "text": text })
        })
        .collect();
    out.result(&json!({ "checks": rows }), || {
        let line = |(what, found): &Finding| match found {
            Ok(text) => format!("PASS  {what}: {text}\n"),
            Err(text) => format!("FAIL  {what}: {text}\n"),
        };
        findings.iter().map(line).collect()
    });
    Ok(())
}

async fn audit(service: &Service, last: u32, head: &str, out: &Output) -> Result<()> {
    let entries = service.audit(last).await.map_err(lift)?;
    let rows: Vec<_> = entries
        .iter()
        .map(|e| {
            json!({
                "seq": e.seq, "at": rfc3339(e.at), "event": e.event, "host": e.host,
                "protector": e.protector, "owner": e.owner, "why": e.why,
            })
        })
        .collect();
    out.result(&json!({ "entries": rows, "head": head }), || {
        let mut text: String = entries
            .iter()
            .map(|e| format!("{:>6}  {}  {:<20} {:<16} {}\n", e.seq, rfc3339(e.at), e.event, e.host, e.why))
            .collect();
        text += &format!("the chain is whole; its last hash is {head}\n");
        text
    });
    Ok(())
}

pub(crate) fn lift(error: HgsError) -> Error {
    let kind = match &error {
        HgsError::AlreadyThere { .. }
        | HgsError::HostExists { .. }
        | HgsError::KeyExists { .. }
        | HgsError::BaselineExists { .. }
        | HgsError::PrimaryGuardian
        | HgsError::GuardianInUse { .. }
        | HgsError::ForeignStore
        | HgsError::GuardianMissing { .. }
        | HgsError::PermitKnown
        | HgsError::OtherMode { .. } => Kind::WrongState,
        HgsError::NotThere { .. }
        | HgsError::NoSuchHost { .. }
        | HgsError::NoSuchBaseline { .. }
        | HgsError::NoSuchGuardian { .. } => Kind::NotFound,
        HgsError::Exposed { .. }
        | HgsError::PlainHttpExposed { .. }
        | HgsError::StoreExposed { .. }
        | HgsError::AuditBroken { .. }
        | HgsError::AuditForged { .. }
        | HgsError::AuditShrank { .. }
        | HgsError::AuditCut { .. } => Kind::Refused,
        HgsError::BadHostName { .. }
        | HgsError::BadEndorsementKey(_)
        | HgsError::BadLog(_)
        | HgsError::BadPcrs { .. }
        | HgsError::BadHostKey(_)
        | HgsError::Damaged { .. }
        | HgsError::BadStoreUrl
        | HgsError::NotAnExport
        | HgsError::ExportSealed
        | HgsError::ShortPassphrase { .. }
        | HgsError::Permit(_)
        | HgsError::BadPermit
        | HgsError::PermitExpired { .. }
        | HgsError::OtherOwner { .. }
        | HgsError::TooLarge { .. }
        | HgsError::Certificate(_) => Kind::BadInput,
        _ => Kind::Internal,
    };
    let lifted = Error::of(kind, &error);
    match error {
        HgsError::GuardianInUse { .. } => lifted.remedy(
            "have their owners grant the next guardian (drydock protector grant --change, then drydock vm set-protector), \
             and start those VMs once; or give them up with --force",
        ),
        _ => lifted,
    }
}
