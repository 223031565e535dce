//! The agent's protocol: one JSON request on a line, then JSON lines until `result` or `error` ends the call.
//! After a `stream` line the connection carries raw bytes (a console).

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::Error;

/// The longest request line, in bytes. Protectors and grants are small; disks travel by path.
pub const MAX_REQUEST: u64 = 8 << 20;

/// One line from the agent.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Line {
    /// The operation is still running.
    Progress(Progress),
    /// It succeeded. Nothing follows.
    Result(Value),
    /// It failed. Nothing follows.
    Error(Error),
    /// Raw bytes follow.
    Stream,
}

/// What a long step is doing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// A short stable name, for scripts.
    pub step: String,
    /// The same for people.
    pub message: String,
    /// Bytes done.
    pub done: u64,
    /// Bytes in all; 0 where that is not known.
    pub total: u64,
}

/// Where an operation reports progress. Cheap to clone; never blocks the work.
#[derive(Clone)]
pub struct Events(tokio::sync::mpsc::Sender<Progress>);

impl Events {
    /// Reports through `sender`, whose receiver belongs to the client's connection.
    #[must_use]
    pub fn new(sender: tokio::sync::mpsc::Sender<Progress>) -> Self {
        Events(sender)
    }

    /// Reports that a step begins or has been reached.
    pub fn say(&self, step: &str, message: impl Into<String>) {
        self.bytes(step, message, 0, 0);
    }

    /// Reports bytes. A slow reader loses intermediate reports, never the work.
    pub fn bytes(&self, step: &str, message: impl Into<String>, done: u64, total: u64) {
        let _ = self.0.try_send(Progress { step: step.into(), message: message.into(), done, total });
    }

    /// True once the client has gone away (Ctrl-C): long steps stop at their next safe point.
    #[must_use]
    pub fn abandoned(&self) -> bool {
        self.0.is_closed()
    }

    /// Completes once the client has gone away.
    pub async fn gone(&self) {
        self.0.closed().await;
    }
}
