//! A running VM's state passed to another host's QEMU.
//!
//! ```text
//! disks copied, then kept alike ── memory copied ── guest paused ── disks level ── last of the state ── passed on
//!   └─ anything fails, or is given up: `take_back`, and the guest goes on here ──────────────────────────┘
//! ```
//! Writes reach the other side in the background: however slow or broken the way there is, the guest does not wait for it.
//! The state of the vTPM is in QEMU's stream in the clear, so the channels must be encrypted by whoever holds their
//! other ends.

use std::os::fd::OwnedFd;

use serde_json::{Value, json};
use tokio::sync::broadcast::error::RecvError;

use crate::merge::{PROGRESS, Until};
use crate::qmp::Command;
use crate::running::Running;
use crate::{Error, Result};

/// QEMU's name for the descriptor that the memory goes through.
pub(crate) const CHANNEL: &str = "migration";

/// The name under which the other side takes the `index`th disk.
pub(crate) fn export_name(index: usize) -> String {
    format!("disk-{index}")
}

fn mirror(index: usize) -> String {
    format!("mirror-{index}")
}

impl Running {
    /// Copies the `index`th disk through `channel` to the QEMU at its other end, an NBD server, and keeps both alike from
    /// then on. `progress` gets bytes done and in all.
    ///
    /// # Errors
    /// [`Error::DiskAttachment`] for what is not a disk of the VM; QEMU's refusal, the channel's end.
    pub async fn mirror_disk(&self, index: usize, channel: OwnedFd, mut progress: impl FnMut(u64, u64)) -> Result<()> {
        let node = self.sealed_node(index)?;
        let target = mirror(index);
        self.qmp().get_fd(&target, channel).await?;
        let client = json!({
            "node-name": target, "driver": "nbd", "export": export_name(index),
            "server": {"type": "fd", "str": target}, "discard": "unmap", "detect-zeroes": "unmap",
        });
        self.qmp().execute(Command::BlockdevAdd, client).await?;
        let mut events = self.qmp().events();
        let copy = json!({
            "job-id": target, "device": node, "target": target, "sync": "full", "copy-mode": "background",
        });
        self.qmp().execute(Command::BlockdevMirror, copy).await?;
        self.job_until(&target, Until::Ready, &mut events, &mut progress).await
    }

    /// Passes memory and devices on through `channel`. At the end the guest is paused, here and there, and its disks,
    /// all of which were mirrored, are alike.
    ///
    /// # Errors
    /// [`Error::Migration`] with QEMU's reason: call [`Running::take_back`].
    pub async fn send_memory(&self, channel: OwnedFd, mut progress: impl FnMut(u64, u64)) -> Result<()> {
        self.qmp().get_fd(CHANNEL, channel).await?;
        self.set_capabilities(&["events", "pause-before-switchover", "auto-converge"]).await?;
        self.qmp().execute(Command::Migrate, json!({"uri": format!("fd:{CHANNEL}")})).await?;
        self.migration_until("pre-switchover", &mut progress).await?;
        for index in self.mirrored() {
            self.level(index).await?;
        }
        self.qmp().execute(Command::MigrateContinue, json!({"state": "pre-switchover"})).await?;
        self.migration_until("completed", &mut progress).await
    }

    /// Gives up passing the VM on, wherever that stood; the guest goes on here.
    ///
    /// # Errors
    /// When QEMU does not go on: the VM is stopped or dead.
    pub async fn take_back(&self) -> Result<()> {
        let migration = self.qmp().execute(Command::QueryMigrate, json!({})).await?;
        if migration["status"].as_str().is_some_and(|status| !ENDED.contains(&status)) {
            self.qmp().execute(Command::MigrateCancel, json!({})).await?;
            self.migration_ended().await?;
        }
        for index in 0..self.disk_count() {
            self.drop_mirror(index).await?;
        }
        let status = self.qmp().execute(Command::QueryStatus, json!({})).await?;
        if status["status"] != "running" {
            self.qmp().execute(Command::Cont, json!({})).await?;
        }
        Ok(())
    }

    /// How many disks the sealed record names.
    pub fn disk_count(&self) -> usize {
        self.disks().attached.iter().filter(|disk| disk.sealed).count()
    }

