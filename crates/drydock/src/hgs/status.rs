//! `drydock hgs status`: hosts, guardians, checks, and what still depends on old guardians.

use attestation::tpm::Policy;
use hgs::{Hgs, HostEntry, HostKind, InUse};
use key_protector::GuardianPublic;
use outcome::{Result, rfc3339};
use serde_json::{Value, json};

use super::error::lift;
use crate::fingerprint::{grouped, hint};
use crate::guardian::to_json;
use crate::output::Output;

pub(super) async fn status(service: &Hgs, out: &Output) -> Result<()> {
    let guardian = service.guardian();
    let primary = guardian.signing().fingerprint();
    let in_use = service.in_use().await.map_err(lift)?;
    let shown = Status {
        old: service.guardians().into_iter().skip(1).collect(),
        dependents: in_use.into_iter().filter(|protector| protector.guardian != primary).collect(),
        hosts: service.hosts().await.map_err(lift)?,
        policy: service.policy().await.map_err(lift)?,
        strict: service.strict().await.map_err(lift)?,
        mode: service.mode(),
        guardian,
    };
    let mut value = shown.to_json();
    value["ca"] = json!(service.ca_file());
    out.result(&value, || shown.text());
    Ok(())
}

/// What is shown, as it was at one moment.
struct Status {
    guardian: GuardianPublic,
    /// Guardians that only open what was granted to them before.
    old: Vec<GuardianPublic>,
    /// Protectors that an old guardian is needed for.
    dependents: Vec<InUse>,
    hosts: Vec<HostEntry>,
    policy: Policy,
    strict: bool,
    mode: HostKind,
}

impl Status {
    fn to_json(&self) -> Value {
        let hosts: Vec<_> = self
            .hosts
            .iter()
            .map(|h| json!({ "name": h.name, "fingerprint": h.identity.fingerprint(), "added": rfc3339(h.added_at) }))
            .collect();
        let baselines: Vec<_> = self
            .policy
            .baselines
            .iter()
            .map(|b| json!({ "name": b.name, "pcrs": b.pcrs.keys().collect::<Vec<_>>() }))
            .collect();
        let dependents: Vec<_> = self
            .dependents
            .iter()
            .map(|p| {
                json!({
                    "protector": p.digest, "guardian": p.guardian, "owner": p.owner, "host": p.host,
                    "at": rfc3339(p.at),
                })
            })
            .collect();
        json!({
            "old_guardians": self.old.iter().map(to_json).collect::<Vec<_>>(), "dependents": dependents,
            "guardian": to_json(&self.guardian), "hosts": hosts, "mode": self.mode.name(),
            "checks": self.checks(), "baselines": baselines, "strict": self.strict,
        })
    }

    fn checks(&self) -> Vec<&'static str> {
        self.policy.checks.iter().map(|check| check.name()).collect()
    }

    fn text(&self) -> String {
        let mut text = format!(
            "fabric guardian '{}', valid until {}\n  signing certificate {}\n",
            self.guardian.name(),
            rfc3339(self.guardian.not_after()),
            grouped(&self.guardian.signing().fingerprint()),
        );
        for guardian in &self.old {
            let fingerprint = guardian.signing().fingerprint();
            // Not in groups: `drydock hgs retire` takes it.
            text += &format!("old guardian, signing certificate {fingerprint}\n");
            for protector in self.dependents.iter().filter(|protector| protector.guardian == fingerprint) {
                text += &format!(
                    "  needed by a VM on {}, owner {}, protector {}, since {}\n",
                    protector.host,
                    hint(&protector.owner),
                    hint(&protector.digest),
                    rfc3339(protector.at)
                );
            }
        }
        for host in &self.hosts {
            let fingerprint = host.identity.fingerprint();
            text += &format!("host {:<20} {}  since {}\n", host.name, hint(&fingerprint), rfc3339(host.added_at));
        }
        if self.hosts.is_empty() {
            let key = if self.mode == HostKind::Tpm { "--tpm ek.pem" } else { "host.pub.pem" };
            text += &format!("no host may attest; register one: drydock hgs add-host NAME {key}\n");
        }
        text +=
            if self.strict { "stale protectors are refused\n" } else { "stale protectors are reported, not refused\n" };
        if self.mode == HostKind::Tpm {
            text += &self.measured_boots();
        }
        text
    }

    fn measured_boots(&self) -> String {
        let mut text = format!("checks of measured boots: {}\n", self.checks().join(", "));
        for baseline in &self.policy.baselines {
            text += &format!("baseline {:<16} PCR {:?}\n", baseline.name, baseline.pcrs.keys().collect::<Vec<_>>());
        }
        if self.policy.baselines.is_empty() {
            text += "no boot is known good; accept one: drydock hgs add-baseline NAME binary_bios_measurements\n";
        }
        text
    }
}
