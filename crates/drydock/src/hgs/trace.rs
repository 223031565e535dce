//! `drydock hgs trace`: the service checks itself.

use hgs::{Check, Error as HgsError, Hgs, HostKind};
use outcome::Result;
use serde_json::json;
use time::OffsetDateTime;

use super::error::lift;
use crate::output::Output;

/// Days before the guardian's certificates expire at which it is time for the next ones.
const SOON: i64 = 30;

/// What was checked, and either what was found or what is wrong and what to do about it.
type Finding = (&'static str, std::result::Result<String, String>);

pub(super) async fn trace(service: &Hgs, out: &Output) -> Result<()> {
    let mut findings = vec![("guardian", guardian(service)), ("hosts", hosts(service).await?)];
    if service.mode() == HostKind::Tpm {
        findings.push(("policy", policy(service).await?));
    }
    findings.push(("audit log", audit_log(service).await?));
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

fn guardian(service: &Hgs) -> std::result::Result<String, String> {
    let left = (service.guardian().not_after() - OffsetDateTime::now_utc()).whole_days();
    if left > SOON {
        return Ok(format!("valid for {left} more days"));
    }
    Err(format!("valid for {left} more days; make the next one: drydock hgs rotate"))
}

async fn hosts(service: &Hgs) -> Result<std::result::Result<String, String>> {
    let hosts = service.hosts().await.map_err(lift)?;
    let mode = service.mode();
    let fitting = hosts.iter().filter(|host| host.identity.kind() == mode).count();
    Ok(if fitting > 0 {
        Ok(format!("{fitting} may attest in {} mode", mode.name()))
    } else {
        Err(format!("none may attest in {} mode; register one: drydock hgs add-host", mode.name()))
    })
}

/// The checks of measured boots.
async fn policy(service: &Hgs) -> Result<std::result::Result<String, String>> {
    let policy = service.policy().await.map_err(lift)?;
    let compares = policy.checks.iter().any(|check| matches!(check, Check::KnownGood | Check::SecureBootSettings));
    Ok(if policy.checks.is_empty() {
        Err("all checks are off, so any boot passes; switch one on: drydock hgs add-policy".to_owned())
    } else if compares && policy.baselines.is_empty() {
        Err("no boot is known good, so none passes; accept one: drydock hgs add-baseline".to_owned())
    } else {
        Ok(format!("{} checks, {} baselines", policy.checks.len(), policy.baselines.len()))
    })
}

async fn audit_log(service: &Hgs) -> Result<std::result::Result<String, String>> {
    match service.verify_audit_since(None).await {
        Ok((rows, _)) => Ok(Ok(format!("{rows} rows, intact and signed"))),
        Err(error @ (HgsError::AuditBroken { .. } | HgsError::AuditForged { .. })) => {
            Ok(Err(format!("{error}; keep a copy of the service's directory and find out who had access to it")))
        }
        Err(error) => Err(lift(error)),
    }
}
