//! The Host Guardian Service: each node, its certificates, both clocks, and an attestation.

use host::Guarded;
use host::Store;
use key_protector::GuardianPublic;
use outcome::{Error, Result};
use time::{Duration, OffsetDateTime};

use super::Check;
use crate::cli::Service;
use crate::host::guarded;

/// Certificates that end sooner need somebody's attention now.
const SOON: Duration = Duration::days(30);
/// Health certificates of a service with a shorter life than this would end while VMs are started.
const LEAST_HEALTH: Duration = Duration::minutes(10);

pub(super) async fn checks(service: &Service) -> Vec<Check> {
    if service.hgs.is_empty() {
        let fix = "name it: drydock doctor --hgs URL --hgs-ca FILE";
        return vec![Check::skip("HGS", "no Host Guardian Service is named", Some(fix))];
    }
    // Opening a store makes it; a doctor makes nothing.
    let store = if service.store.join("vms").is_dir() { Store::open(&service.store).map(Some) } else { Ok(None) };
    let guarded = match store {
        Ok(Some(store)) => guarded(service, &store).await,
        Ok(None) => {
            let fix = format!("drydock host init --store {} --out host.pub.pem", service.store.display());
            return vec![Check::fail("HGS", "this host has no store, and so no key to attest with", fix)];
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
            Ok(guardian) => Check::pass("HGS", format!("{url} answers for '{}'", guardian.name())),
            Err(error) => failed("HGS", error),
        });
    }
    checks.push(guardian(&guardians));
    checks.extend(attestation(&guarded).await);
    checks
}

/// The fabric guardian, and that all nodes have the same.
fn guardian(found: &[Result<GuardianPublic>]) -> Check {
    const NAME: &str = "fabric guardian";
    let mut all = found.iter().flatten();
    let Some(first) = all.next() else { return Check::skip(NAME, "no node answered", None) };
    let fingerprint = first.signing().fingerprint();
    if all.any(|other| other.signing().fingerprint() != fingerprint) {
        return Check::fail(
            NAME,
            "the nodes answer for different guardians",
            "export the keys of the newest node, import them on the others, start all again (docs/hgs.md, Several nodes)",
        );
    }
    let left = first.not_after() - OffsetDateTime::now_utc();
    let until = outcome::rfc3339(first.not_after());
    if left < SOON {
        return Check::fail(
            NAME,
            format!("'{}' ends at {until}", first.name()),
            "on the service: drydock hgs rotate; then have owners grant the new one",
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
        checks.push(Check::fail("clock", "the health certificate is none", "use the same version on both sides"));
        return checks;
    };
    let now = OffsetDateTime::now_utc();
    checks.push(if now < from || now > until {
        Check::fail(
            "clock",
            format!(
                "here it is {}; the health certificate just made is for {} to {}",
                outcome::rfc3339(now),
                outcome::rfc3339(from),
                outcome::rfc3339(until)
            ),
            "set both clocks by NTP: timedatectl set-ntp true",
        )
    } else {
        Check::pass("clock", "agrees with the service's")
    });
    let life = until - now;
    checks.push(if life < LEAST_HEALTH {
        Check::fail(
            "health",
            format!("health certificates live {} minutes", life.whole_minutes()),
            "on the service: serve with a longer life of health certificates, 8 hours by default",
        )
    } else {
        Check::pass("health", format!("health certificates live {} minutes", life.whole_minutes()))
    });
    checks
}

fn failed(name: &'static str, error: &Error) -> Check {
    let causes: String = error.causes.iter().map(|cause| format!("; {cause}")).collect();
    let fix = error.remedy.clone().unwrap_or_else(|| "see the causes".into());
    Check::fail(name, format!("{}{causes}", error.message), fix)
}
