//! Registered hosts and the audit log, in SQLite; policies are in [`policy`]. The SQL is the part PostgreSQL has too.

mod policy;
mod protectors;

use std::path::Path;
use std::time::Duration;

use attestation::{HostIdentity, HostKind};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteRow, SqliteSynchronous};
use sqlx::{Row, SqlSafeStr, SqliteConnection, SqlitePool};
use time::OffsetDateTime;

use crate::audit::{Entry, Event, GENESIS, Record};
use crate::error::{Error, Result};

pub use protectors::InUse;
pub(crate) use protectors::{Egress, key_id};

const FILE: &str = "hgs.sqlite";
/// How long a writer waits for another process (`drydock hgs add-host` beside the running service).
const BUSY: Duration = Duration::from_secs(10);
const PAGE: i64 = 1000;

/// A host that may attest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostEntry {
    pub name: String,
    pub identity: HostIdentity,
    pub added_at: OffsetDateTime,
}

pub(crate) struct Store {
    pool: SqlitePool,
}

impl Store {
    /// Opens the store in `dir`, with its tables up to date.
    pub(crate) async fn open(dir: &Path) -> Result<Self> {
        let options = SqliteConnectOptions::new()
            .filename(dir.join(FILE))
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            // A key must not leave before its audit row is on the disk.
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(BUSY);
        let pool = SqlitePoolOptions::new().max_connections(4).connect_with(options).await?;
        migrations().run(&pool).await?;
        Ok(Store { pool })
    }

    pub(crate) async fn close(&self) {
        self.pool.close().await;
    }

    pub(crate) async fn add_host(&self, name: &str, key: &HostIdentity, now: OffsetDateTime) -> Result<()> {
        let fingerprint = key.fingerprint();
        // Immediate: two writers queue instead of both reading the same last row.
        let mut transaction = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        let clash = sqlx::query("SELECT name FROM hosts WHERE name = $1 OR fingerprint = $2 ORDER BY name")
            .bind(name)
            .bind(&fingerprint)
            .fetch_optional(&mut *transaction)
            .await?;
        if let Some(row) = clash {
            let found: String = row.try_get(0)?;
            return Err(if found == name {
                Error::HostExists { name: found }
            } else {
                Error::KeyExists { name: found }
            });
        }
        sqlx::query("INSERT INTO hosts (name, fingerprint, public_key, added_at, kind) VALUES ($1, $2, $3, $4, $5)")
            .bind(name)
            .bind(&fingerprint)
            .bind(STANDARD.encode(key.der()))
            .bind(now.unix_timestamp())
            .bind(key.kind().name())
            .execute(&mut *transaction)
            .await?;
        let record = Record { host: name.to_owned(), host_key: fingerprint, ..Record::default() };
        append(&mut transaction, Event::HostAdded, record, now).await?;
        Ok(transaction.commit().await?)
    }

    pub(crate) async fn remove_host(&self, name: &str, now: OffsetDateTime) -> Result<()> {
        let mut transaction = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        let row = sqlx::query("SELECT fingerprint FROM hosts WHERE name = $1")
            .bind(name)
            .fetch_optional(&mut *transaction)
            .await?
            .ok_or_else(|| Error::NoSuchHost { name: name.to_owned() })?;
        let host_key: String = row.try_get(0)?;
        sqlx::query("DELETE FROM hosts WHERE name = $1").bind(name).execute(&mut *transaction).await?;
        let record = Record { host: name.to_owned(), host_key, ..Record::default() };
        append(&mut transaction, Event::HostRemoved, record, now).await?;
        Ok(transaction.commit().await?)
    }

    pub(crate) async fn hosts(&self) -> Result<Vec<HostEntry>> {
        sqlx::query("SELECT name, public_key, added_at, kind FROM hosts ORDER BY name")
            .fetch_all(&self.pool)
            .await?
            .iter()
            .map(host)
            .collect()
    }

    pub(crate) async fn host_by_key(&self, fingerprint: &str) -> Result<Option<HostEntry>> {
        sqlx::query("SELECT name, public_key, added_at, kind FROM hosts WHERE fingerprint = $1")
            .bind(fingerprint)
            .fetch_optional(&self.pool)
            .await?
            .as_ref()
            .map(host)
            .transpose()
    }

