//! Owners' permits for stale protectors.

use sqlx::{AnyConnection, Row};
use time::OffsetDateTime;

use super::open::Store;
use crate::audit::{Event, Record};
use crate::error::{Error, Result};
use crate::permit::Permit;

impl Store {
    /// Stores a permit, once: one that was stored before does not become unused again.
    pub(crate) async fn add_permit(&self, permit: &Permit, now: OffsetDateTime) -> Result<()> {
        let mut transaction = self.database.begin().await?;
        let inserted = sqlx::query(
            "INSERT INTO permits (id, protector, owner, not_after, used) VALUES ($1, $2, $3, $4, 0) \
             ON CONFLICT DO NOTHING",
        )
        .bind(permit.id.clone())
        .bind(permit.protector.clone())
        .bind(permit.owner.clone())
        .bind(permit.not_after.unix_timestamp())
        .execute(&mut *transaction)
        .await?;
        if inserted.rows_affected() == 0 {
            return Err(Error::PermitKnown);
        }
        let record = Record {
            protector: permit.protector.clone(),
            owner: permit.owner.clone(),
            why: format!("the owner permits this stale protector until {}", permit.until()),
            ..Record::default()
        };
        self.conclude(transaction, Event::StalePermitted, record, now).await
    }
}

/// A permit for this protector, by this owner, that is unused or was used for what is still the newest generation (the
/// host may have crashed before it stored the answer): its id and that generation, 0 if unused.
pub(super) async fn usable(
    connection: &mut AnyConnection,
    protector: &str,
    owner: &str,
    rolled: i64,
    now: OffsetDateTime,
) -> Result<Option<(String, i64)>> {
    let row = sqlx::query(
        "SELECT id, used FROM permits WHERE protector = $1 AND owner = $2 AND not_after >= $3 \
         AND (used = 0 OR used = $4) ORDER BY used DESC",
    )
    .bind(protector.to_owned())
    .bind(owner.to_owned())
    .bind(now.unix_timestamp())
    .bind(rolled)
    .fetch_optional(&mut *connection)
    .await?;
    row.map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).transpose()
}

pub(super) async fn mark_used(connection: &mut AnyConnection, id: &str, generation: i64) -> Result<()> {
    sqlx::query("UPDATE permits SET used = $1 WHERE id = $2")
        .bind(generation)
        .bind(id.to_owned())
        .execute(&mut *connection)
        .await?;
    Ok(())
}
