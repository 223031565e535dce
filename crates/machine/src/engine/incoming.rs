//! A VM's state received from another host's QEMU, by one that [`RunningVm::start_incoming`] started.

use std::os::fd::OwnedFd;
use std::path::Path;

use serde_json::json;

use super::migration::{CHANNEL, export_name};
use super::nodes::disk_node;
use super::qmp::Command;
use super::running::RunningVm;
use crate::error::Result;

impl RunningVm {
    /// Lets the other QEMU write the disks, over NBD on `socket`, which must be in a directory that nobody else can enter;
    /// QEMU cannot either, and inherits the listener. [`RunningVm::stop_serving`] ends it.
    ///
    /// # Errors
    /// QEMU's refusal.
    pub async fn receive_disks(&self, socket: &Path) -> Result<()> {
        self.listen(socket, json!({"max-connections": self.disk_count()})).await?;
        for index in 0..self.disk_count() {
            let export = json!({
                "type": "nbd", "id": export_name(index), "node-name": disk_node(index),
                "name": export_name(index), "writable": true,
            });
            self.qmp().execute(Command::BlockExportAdd, export).await?;
        }
        Ok(())
    }

    /// Receives memory and devices from `channel`. At the end the guest is complete and paused, and QEMU caches nothing of
    /// its disks.
    ///
    /// # Errors
    /// [`crate::Error::Migration`] or [`crate::Error::Ended`] with QEMU's reason: this QEMU is then of no further use.
    pub async fn receive_memory(&self, channel: OwnedFd) -> Result<()> {
        self.qmp().get_fd(CHANNEL, channel).await?;
        self.set_capabilities(&["events"]).await?;
        self.qmp().execute(Command::MigrateIncoming, json!({"uri": format!("fd:{CHANNEL}")})).await?;
        self.migration_until("completed", &mut |_, _| ()).await?;
        // The guest is stopped already; but at each `stop` QEMU flushes all images.
        self.qmp().execute(Command::Stop, json!({})).await.map(drop)
    }

    /// Resumes the guest, if what every start requires holds.
    ///
    /// # Errors
    /// [`crate::Error::Exposed`]; QEMU's refusal.
    pub async fn resume(&self) -> Result<()> {
        self.require_exposure().await?;
        self.qmp().execute(Command::Cont, json!({})).await?;
        self.require_exposure().await
    }
}
