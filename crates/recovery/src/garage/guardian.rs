//! The recovery guardian: made in the garage for one recovery, and destroyed with it.

use host::Agent;
use host::{KeySource, LocalGuardians};
use key_protector::{Guardian, Role};
use outcome::{Context, Error, Kind, Result};
use time::{Duration, OffsetDateTime};

use crate::journal::Journal;

/// The guardians of this garage.
///
/// # Errors
/// `Refused` on a guarded host.
pub(crate) fn local(agent: &Agent) -> Result<&LocalGuardians> {
    match agent.keys() {
        KeySource::Local(guardians) => Ok(guardians),
        KeySource::Hgs(_) => {
            Err(Error::new(Kind::Refused, "this is a guarded host: a VM's policy is never lowered here")
                .remedy("run the command inside the repair garage"))
        }
    }
}

/// Its name in the garage.
pub(super) fn guardian_name(journal: &Journal) -> String {
    format!("recovery-{}", journal.id().simple())
}

/// The guardian of a recovery that has one.
///
/// # Errors
/// `WrongState` when it is gone.
pub(super) fn existing(guardians: &LocalGuardians, journal: &Journal) -> Result<Guardian> {
    guardians.get(&guardian_name(journal))?.ok_or_else(|| {
        Error::new(Kind::WrongState, "the recovery guardian no longer exists")
            .remedy(format!("drydock recovery abort {}, then start again", journal.vm()))
    })
}

/// Makes the guardian of a recovery.
///
/// # Errors
/// When its keys cannot be made or kept.
pub(super) async fn make(guardians: &LocalGuardians, journal: &Journal, hours: i64) -> Result<Guardian> {
    let keys = guardians.new_keys().await?;
    let now = OffsetDateTime::now_utc();
    let (from, until) = (now - Duration::minutes(5), now + Duration::hours(hours));
    let fresh = Guardian::with_keys(keys, &format!("recovery of {}", journal.vm()), Role::Recovery, from, until)
        .context(Kind::Internal, || "cannot make the recovery guardian".into())?;
    guardians.add(&guardian_name(journal), &fresh)?;
    Ok(fresh)
}
