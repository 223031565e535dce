//! What the service knows and has done, in SQLite or PostgreSQL. The SQL is the part that both have.

mod answered;
mod engine;
mod hosts;
mod log;
mod permits;
mod policy;
mod protectors;

use std::path::Path;
use std::sync::Mutex;

use sqlx::Row;
use time::OffsetDateTime;

use crate::audit::{AuditKey, Event, Record};
use crate::error::{Error, Result};

use engine::Database;

pub use engine::StoreUrl;
pub use hosts::HostEntry;
pub use protectors::InUse;
pub(crate) use protectors::{Egress, REFUSE, Release, STALE, key_id};

pub(crate) struct Store {
    database: Database,
    key: AuditKey,
    /// The newest row that this process wrote.
    seen: Mutex<log::Head>,
}

impl Store {
    /// Opens the store: in `dir`, or where `url` says. A new one belongs to the service with this key from now on.
    pub(crate) async fn open(dir: &Path, url: Option<&StoreUrl>, key: AuditKey) -> Result<Self> {
        let store = Store { database: Database::open(dir, url).await?, key, seen: Mutex::default() };
        store.claim().await?;
        Ok(store)
    }

    /// Two services on one database would break each other's log.
    async fn claim(&self) -> Result<()> {
        let mut transaction = self.database.begin().await?;
        let row = sqlx::query("SELECT id FROM service").fetch_optional(&mut *transaction).await?;
        match row {
            Some(row) if row.try_get::<String, _>(0)? == self.key.id() => Ok(()),
            Some(_) => Err(Error::ForeignStore),
            None => {
                let statement = sqlx::query("INSERT INTO service (id) VALUES ($1)");
                statement.bind(self.key.id().to_owned()).execute(&mut *transaction).await?;
                transaction.commit().await
            }
        }
    }

    pub(crate) async fn close(&self) {
        self.database.pool.close().await;
    }

    /// A setting that all nodes share; `None` when it was never made.
    pub(crate) async fn setting(&self, name: &str) -> Result<Option<String>> {
        let statement = sqlx::query("SELECT value FROM settings WHERE name = $1").bind(name.to_owned());
        let row = statement.fetch_optional(&self.database.pool).await?;
        Ok(row.map(|row| row.try_get(0)).transpose()?)
    }

    pub(crate) async fn set_setting(&self, name: &str, value: &str, now: OffsetDateTime) -> Result<()> {
        let mut transaction = self.database.begin().await?;
        sqlx::query(
            "INSERT INTO settings (name, value) VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET value = excluded.value",
        )
        .bind(name.to_owned())
        .bind(value.to_owned())
        .execute(&mut *transaction)
        .await?;
        let record = Record { why: format!("setting '{name}' is '{value}'"), ..Record::default() };
        self.conclude(transaction, Event::PolicyChanged, record, now).await
    }
}

/// A time out of range was not written by us; in the audit log the row's hash will not match.
fn instant(seconds: i64) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}
