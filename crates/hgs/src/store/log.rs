//! The audit log's rows.

use std::sync::PoisonError;

use sqlx::any::AnyRow;
use sqlx::{AnyConnection, Row};
use time::OffsetDateTime;

use super::engine::{Write, instant};
use super::open::{Head, Store};
use crate::audit::{Entry, Event, GENESIS, Record};
use crate::error::{Error, Result};

const PAGE: i64 = 1000;

impl Store {
    pub(crate) async fn record(&self, event: Event, record: Record, now: OffsetDateTime) -> Result<()> {
        let transaction = self.database.begin().await?;
        self.conclude(transaction, event, record, now).await
    }

    /// Ends a transaction of [`Database::begin`](super::engine::Database::begin), the only kind in which the last row
    /// stays the last one, with a row about what was done in it.
    pub(super) async fn conclude(
        &self,
        mut transaction: Write,
        event: Event,
        record: Record,
        now: OffsetDateTime,
    ) -> Result<()> {
        let head = self.append(&mut transaction, event, record, now).await?;
        transaction.commit().await?;
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        // Another task may have been faster after its commit.
        if head.seq > seen.seq {
            *seen = head;
        }
        Ok(())
    }

    /// Refuses to continue a log that has become shorter than this process has seen it, or that has another last row.
    fn check_head(&self, last: &Head) -> Result<()> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if last.seq < seen.seq || (last.seq == seen.seq && last.hash != seen.hash) {
            return Err(Error::AuditShrank { rows: last.seq, seen: seen.seq });
        }
        Ok(())
    }

    async fn append(
        &self,
        connection: &mut AnyConnection,
        event: Event,
        record: Record,
        now: OffsetDateTime,
    ) -> Result<Head> {
        let last = sqlx::query("SELECT seq, hash FROM audit ORDER BY seq DESC LIMIT 1")
            .fetch_optional(&mut *connection)
            .await?;
        let last = match last {
            Some(row) => Head { seq: row.try_get(0)?, hash: row.try_get(1)? },
            None => Head::default(),
        };
        self.check_head(&last)?;
        let Head { seq, hash: previous } = last;
        let seq = seq.checked_add(1).ok_or(Error::AuditBroken { seq })?;
        let entry = Entry::new(seq, now.unix_timestamp(), event, record, previous, &self.key)?;
        let head = Head { seq: entry.seq, hash: entry.hash.clone() };
        sqlx::query(
            "INSERT INTO audit (seq, at, event, host, host_key, protector, owner, why, previous, hash, signature) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
        )
        .bind(entry.seq)
        .bind(entry.at.unix_timestamp())
        .bind(entry.event)
        .bind(entry.host)
        .bind(entry.host_key)
        .bind(entry.protector)
        .bind(entry.owner)
        .bind(entry.why)
        .bind(entry.previous)
        .bind(entry.hash)
        .bind(entry.signature)
        .execute(&mut *connection)
        .await?;
        Ok(head)
    }

    /// The newest rows, oldest first.
    pub(crate) async fn audit(&self, last: u32) -> Result<Vec<Entry>> {
        let rows = sqlx::query(
            "SELECT seq, at, event, host, host_key, protector, owner, why, previous, hash, signature \
             FROM audit ORDER BY seq DESC LIMIT $1",
        )
        .bind(i64::from(last))
        .fetch_all(&self.database.pool)
        .await?;
        rows.iter().rev().map(entry).collect()
    }

    /// Checks the whole chain and each signature, and that the hash `kept` is in it. Returns the length and the last
    /// hash.
    pub(crate) async fn verify_audit(&self, kept: Option<&str>) -> Result<(i64, String)> {
        let mut seq = 0;
        let mut found_kept = kept.is_none_or(|kept| kept == GENESIS);
        let mut previous = GENESIS.to_owned();
        loop {
            let rows = sqlx::query(
                "SELECT seq, at, event, host, host_key, protector, owner, why, previous, hash, signature \
                 FROM audit WHERE seq > $1 ORDER BY seq LIMIT $2",
            )
            .bind(seq)
            .bind(PAGE)
            .fetch_all(&self.database.pool)
            .await?;
            if rows.is_empty() {
                // The service writes no rows below 1.
                let count = sqlx::query("SELECT COUNT(*) FROM audit WHERE seq < 1");
                if count.fetch_one(&self.database.pool).await?.try_get::<i64, _>(0)? > 0 {
                    return Err(Error::AuditBroken { seq: 0 });
                }
                return if found_kept { Ok((seq, previous)) } else { Err(Error::AuditCut { rows: seq }) };
            }
            for row in &rows {
                let found = entry(row)?;
                seq += 1;
                if !found.follows(seq, &previous) {
                    return Err(Error::AuditBroken { seq });
                }
                if !found.is_signed_by(&self.key) {
                    return Err(Error::AuditForged { seq });
                }
                previous = found.hash;
                found_kept |= kept == Some(previous.as_str());
            }
        }
    }
}

fn entry(row: &AnyRow) -> Result<Entry> {
    Ok(Entry {
        seq: row.try_get(0)?,
        at: instant(row.try_get(1)?),
        event: row.try_get(2)?,
        host: row.try_get(3)?,
        host_key: row.try_get(4)?,
        protector: row.try_get(5)?,
        owner: row.try_get(6)?,
        why: row.try_get(7)?,
        previous: row.try_get(8)?,
        hash: row.try_get(9)?,
        signature: row.try_get(10)?,
    })
}
