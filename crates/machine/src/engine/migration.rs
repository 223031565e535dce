//! What both ends of a migration have in common.

use serde_json::{Value, json};
use tokio::sync::broadcast::error::RecvError;

use super::jobs::PROGRESS;
use super::qmp::{Command, Migration};
use super::running::RunningVm;
use crate::error::{Error, Result};

/// QEMU's name for the descriptor of the memory channel.
pub(super) const CHANNEL: &str = "migration";

/// The name under which the receiving side exports the `index`th disk.
pub(super) fn export_name(index: usize) -> String {
    format!("disk-{index}")
}

impl RunningVm {
    pub(super) async fn set_capabilities(&self, names: &[&str]) -> Result<()> {
        let on: Vec<Value> = names.iter().map(|name| json!({"capability": name, "state": true})).collect();
        self.qmp().execute(Command::MigrateSetCapabilities, json!({"capabilities": on})).await.map(drop)
    }

    /// Waits until QEMU's migration, outgoing or incoming, has reached a state.
    pub(super) async fn migration_until(&self, wanted: &str, progress: &mut impl FnMut(u64, u64)) -> Result<()> {
        let mut events = self.qmp().events();
        loop {
            let now = self.migration().await?;
            if now.status() == wanted {
                return Ok(());
            }
            if let Some(reason) = now.end() {
                return Err(Error::Migration { reason });
            }
            progress(now.done, now.total);
            tokio::select! {
                event = events.recv() => {
                    if matches!(event, Err(RecvError::Closed)) {
                        return Err(Error::QmpClosed);
                    }
                }
                () = tokio::time::sleep(PROGRESS) => {}
                exit = self.wait() => return Err(Error::Ended { reason: exit.reason }),
            }
        }
    }

    /// Waits until QEMU does no migration.
    pub(super) async fn migration_ended(&self) -> Result<()> {
        let mut events = self.qmp().events();
        loop {
            if !self.migration().await?.is_active() {
                return Ok(());
            }
            // A state that was reached before the first event is seen by the next query.
            match tokio::time::timeout(PROGRESS, events.recv()).await {
                Ok(Err(RecvError::Closed)) => return Err(Error::QmpClosed),
                _ => continue,
            }
        }
    }

    pub(super) async fn migration(&self) -> Result<Migration> {
        Ok(Migration::of(&self.qmp().execute(Command::QueryMigrate, json!({})).await?))
    }
}