    pub(crate) async fn record(&self, event: Event, record: Record, now: OffsetDateTime) -> Result<()> {
        let mut transaction = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        append(&mut transaction, event, record, now).await?;
        Ok(transaction.commit().await?)
    }

    /// The newest rows, oldest first.
    pub(crate) async fn audit(&self, last: u32) -> Result<Vec<Entry>> {
        let rows = sqlx::query(
            "SELECT seq, at, event, host, host_key, protector, owner, why, previous, hash \
             FROM audit ORDER BY seq DESC LIMIT $1",
        )
        .bind(i64::from(last))
        .fetch_all(&self.pool)
        .await?;
        rows.iter().rev().map(entry).collect()
    }

    /// Checks the whole chain, and that the hash somebody kept is in it; returns its length and its last hash.
    pub(crate) async fn verify_audit(&self, kept: Option<&str>) -> Result<(i64, String)> {
        let mut seq = 0;
        let mut found_kept = kept.is_none_or(|kept| kept == GENESIS);
        let mut previous = GENESIS.to_owned();
        loop {
            let rows = sqlx::query(
                "SELECT seq, at, event, host, host_key, protector, owner, why, previous, hash \
                 FROM audit WHERE seq > $1 ORDER BY seq LIMIT $2",
            )
            .bind(seq)
            .bind(PAGE)
            .fetch_all(&self.pool)
            .await?;
            if rows.is_empty() {
                return if found_kept { Ok((seq, previous)) } else { Err(Error::AuditCut { rows: seq }) };
            }
            for row in &rows {
                let found = entry(row)?;
                seq += 1;
                if !found.follows(seq, &previous) {
                    return Err(Error::AuditBroken { seq });
                }
                previous = found.hash;
                found_kept |= kept == Some(previous.as_str());
            }
        }
    }
}

/// `migrate!` would need sqlx's compile-time macros; the files are few enough to list.
fn migrations() -> Migrator {
    let migration = |version, description: &'static str, sql: &'static str| {
        Migration::new(version, description.into(), MigrationType::Simple, sql.into_sql_str(), false)
    };
    Migrator::with_migrations(vec![
        migration(1, "hosts and audit", include_str!("../../migrations/0001_hosts_and_audit.sql")),
        migration(2, "TPM mode", include_str!("../../migrations/0002_tpm.sql")),
        migration(3, "protectors in use", include_str!("../../migrations/0003_protectors.sql")),
    ])
}

async fn append(connection: &mut SqliteConnection, event: Event, record: Record, now: OffsetDateTime) -> Result<()> {
    let last =
        sqlx::query("SELECT seq, hash FROM audit ORDER BY seq DESC LIMIT 1").fetch_optional(&mut *connection).await?;
    let (seq, previous) = match last {
        Some(row) => (row.try_get::<i64, _>(0)?, row.try_get(1)?),
        None => (0, GENESIS.to_owned()),
    };
    let seq = seq.checked_add(1).ok_or(Error::AuditBroken { seq })?;
    let entry = Entry::new(seq, now.unix_timestamp(), event, record, previous);
    sqlx::query(
        "INSERT INTO audit (seq, at, event, host, host_key, protector, owner, why, previous, hash) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
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
    .execute(&mut *connection)
    .await?;
    Ok(())
}

fn host(row: &SqliteRow) -> Result<HostEntry> {
    let key: String = row.try_get(1)?;
    let kind: String = row.try_get(3)?;
    let kind = HostKind::from_name(&kind).ok_or(attestation::Error::NotHostKey)?;
    let der = STANDARD.decode(key).map_err(|_| attestation::Error::NotHostKey)?;
    Ok(HostEntry {
        name: row.try_get(0)?,
        identity: HostIdentity::from_der(kind, &der)?,
        added_at: instant(row.try_get(2)?),
    })
}

fn entry(row: &SqliteRow) -> Result<Entry> {
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
    })
}

/// A time out of range was not written by us; in the audit log the row's hash will not match.
fn instant(seconds: i64) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}