    /// Whether there are disks beyond the sealed record's, or a change of one is under way.
    pub fn has_guests_disks(&self) -> bool {
        self.disks().attached.iter().any(|disk| !disk.sealed || disk.busy || disk.unsettled)
    }

    pub(crate) async fn set_capabilities(&self, names: &[&str]) -> Result<()> {
        let on: Vec<Value> = names.iter().map(|name| json!({"capability": name, "state": true})).collect();
        self.qmp().execute(Command::MigrateSetCapabilities, json!({"capabilities": on})).await.map(drop)
    }

    /// Waits until QEMU's migration, outgoing or incoming, has reached a state.
    pub(crate) async fn migration_until(&self, wanted: &str, progress: &mut impl FnMut(u64, u64)) -> Result<()> {
        let mut events = self.qmp().events();
        loop {
            let now = self.qmp().execute(Command::QueryMigrate, json!({})).await?;
            let status = now["status"].as_str().unwrap_or("none");
            if status == wanted {
                return Ok(());
            }
            if ENDED.contains(&status) && status != "none" {
                let why = now["error-desc"].as_str().map_or_else(|| format!("it is {status}"), str::to_owned);
                return Err(Error::Migration { reason: why });
            }
            let ram = &now["ram"];
            let total = ram["total"].as_u64().unwrap_or(0);
            progress(total.saturating_sub(ram["remaining"].as_u64().unwrap_or(0)), total);
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

    async fn migration_ended(&self) -> Result<()> {
        let mut events = self.qmp().events();
        loop {
            let now = self.qmp().execute(Command::QueryMigrate, json!({})).await?;
            if now["status"].as_str().is_none_or(|status| ENDED.contains(&status)) {
                return Ok(());
            }
            // A state that was reached before the first event is seen at the next look.
            match tokio::time::timeout(PROGRESS, events.recv()).await {
                Ok(Err(RecvError::Closed)) => return Err(Error::QmpClosed),
                _ => continue,
            }
        }
    }

    fn sealed_node(&self, index: usize) -> Result<String> {
        let disks = self.disks();
        let disk = disks.attached.iter().find(|disk| disk.index == index && disk.sealed && !disk.busy);
        disk.map(|disk| disk.node.clone()).ok_or_else(|| Error::DiskAttachment {
            serial: format!("number {index}"),
            reason: "is not a disk of the VM",
        })
    }

    fn mirrored(&self) -> Vec<usize> {
        self.disks().attached.iter().filter(|disk| disk.sealed).map(|disk| disk.index).collect()
    }

    /// Ends a mirror that is ready, under a paused guest: what the other side lacks is sent, then the job is over.
    async fn level(&self, index: usize) -> Result<()> {
        let job = mirror(index);
        let mut events = self.qmp().events();
        // Not a cancellation: on a mirror that is ready, "cancel" means to end it without changing over to the copy.
        self.qmp().execute(Command::BlockJobCancel, json!({"device": job})).await?;
        self.job_until(&job, Until::Done, &mut events, &mut |_, _| ()).await?;
        self.qmp().execute(Command::BlockdevDel, json!({"node-name": job})).await.map(drop)
    }

    /// Takes away whatever there is of a mirror.
    async fn drop_mirror(&self, index: usize) -> Result<()> {
        let job = mirror(index);
        if self.job(&job).await?.is_some() {
            let mut events = self.qmp().events();
            // One that ends in this moment is gone without having been told to.
            let told = self.qmp().execute(Command::BlockJobCancel, json!({"device": job, "force": true})).await;
            while self.job(&job).await?.is_some() {
                match tokio::time::timeout(PROGRESS, events.recv()).await {
                    Ok(Err(RecvError::Closed)) => return Err(Error::QmpClosed),
                    _ => continue,
                }
            }
            tracing::debug!(job, told = told.is_ok(), "a mirror was given up");
        }
        match self.qmp().execute(Command::BlockdevDel, json!({"node-name": job})).await {
            // never made, or gone
            Ok(_) | Err(Error::Qmp { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// States in which QEMU does no migration.
const ENDED: [&str; 4] = ["none", "completed", "failed", "cancelled"];
