//! What commands return, as far as anything here acts on it. A field that is missing or has another type never counts as
//! success.

use serde_json::Value;

use crate::error::{Error, Result};

/// Longest list that is believed: no VM has as many devices.
const MAX_ENTRIES: usize = 4096;

/// A list of what the VM has.
///
/// # Errors
/// [`Error::QmpProtocol`] for anything but a list, or a longer one than any VM has.
pub fn list(answer: Value) -> Result<Vec<Value>> {
    match answer {
        Value::Array(entries) if entries.len() <= MAX_ENTRIES => Ok(entries),
        _ => Err(Error::QmpProtocol { reason: "an answer is not a list of what the VM has" }),
    }
}

/// The run state in the answer to `query-status`.
pub fn run_state(answer: &Value) -> Option<&str> {
    answer["status"].as_str()
}

/// A block job, from `query-block-jobs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockJob {
    /// Everything is copied, and the job can be completed.
    pub ready: bool,
    /// Bytes.
    pub done: u64,
    /// Bytes.
    pub total: u64,
}

impl BlockJob {
    /// The job of this name in the answer; None when it does not exist.
    ///
    /// # Errors
    /// [`Error::QmpProtocol`] when the answer is not a list.
    pub fn find(answer: &Value, id: &str) -> Result<Option<Self>> {
        let jobs = answer.as_array().ok_or(Error::QmpProtocol { reason: "no list of block jobs" })?;
        let job = jobs.iter().find(|job| job["device"] == id);
        Ok(job.map(|job| Self {
            ready: job["ready"] == true,
            done: job["offset"].as_u64().unwrap_or(0),
            total: job["len"].as_u64().unwrap_or(0),
        }))
    }
}

/// A migration, outgoing or incoming, from `query-migrate`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Migration {
    status: Option<String>,
    error: Option<String>,
    /// Bytes of memory that were transferred.
    pub done: u64,
    /// Bytes.
    pub total: u64,
}

/// States in which QEMU does no migration.
const ENDED: [&str; 4] = ["none", "completed", "failed", "cancelled"];

impl Migration {
    /// Reads the answer.
    pub fn of(answer: &Value) -> Self {
        let text = |field: &str| answer[field].as_str().map(str::to_owned);
        let ram = &answer["ram"];
        let total = ram["total"].as_u64().unwrap_or(0);
        let done = total.saturating_sub(ram["remaining"].as_u64().unwrap_or(0));
        Self { status: text("status"), error: text("error-desc"), done, total }
    }

    /// Its status; `none` when there never was a migration.
    pub fn status(&self) -> &str {
        self.status.as_deref().unwrap_or("none")
    }

    /// A migration that is under way.
    pub fn is_active(&self) -> bool {
        !ENDED.contains(&self.status())
    }

    /// Why it is over, if it is.
    pub fn end(&self) -> Option<String> {
        match self.status() {
            "none" => None,
            status if ENDED.contains(&status) => {
                Some(self.error.clone().unwrap_or_else(|| format!("its status is {status}")))
            }
            _ => None,
        }
    }
}
