//! QEMU as an NBD server of its disks.

use std::os::unix::net::UnixListener;
use std::path::Path;

use serde_json::{Value, json};

use super::nodes::disk_node;
use super::qmp::Command;
use super::running::RunningVm;
use crate::error::{Error, Result};

/// QEMU's name for the disk that it serves, and for the listener.
const SERVED: &str = "served";

impl RunningVm {
    /// Serves an attached disk over NBD, to be read while the guest uses it. `socket` must be in a directory that nobody
    /// else can enter; QEMU cannot either, and inherits the listener. [`RunningVm::stop_serving`] ends it.
    ///
    /// # Errors
    /// [`Error::DiskAttachment`] for a disk that is not attached or is part of the VM.
    pub async fn serve_disk(&self, serial: &str, socket: &Path) -> Result<()> {
        let refuse = |reason| Error::DiskAttachment { serial: serial.to_owned(), reason };
        let index = match self.disks().find(serial) {
            None => return Err(refuse("is not attached")),
            Some(disk) if disk.sealed => return Err(refuse("is part of the VM and is served to nobody")),
            Some(disk) if disk.busy => return Err(refuse("is being attached or detached")),
            Some(disk) => disk.index,
        };
        self.listen(socket, json!({})).await?;
        let export = json!({
            "type": "nbd", "id": SERVED, "node-name": disk_node(index), "name": "", "writable": false,
        });
        let served = self.qmp().execute(Command::BlockExportAdd, export).await;
        if served.is_err() {
            self.stop_serving().await;
        }
        served.map(|_| ())
    }

    /// Starts QEMU's NBD server on a listener that it inherits. `limits` are further arguments.
    pub(super) async fn listen(&self, socket: &Path, mut limits: Value) -> Result<()> {
        let listener = UnixListener::bind(socket).map_err(Error::io("listen on", socket))?;
        self.qmp().get_fd(SERVED, listener.into()).await?;
        limits["addr"] = json!({"type": "fd", "data": {"str": SERVED}});
        self.qmp().execute(Command::NbdServerStart, limits).await.map(drop)
    }

    /// Stops serving disks.
    pub async fn stop_serving(&self) {
        if let Err(error) = self.qmp().execute(Command::NbdServerStop, json!({})).await {
            tracing::warn!(%error, "QEMU still serves a disk");
        }
    }
}
