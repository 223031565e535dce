//! The one way by which the service writes down what it decided about a host: each attestation, each release, each
//! refusal.
//!
//! Whatever is decided passes [`observe`] once it is written. **An observer hooks in there** (metrics, for one): it
//! sees every decision, also those of a flood that the audit log does not keep. What an admin does (hosts, policy,
//! guardians) is written by the [store](crate::store) in the transaction that does it, and is not a decision about a
//! host.

use std::sync::PoisonError;
use std::time::Instant;

use time::OffsetDateTime;

use crate::admin::Hgs;
use crate::audit::{Event, Record};
use crate::error::Result;
use crate::store::{Egress, Release};
use crate::throttle::Decision;

impl Hgs {
    /// Writes down a decision about a host that proved which one it is, or something that an admin did.
    pub(crate) async fn record(&self, event: Event, record: Record) -> Result<()> {
        self.store.record(event, record.clone(), self.now()).await?;
        observe(event, &record);
        Ok(())
    }

    /// Writes down a refusal of a peer that proved nothing. A flood of them is cut.
    pub(crate) async fn record_unproven(&self, event: Event, record: Record) -> Result<()> {
        let mut kept = record.clone();
        let decision = self.unproven.lock().unwrap_or_else(PoisonError::into_inner).decide(Instant::now());
        match decision {
            Decision::Drop => {
                observe(event, &record);
                return Ok(());
            }
            Decision::Write { dropped: 0 } => {}
            Decision::Write { dropped } => kept.why = format!("{} ({dropped} more before this one)", kept.why),
        }
        self.store.record(event, kept, self.now()).await?;
        observe(event, &record);
        Ok(())
    }

    /// Decides whether the protector that was rolled is current, and writes down the release or the refusal.
    pub(crate) async fn record_release(
        &self,
        mut record: Record,
        egress: &Egress,
        now: OffsetDateTime,
    ) -> Result<Release> {
        let release = self.store.record_release(record.clone(), egress, now).await?;
        match &release {
            Release::Granted(event) => observe(*event, &record),
            Release::Refused(message) => {
                record.why.clone_from(message);
                observe(Event::KeyRefused, &record);
            }
        }
        Ok(release)
    }
}

/// Sees every decision after it was written: today the log of the service's process.
fn observe(event: Event, record: &Record) {
    let Record { host, host_key, protector, why, .. } = record;
    match event {
        Event::Attested => tracing::info!(%host, "host attested"),
        Event::AttestationRefused => tracing::warn!(%host, %host_key, "attestation refused: {why}"),
        Event::KeyReleased | Event::StaleKeyReleased => tracing::info!(%host, %protector, "key released"),
        Event::KeyRefused => tracing::warn!(%host, %protector, "no key released: {why}"),
        Event::HostAdded
        | Event::HostRemoved
        | Event::PolicyChanged
        | Event::GuardianAdded
        | Event::GuardianRetired
        | Event::StalePermitted
        | Event::KeysExported
        | Event::KeysImported => {}
    }
}
