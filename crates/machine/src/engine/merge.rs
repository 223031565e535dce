//! Merging an overlay into the image under it while the VM runs.
//!
//! ```text
//! block-commit ── copies what the overlay holds ──> ready ── guest paused ── pivot ── `settled` ── guest resumes
//!      └─ fails: the VM runs on both images, as before          │               └─ fails: the guest stays paused
//!                                                               └─ fails: the guest resumes, on both images
//! ```
//! Until the pivot the overlay holds everything, so an interrupted merge can always be repeated. The guest is paused from
//! the pivot until the caller has recorded that the overlay no longer counts: at no moment is a write in only one image
//! while the other one is what the next start would use.

use serde_json::json;

use super::jobs::Until;
use super::nodes::{backing_node, disk_node};
use super::qmp::Command;
use super::running::RunningVm;
use crate::error::{Error, Result};

impl RunningVm {
    /// Merges the overlay of the disk with this serial number into its backing image, and makes the VM use that.
    /// `settled` runs while the guest is paused; `progress` gets bytes done and in all.
    ///
    /// # Errors
    /// [`Error::DiskAttachment`] for a disk that is not attached, or QEMU's refusal: the guest keeps running. The error of
    /// `settled`: the guest stays paused. In both cases the merge can be called again, and continues from there.
    pub async fn merge_overlay<E: From<Error>>(
        &self,
        serial: &str,
        mut progress: impl FnMut(u64, u64),
        settled: impl FnOnce() -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        let index = self.own_disk_index(serial)?;
        let node = disk_node(index);
        if !self.is_unsettled(serial) {
            self.copy_and_pivot(index, &node, &mut progress).await?;
        }
        settled()?;
        self.qmp().execute(Command::Cont, json!({})).await?;
        self.disks().set_merged(index);
        self.drop_node(&node).await;
        Ok(())
    }

    /// Leaves the guest paused once the pivot has succeeded.
    async fn copy_and_pivot(&self, index: usize, node: &str, progress: &mut impl FnMut(u64, u64)) -> Result<()> {
        let job = format!("merge-{index}");
        let mut events = self.qmp().events();
        match self.job(&job).await? {
            Some(job) if job.ready => {}
            // Left behind by an earlier call.
            Some(_) => self.job_until(&job, Until::Ready, &mut events, progress).await?,
            None => {
                let arguments = json!({"job-id": job, "device": node, "base-node": backing_node(node)});
                self.qmp().execute(Command::BlockCommit, arguments).await?;
                self.job_until(&job, Until::Ready, &mut events, progress).await?;
            }
        }
        self.qmp().execute(Command::Stop, json!({})).await?;
        let pivot = async {
            self.qmp().execute(Command::BlockJobComplete, json!({"device": job})).await?;
            self.job_until(&job, Until::Done, &mut events, progress).await
        }
        .await;
        match pivot {
            Ok(()) => {
                self.disks().set_unsettled(index, true);
                Ok(())
            }
            Err(error) => {
                self.qmp().execute(Command::Cont, json!({})).await?;
                Err(error)
            }
        }
    }

    /// Whether the guest is paused because a merge of this disk is not recorded yet.
    pub fn is_unsettled(&self, serial: &str) -> bool {
        self.disks().find(serial).is_some_and(|disk| disk.unsettled)
    }

    /// The index by which the nodes of one of the VM's own disks are named.
    fn own_disk_index(&self, serial: &str) -> Result<usize> {
        let refuse = |reason| Error::DiskAttachment { serial: serial.to_owned(), reason };
        match self.disks().find(serial) {
            None => Err(refuse("is not attached")),
            Some(disk) if !disk.sealed => Err(refuse("is not part of the VM: the image under it is only read")),
            Some(disk) => Ok(disk.index),
        }
    }
}
