//! The Host Guardian Service: each node, its certificates, both clocks, and an attestation.

use host::{Guarded, Store};
use key_protector::GuardianPublic;
use outcome::{Error, Result};
use time::{Duration, OffsetDateTime};

use super::check::Check;
use crate::host::{HgsArgs, guarded};

/// Certificates that expire sooner need attention now.
const SOON: Duration = Duration::days(30);
/// Health certificates that are valid for less than this could expire while a VM starts.
const LEAST_HEALTH: Duration = Duration::minutes(10);

pub(super) async fn checks(args: &HgsArgs) -> Vec<Check> {
    if args.hgs.is_empty() {
        let fix = "name it: drydock doctor --hgs URL --hgs-ca FILE";
        return vec![Check::skip("HGS", "no Host Guardian Service is named", Some(fix))];
    }
    // Opening a store creates it; a doctor creates nothing.
    let store = if args.store.join("vms").is_dir() { Store::open(&args.store).map(Some) } else { Ok(None) };
    let guarded = match store {
        Ok(Some(store)) => guarded(args, &store).await,
        Ok(None) => {
            let fix = format!("drydock host init --store {} --out host.pub.pem", args.store.display());
            return vec![Check::fail("HGS", "this host has no store, and therefore no key to attest with", fix)];
        }
        Err(error) => Err(error),
    };
    let guarded = match guarded {
        Ok(guarded) => guarded,
        Err(error) => return vec![failed("HGS", &error)],
    };
    let mut checks = Vec::new();
    let guardians = guarded.guardians().await;
    for (url, guardian) in guarded.urls().zip(&guardians) {
        checks.push(match guardian {
            Ok(guardian) => Check::pass("HGS", format!("{url} answers, with the guardian '{}'", guardian.name())),
            Err(error) => failed("HGS", error),
        });
    }
    checks.push(guardian(&guardians));
    checks.extend(attestation(&guarded).await);
    checks
}

/// The fabric guardian, which must be the same on all nodes.
fn guardian(found: &[Result<GuardianPublic>]) -> Check {
    const NAME: &str = "fabric guardian";
    let mut all = found.iter().flatten();
    let Some(first) = all.next() else { return Check::skip(NAME, "no node answered", None) };
    let fingerprint = first.signing().fingerprint();
    if all.any(|other| other.signing().fingerprint() != fingerprint) {
        return Check::fail(
            NAME,
            "the nodes have different guardians",
            "export the keys of the newest node, import them on the others, and restart all of them (docs/hgs.md, Several nodes)",
        );
    }
    let left = first.not_after() - OffsetDateTime::now_utc();
    let until = outcome::rfc3339(first.not_after());
    if left < SOON {
        return Check::fail(
            NAME,
            format!("'{}' expires at {until}", first.name()),
            "on the service: drydock hgs rotate; then have the owners grant the new guardian",
        );
    }
    Check::pass(NAME, format!("'{}', until {until}", first.name()))
}

async fn attestation(guarded: &Guarded) -> Vec<Check> {
    const NAME: &str = "attestation";
    let health = match guarded.attest().await {
        Ok(health) => health,
        Err(error) => return vec![failed(NAME, &error)],
    };
    let mut checks = vec![Check::pass(NAME, "Passed: the service gives this host keys")];
    let Some((from, until)) = health.validity() else {
        checks.push(Check::fail(
            "clock",
            "the health certificate is not valid",
            "run the same version of drydock on the host and on the service",
        ));
        return checks;
    };
    let now = OffsetDateTime::now_utc();
    checks.push(if now < from || now > until {
        Check::fail(
            "clock",
            format!(
                "the clock here says {}; the new health certificate is valid from {} to {}",
                outcome::rfc3339(now),
                outcome::rfc3339(from),
                outcome::rfc3339(until)
            ),
            "set both clocks by NTP: timedatectl set-ntp true",
        )
    } else {
        Check::pass("clock", "agrees with the service's clock")
    });
    let life = until - now;
    checks.push(if life < LEAST_HEALTH {
        Check::fail(
            "health",
            format!("health certificates are valid for {} minutes", life.whole_minutes()),
            "on the service: configure a longer lifetime of health certificates; the default is 8 hours",
        )
    } else {
        Check::pass("health", format!("health certificates are valid for {} minutes", life.whole_minutes()))
    });
    checks
}

fn failed(name: &'static str, error: &Error) -> Check {
    let causes: String = error.causes.iter().map(|cause| format!("; {cause}")).collect();
    let fix = error.remedy.clone().unwrap_or_else(|| "see the causes".into());
    Check::fail(name, format!("{}{causes}", error.message), fix)
}
