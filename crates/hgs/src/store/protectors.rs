//! Which protectors are in use, and which guardian each depends on.

use key_protector::TransportKey;
use sqlx::Row;
use time::OffsetDateTime;

use super::{Store, append, instant};
use crate::audit::{Event, Record};
use crate::error::Result;

/// A protector that went out and has not come back since.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InUse {
    /// SHA-256 of the document.
    pub digest: String,
    /// Fingerprint of the signing certificate of the guardian that it depends on.
    pub guardian: String,
    /// Fingerprint of its owner's signing certificate.
    pub owner: String,
    /// The host that it went to.
    pub host: String,
    pub at: OffsetDateTime,
}

/// What a roll made.
pub(crate) struct Egress {
    /// What [`key_id`] says of the ingress and of the egress key.
    pub(crate) ingress_id: String,
    pub(crate) egress_id: String,
    pub(crate) digest: String,
    pub(crate) guardian: String,
}

/// Tells transport keys apart, and nothing else about them.
pub(crate) fn key_id(key: &TransportKey) -> String {
    key.derive("drydock/hgs/key-id/1").hex().to_string()
}

impl Store {
    /// Writes a release down, and that the egress protector takes the place of the ingress one.
    pub(crate) async fn record_release(&self, record: Record, egress: &Egress, now: OffsetDateTime) -> Result<()> {
        let mut transaction = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        sqlx::query("DELETE FROM protectors WHERE key_id = $1")
            .bind(&egress.ingress_id)
            .execute(&mut *transaction)
            .await?;
        sqlx::query(
            "INSERT INTO protectors (key_id, digest, guardian, owner, host, at) VALUES ($1, $2, $3, $4, $5, $6)",
        )
        .bind(&egress.egress_id)
        .bind(&egress.digest)
        .bind(&egress.guardian)
        .bind(&record.owner)
        .bind(&record.host)
        .bind(now.unix_timestamp())
        .execute(&mut *transaction)
        .await?;
        append(&mut transaction, Event::KeyReleased, record, now).await?;
        Ok(transaction.commit().await?)
    }

    /// All of them, the oldest first.
    pub(crate) async fn in_use(&self) -> Result<Vec<InUse>> {
        sqlx::query("SELECT digest, guardian, owner, host, at FROM protectors ORDER BY at, digest")
            .fetch_all(&self.pool)
            .await?
            .iter()
            .map(|row| {
                Ok(InUse {
                    digest: row.try_get(0)?,
                    guardian: row.try_get(1)?,
                    owner: row.try_get(2)?,
                    host: row.try_get(3)?,
                    at: instant(row.try_get(4)?),
                })
            })
            .collect()
    }
}
