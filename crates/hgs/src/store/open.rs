//! The store, and whose it is.

use std::path::Path;
use std::sync::Mutex;

use sqlx::Row;

use super::engine::{Database, StoreUrl};
use crate::audit::{AuditKey, GENESIS};
use crate::error::{Error, Result};

/// An open store.
pub(crate) struct Store {
    pub(super) database: Database,
    pub(super) key: AuditKey,
    /// The newest row that this process wrote.
    pub(super) seen: Mutex<Head>,
}

/// The last row of the audit log.
pub(super) struct Head {
    pub(super) seq: i64,
    pub(super) hash: String,
}

impl Default for Head {
    /// Of an empty log.
    fn default() -> Self {
        Head { seq: 0, hash: GENESIS.to_owned() }
    }
}

impl Store {
    /// Opens the store in `dir`, or at `url`. A new one belongs to the service with this key from now on.
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
}
