//! A VM's state taken from another host's QEMU, into one that was started by [`Running::incoming`].

use std::os::fd::OwnedFd;
use std::path::Path;

use serde_json::json;

use crate::outgoing::{CHANNEL, export_name};
use crate::qmp::Command;
use crate::running::Running;
use crate::{Result, qemu};

impl Running {
    /// Lets the other QEMU write the disks, over NBD on `socket`, which must be in a folder that nobody else can enter;
    /// QEMU cannot either, and inherits the listener. End it with [`Running::stop_serving`].
    ///
    /// # Errors
    /// QEMU's refusal.
    pub async fn receive_disks(&self, socket: &Path) -> Result<()> {
        self.listen(socket, json!({"max-connections": self.disk_count()})).await?;
        for index in 0..self.disk_count() {
            let export = json!({
                "type": "nbd", "id": export_name(index), "node-name": qemu::disk_node(index),
                "name": export_name(index), "writable": true,
            });
            self.qmp().execute(Command::BlockExportAdd, export).await?;
        }
        Ok(())
    }

    /// Takes memory and devices from `channel`. At the end the guest is complete, and paused, and QEMU keeps nothing of
    /// its disks in caches of its own.
    ///
    /// # Errors
    /// [`crate::Error::Migration`] or [`crate::Error::Ended`] with QEMU's reason: nothing can be done with it any more.
    pub async fn receive_memory(&self, channel: OwnedFd) -> Result<()> {
        self.qmp().get_fd(CHANNEL, channel).await?;
        self.set_capabilities(&["events"]).await?;
        self.qmp().execute(Command::MigrateIncoming, json!({"uri": format!("fd:{CHANNEL}")})).await?;
        self.migration_until("completed", &mut |_, _| ()).await?;
        // It is stopped already; but each time it is told to, QEMU flushes all images.
        self.qmp().execute(Command::Stop, json!({})).await.map(drop)
    }

    /// Lets the guest go on, when what every start insists on holds.
    ///
    /// # Errors
    /// [`crate::Error::Exposed`], QEMU's refusal.
    pub async fn go_on(&self) -> Result<()> {
        self.require_proof().await?;
        self.qmp().execute(Command::Cont, json!({})).await?;
        self.require_proof().await
    }
}
