//! Registered hosts.

use attestation::{HostIdentity, HostKind};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sqlx::Row;
use sqlx::any::AnyRow;
use time::OffsetDateTime;

use super::engine::instant;
use super::open::Store;
use crate::audit::{Event, Record};
use crate::error::{Error, Result};

/// A host that may attest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostEntry {
    /// The admin's name for it.
    pub name: String,
    /// Its registered key.
    pub identity: HostIdentity,
    /// When it was registered.
    pub added_at: OffsetDateTime,
}

impl Store {
    pub(crate) async fn add_host(&self, name: &str, key: &HostIdentity, now: OffsetDateTime) -> Result<()> {
        let fingerprint = key.fingerprint();
        let mut transaction = self.database.begin().await?;
        let clash = sqlx::query("SELECT name FROM hosts WHERE name = $1 OR fingerprint = $2 ORDER BY name")
            .bind(name.to_owned())
            .bind(fingerprint.clone())
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
            .bind(name.to_owned())
            .bind(fingerprint.clone())
            .bind(STANDARD.encode(key.der()))
            .bind(now.unix_timestamp())
            .bind(key.kind().name())
            .execute(&mut *transaction)
            .await?;
        let record = Record { host: name.to_owned(), host_key: fingerprint, ..Record::default() };
        self.conclude(transaction, Event::HostAdded, record, now).await
    }

    pub(crate) async fn remove_host(&self, name: &str, now: OffsetDateTime) -> Result<()> {
        let mut transaction = self.database.begin().await?;
        let row = sqlx::query("SELECT fingerprint FROM hosts WHERE name = $1")
            .bind(name.to_owned())
            .fetch_optional(&mut *transaction)
            .await?
            .ok_or_else(|| Error::NoSuchHost { name: name.to_owned() })?;
        let host_key: String = row.try_get(0)?;
        sqlx::query("DELETE FROM hosts WHERE name = $1").bind(name.to_owned()).execute(&mut *transaction).await?;
        let record = Record { host: name.to_owned(), host_key, ..Record::default() };
        self.conclude(transaction, Event::HostRemoved, record, now).await
    }

    pub(crate) async fn hosts(&self) -> Result<Vec<HostEntry>> {
        sqlx::query("SELECT name, public_key, added_at, kind FROM hosts ORDER BY name")
            .fetch_all(&self.database.pool)
            .await?
            .iter()
            .map(host)
            .collect()
    }

    pub(crate) async fn host_by_key(&self, fingerprint: &str) -> Result<Option<HostEntry>> {
        sqlx::query("SELECT name, public_key, added_at, kind FROM hosts WHERE fingerprint = $1")
            .bind(fingerprint.to_owned())
            .fetch_optional(&self.database.pool)
            .await?
            .as_ref()
            .map(host)
            .transpose()
    }
}

fn host(row: &AnyRow) -> Result<HostEntry> {
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
