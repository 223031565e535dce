//! A running VM's state sent to another host's QEMU.
//!
//! ```text
//! disks copied, then kept in sync ── memory copied ── guest paused ── disks level ── rest of the state ── handed over
//!   └─ any failure, or cancelled: `take_back`, and the guest resumes here ─────────────────────────────────┘
//! ```
//! Writes reach the other side in the background: the guest does not wait for the network, however slow or broken it is.
//! The state of the vTPM is in QEMU's stream in the clear, so whoever holds the other ends of the channels must encrypt
//! them.

use std::os::fd::OwnedFd;

use serde_json::json;
use tokio::sync::broadcast::error::RecvError;

use super::jobs::{PROGRESS, Until};
use super::migration::{CHANNEL, export_name};
use super::qmp::{Command, run_state};
use super::running::RunningVm;
use crate::error::{Error, Result};

fn mirror(index: usize) -> String {
    format!("mirror-{index}")
}

impl RunningVm {
    /// Copies the `index`th disk through `channel` to the QEMU at its other end, an NBD server, and keeps both in sync from
    /// then on. `progress` gets bytes done and in all.
    ///
    /// # Errors
    /// [`Error::DiskAttachment`] for an index that is not a disk of the VM; QEMU's refusal; the end of the channel.
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

    /// Sends memory and devices through `channel`. At the end the guest is paused on both sides, and its disks, all of
    /// which were mirrored, are identical.
    ///
    /// # Errors
    /// [`Error::Migration`] with QEMU's reason: call [`RunningVm::take_back`].
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

    /// Cancels the transfer at whatever point it is; the guest resumes here.
    ///
    /// # Errors
    /// When QEMU does not resume: the VM is paused or dead.
    pub async fn take_back(&self) -> Result<()> {
        if self.migration().await?.is_active() {
            self.qmp().execute(Command::MigrateCancel, json!({})).await?;
            self.migration_ended().await?;
        }
        for index in 0..self.disk_count() {
            self.drop_mirror(index).await?;
        }
        let status = self.qmp().execute(Command::QueryStatus, json!({})).await?;
        if run_state(&status) != Some("running") {
            self.qmp().execute(Command::Cont, json!({})).await?;
        }
        Ok(())
    }

    /// Whether disks beyond the sealed record's are attached, or a change of one is under way.
    pub fn has_guests_disks(&self) -> bool {
        self.disks().attached.iter().any(|disk| !disk.sealed || disk.busy || disk.unsettled)
    }

    fn sealed_node(&self, index: usize) -> Result<String> {
        let disks = self.disks();
        let disk = disks.sealed().find(|disk| disk.index == index && !disk.busy);
        disk.map(|disk| disk.node.clone()).ok_or_else(|| Error::DiskAttachment {
            serial: format!("number {index}"),
            reason: "is not a disk of the VM",
        })
    }

    fn mirrored(&self) -> Vec<usize> {
        self.disks().sealed().map(|disk| disk.index).collect()
    }

    /// Ends a ready mirror under a paused guest: QEMU sends what the other side lacks, then completes the job.
    async fn level(&self, index: usize) -> Result<()> {
        let job = mirror(index);
        let mut events = self.qmp().events();
        // Not a cancellation: on a ready mirror, "cancel" completes it without switching to the copy.
        self.qmp().execute(Command::BlockJobCancel, json!({"device": job})).await?;
        self.job_until(&job, Until::Done, &mut events, &mut |_, _| ()).await?;
        self.qmp().execute(Command::BlockdevDel, json!({"node-name": job})).await.map(drop)
    }

    /// Removes what exists of a mirror.
    async fn drop_mirror(&self, index: usize) -> Result<()> {
        let job = mirror(index);
        if self.job(&job).await?.is_some() {
            let mut events = self.qmp().events();
            // A job that ends at this very moment no longer exists when the command arrives.
            let cancelled = self.qmp().execute(Command::BlockJobCancel, json!({"device": job, "force": true})).await;
            while self.job(&job).await?.is_some() {
                match tokio::time::timeout(PROGRESS, events.recv()).await {
                    Ok(Err(RecvError::Closed)) => return Err(Error::QmpClosed),
                    _ => continue,
                }
            }
            tracing::debug!(job, cancelled = cancelled.is_ok(), "a mirror was abandoned");
        }
        match self.qmp().execute(Command::BlockdevDel, json!({"node-name": job})).await {
            // Never added, or removed already.
            Ok(_) | Err(Error::Qmp { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }
}
