//! Which protectors are in use, which guardian each depends on, and which are stale.
//!
//! A chain holds the successors of one protector: each roll makes a protector of the next generation. A host that
//! crashed after a roll, before it stored the answer, returns with the same protector. So the last one that was rolled
//! and all its successors are current, and everything older is stale. A protector that is not known here begins a chain
//! of its own: it is a new VM's, or its owner rolled it elsewhere.

use key_protector::TransportKey;
use sqlx::{AnyConnection, Row};
use time::OffsetDateTime;

use super::engine::instant;
use super::open::Store;
use super::permits;
use super::settings::{REFUSE, STALE};
use crate::audit::{Event, Record};
use crate::error::Result;

/// A protector that was released and has not been rolled since.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InUse {
    /// SHA-256 of the document.
    pub digest: String,
    /// Fingerprint of the signing certificate of the guardian that it depends on.
    pub guardian: String,
    /// Fingerprint of its owner's signing certificate.
    pub owner: String,
    /// The host that got it.
    pub host: String,
    /// When.
    pub at: OffsetDateTime,
}

/// The result of a roll.
pub(crate) struct Egress {
    /// [`key_id`] of the ingress and of the egress key.
    pub(crate) ingress_id: String,
    pub(crate) egress_id: String,
    pub(crate) digest: String,
    pub(crate) guardian: String,
}

/// Whether the result of a roll may leave.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Release {
    /// Recorded as this event.
    Granted(Event),
    /// The protector is stale, and stale ones are refused. Why, for the host's log.
    Refused(String),
}

/// The place of a protector in its chain.
struct Place {
    chain: String,
    generation: i64,
    /// The newest generation that was rolled.
    rolled: i64,
}

/// Distinguishes transport keys and reveals nothing else about them.
pub(crate) fn key_id(key: &TransportKey) -> String {
    key.derive("drydock/hgs/key-id/1").hex().to_string()
}

impl Store {
    /// Decides whether the protector is current, and writes the release or the refusal down in the same transaction.
    pub(crate) async fn record_release(
        &self,
        mut record: Record,
        egress: &Egress,
        now: OffsetDateTime,
    ) -> Result<Release> {
        let mut transaction = self.database.begin().await?;
        let place = match find(&mut transaction, &egress.ingress_id).await? {
            Some(place) => place,
            None => begin_chain(&mut transaction, &record, egress, now).await?,
        };
        let (event, generation) = if place.generation >= place.rolled {
            record.why = format!("rolled to {}", egress.digest);
            (Event::KeyReleased, place.generation)
        } else {
            let behind =
                format!("a stale protector, of generation {} where {} was rolled", place.generation, place.rolled);
            let permit = permits::usable(&mut transaction, &record.protector, &record.owner, place.rolled, now).await?;
            match permit {
                Some((id, used)) => {
                    record.why = format!("rolled to {} from {behind}; its owner permits it", egress.digest);
                    let generation = if used == 0 { newest(&mut transaction, &place.chain).await? + 1 } else { used };
                    permits::mark_used(&mut transaction, &id, generation).await?;
                    (Event::StaleKeyReleased, generation)
                }
                None if refuses_stale(&mut transaction).await? => {
                    let message = format!(
                        "the key protector is stale: generation {} where {} was rolled; start the VM with its newest \
                         protector, or after a restore from backup bring its owner's permit \
                         (`drydock protector permit-stale`, `drydock hgs permit`)",
                        place.generation, place.rolled
                    );
                    record.why.clone_from(&message);
                    self.conclude(transaction, Event::KeyRefused, record, now).await?;
                    return Ok(Release::Refused(message));
                }
                None => {
                    record.why = format!("rolled to {} from {behind}", egress.digest);
                    (Event::StaleKeyReleased, newest(&mut transaction, &place.chain).await? + 1)
                }
            }
        };
        let made = Made { key_id: &egress.egress_id, digest: &egress.digest, generation: generation + 1 };
        insert(&mut transaction, &made, &place.chain, &record, egress, now).await?;
        sqlx::query("UPDATE chains SET rolled = $1 WHERE chain = $2")
            .bind(generation)
            .bind(place.chain)
            .execute(&mut *transaction)
            .await?;
        self.conclude(transaction, event, record, now).await?;
        Ok(Release::Granted(event))
    }

    /// All protectors in use, the oldest first. After a roll whose answer was lost, a VM has two.
    pub(crate) async fn in_use(&self) -> Result<Vec<InUse>> {
        sqlx::query(
            "SELECT digest, guardian, owner, host, at FROM protectors \
             JOIN chains ON chains.chain = protectors.chain WHERE generation > rolled ORDER BY at, digest",
        )
        .fetch_all(&self.database.pool)
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

async fn find(connection: &mut AnyConnection, key_id: &str) -> Result<Option<Place>> {
    let row = sqlx::query(
        "SELECT chains.chain, generation, rolled FROM protectors \
         JOIN chains ON chains.chain = protectors.chain WHERE key_id = $1",
    )
    .bind(key_id.to_owned())
    .fetch_optional(&mut *connection)
    .await?;
    row.map(|row| Ok(Place { chain: row.try_get(0)?, generation: row.try_get(1)?, rolled: row.try_get(2)? }))
        .transpose()
}

/// The first protector of a chain names it.
async fn begin_chain(
    connection: &mut AnyConnection,
    record: &Record,
    egress: &Egress,
    now: OffsetDateTime,
) -> Result<Place> {
    let chain = egress.ingress_id.clone();
    sqlx::query("INSERT INTO chains (chain, rolled) VALUES ($1, 0)")
        .bind(chain.clone())
        .execute(&mut *connection)
        .await?;
    let first = Made { key_id: &egress.ingress_id, digest: &record.protector, generation: 0 };
    insert(connection, &first, &chain, record, egress, now).await?;
    Ok(Place { chain, generation: 0, rolled: 0 })
}

/// A protector of a chain.
struct Made<'a> {
    key_id: &'a str,
    digest: &'a str,
    generation: i64,
}

async fn insert(
    connection: &mut AnyConnection,
    row: &Made<'_>,
    chain: &str,
    record: &Record,
    egress: &Egress,
    now: OffsetDateTime,
) -> Result<()> {
    sqlx::query(
        "INSERT INTO protectors (key_id, digest, guardian, owner, host, at, chain, generation) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
    )
    .bind(row.key_id.to_owned())
    .bind(row.digest.to_owned())
    .bind(egress.guardian.clone())
    .bind(record.owner.clone())
    .bind(record.host.clone())
    .bind(now.unix_timestamp())
    .bind(chain.to_owned())
    .bind(row.generation)
    .execute(&mut *connection)
    .await?;
    Ok(())
}

async fn newest(connection: &mut AnyConnection, chain: &str) -> Result<i64> {
    let row = sqlx::query("SELECT MAX(generation) FROM protectors WHERE chain = $1")
        .bind(chain.to_owned())
        .fetch_one(&mut *connection)
        .await?;
    Ok(row.try_get(0)?)
}

async fn refuses_stale(connection: &mut AnyConnection) -> Result<bool> {
    let row = sqlx::query("SELECT value FROM settings WHERE name = $1").bind(STALE).fetch_optional(connection).await?;
    Ok(row.map(|row| row.try_get::<String, _>(0)).transpose()?.is_some_and(|value| value == REFUSE))
}
