//! Settings that all nodes share.

use sqlx::Row;
use time::OffsetDateTime;

use super::open::Store;
use crate::audit::{Event, Record};
use crate::error::Result;

/// The setting, and its value, by which stale protectors are refused.
pub(crate) const STALE: &str = "stale-protectors";
pub(crate) const REFUSE: &str = "refuse";

impl Store {
    /// A setting that all nodes share; `None` if it was never set.
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
