//! What TPM mode compares a measured boot with.

use std::collections::BTreeMap;

use attestation::tpm::{Baseline, Check, Pcr, Policy};
use data_encoding::HEXLOWER;
use sqlx::Row;
use time::OffsetDateTime;

use super::open::Store;
use crate::audit::{Event, Record};
use crate::error::{Error, Result};

impl Store {
    pub(crate) async fn policy(&self) -> Result<Policy> {
        let mut policy = Policy::default();
        for row in sqlx::query("SELECT name FROM policies ORDER BY name").fetch_all(&self.database.pool).await? {
            let name: String = row.try_get(0)?;
            // A check that is unknown to this version must not be skipped.
            policy.checks.push(Check::from_name(&name).ok_or(Error::NoSuchPolicy { name })?);
        }
        for row in sqlx::query("SELECT name, pcrs FROM baselines ORDER BY name").fetch_all(&self.database.pool).await? {
            let (name, pcrs): (String, String) = (row.try_get(0)?, row.try_get(1)?);
            let pcrs = read_pcrs(&pcrs).ok_or_else(|| Error::BaselineDamaged { name: name.clone() })?;
            policy.baselines.push(Baseline { name, pcrs });
        }
        Ok(policy)
    }

    pub(crate) async fn add_baseline(&self, baseline: &Baseline, now: OffsetDateTime) -> Result<()> {
        let name = &baseline.name;
        let mut transaction = self.database.begin().await?;
        let known = sqlx::query("SELECT name FROM baselines WHERE name = $1").bind(name.to_owned());
        if known.fetch_optional(&mut *transaction).await?.is_some() {
            return Err(Error::BaselineExists { name: name.clone() });
        }
        let pcrs = write_pcrs(&baseline.pcrs);
        sqlx::query("INSERT INTO baselines (name, pcrs, added_at) VALUES ($1, $2, $3)")
            .bind(name.to_owned())
            .bind(pcrs.clone())
            .bind(now.unix_timestamp())
            .execute(&mut *transaction)
            .await?;
        // A row has no room for all values.
        let digest = HEXLOWER.encode(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, pcrs.as_bytes()).as_ref());
        let which: Vec<String> = baseline.pcrs.keys().map(u32::to_string).collect();
        let why = format!("baseline '{name}' added: PCR {}, digest {digest}", which.join(", "));
        let record = Record { why, ..Record::default() };
        self.conclude(transaction, Event::PolicyChanged, record, now).await
    }

    pub(crate) async fn remove_baseline(&self, name: &str, now: OffsetDateTime) -> Result<()> {
        let mut transaction = self.database.begin().await?;
        let removed = sqlx::query("DELETE FROM baselines WHERE name = $1")
            .bind(name.to_owned())
            .execute(&mut *transaction)
            .await?;
        if removed.rows_affected() == 0 {
            return Err(Error::NoSuchBaseline { name: name.to_owned() });
        }
        let record = Record { why: format!("baseline '{name}' removed"), ..Record::default() };
        self.conclude(transaction, Event::PolicyChanged, record, now).await
    }

    /// Turns a check on or off. Writes nothing if it is so already.
    pub(crate) async fn set_policy(&self, check: Check, on: bool, now: OffsetDateTime) -> Result<()> {
        let mut transaction = self.database.begin().await?;
        let statement = if on {
            "INSERT INTO policies (name) VALUES ($1) ON CONFLICT DO NOTHING"
        } else {
            "DELETE FROM policies WHERE name = $1"
        };
        let changed = sqlx::query(statement).bind(check.name()).execute(&mut *transaction).await?;
        if changed.rows_affected() > 0 {
            let what = if on { "added" } else { "removed" };
            let record = Record { why: format!("policy '{}' {what}", check.name()), ..Record::default() };
            return self.conclude(transaction, Event::PolicyChanged, record, now).await;
        }
        transaction.commit().await
    }
}

fn write_pcrs(pcrs: &BTreeMap<u32, Pcr>) -> String {
    let text: BTreeMap<u32, String> = pcrs.iter().map(|(pcr, value)| (*pcr, HEXLOWER.encode(value))).collect();
    // Numbers and strings: it cannot fail.
    serde_json::to_string(&text).unwrap_or_default()
}

fn read_pcrs(text: &str) -> Option<BTreeMap<u32, Pcr>> {
    let text: BTreeMap<u32, String> = serde_json::from_str(text).ok()?;
    text.iter().map(|(pcr, value)| Some((*pcr, HEXLOWER.decode(value.as_bytes()).ok()?.try_into().ok()?))).collect()
}
