//! Merging an overlay into the image under it while the VM runs.
//!
//! ```text
//! block-commit ── copies what the overlay holds ──> ready ── guest paused ── pivot ── `settled` ── guest goes on
//!      └─ fails: the VM runs on both images, as before          │               └─ fails: the guest stays paused
//!                                                               └─ fails: the guest goes on, on both images
//! ```
//! Until the pivot the overlay holds everything, so a merge that ended anywhere can be done again. The guest is
//! paused from the pivot until the caller has written down that the overlay does not count any more: at no moment
//! is there a write in one image only while the other one is what the next start would use.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;

use crate::qmp::{Command, Event};
use crate::running::Running;
use crate::{Error, Result, disk, qemu};

/// How often a job is asked for its progress.
pub(crate) const PROGRESS: Duration = Duration::from_millis(500);

/// How far a job is awaited.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Until {
    /// Everything is copied; new writes go to both images.
    Ready,
    /// It has ended well: after a merge, the guest uses the image below.
    Done,
}

impl Running {
    /// Merges the overlay of the disk with this serial number into its backing image, and makes the VM use that.
    /// `settled` runs while the guest is paused; `progress` gets bytes done and in all.
    ///
    /// # Errors
    /// [`Error::DiskAttachment`] for a disk that is not attached; QEMU's refusal: the guest goes on. What `settled` says:
    /// the guest stays paused. In both cases the merge can be called again, and goes on from there.
    pub async fn merge_overlay<E: From<Error>>(
        &self,
        serial: &str,
        mut progress: impl FnMut(u64, u64),
        settled: impl FnOnce() -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        let index = self.own_disk_index(serial)?;
        let node = qemu::disk_node(index);
        if !self.is_unsettled(serial) {
            self.copy_and_pivot(index, &node, &mut progress).await?;
        }
        settled()?;
        self.qmp().execute(Command::Cont, json!({})).await?;
        self.set_merged(index);
        self.drop_node(&node).await;
        Ok(())
    }

    /// Leaves the guest paused when it has pivoted.
    async fn copy_and_pivot(&self, index: usize, node: &str, progress: &mut impl FnMut(u64, u64)) -> Result<()> {
        let job = format!("merge-{index}");
        let mut events = self.qmp().events();
        match self.job(&job).await? {
            Some(job) if job["ready"] == true => {}
            // One that an earlier call left behind.
            Some(_) => self.job_until(&job, Until::Ready, &mut events, progress).await?,
            None => {
                let arguments = json!({"job-id": job, "device": node, "base-node": disk::backing_node(node)});
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
                self.set_unsettled(index, true);
                Ok(())
            }
            Err(error) => {
                self.qmp().execute(Command::Cont, json!({})).await?;
                Err(error)
            }
        }
    }

    pub(crate) async fn job(&self, id: &str) -> Result<Option<Value>> {
        let jobs = self.qmp().execute(Command::QueryBlockJobs, json!({})).await?;
        let jobs = jobs.as_array().ok_or(Error::QmpProtocol { reason: "no list of block jobs" })?;
        Ok(jobs.iter().find(|job| job["device"] == id).cloned())
    }

    pub(crate) async fn job_until(
        &self,
        id: &str,
        until: Until,
        events: &mut Receiver<Event>,
        progress: &mut impl FnMut(u64, u64),
    ) -> Result<()> {
        loop {
            match tokio::time::timeout(PROGRESS, events.recv()).await {
                Ok(Ok(event)) if event.data["device"] == id => match event.name.as_str() {
                    "BLOCK_JOB_READY" if until == Until::Ready => return Ok(()),
                    "BLOCK_JOB_COMPLETED" => {
                        return match event.data["error"].as_str() {
                            None if until == Until::Done => Ok(()),
                            why => Err(Error::BlockJob { reason: why.unwrap_or("it ended early").to_owned() }),
                        };
                    }
                    _ => {}
                },
                Ok(Ok(_)) => {}
                Ok(Err(RecvError::Closed)) => return Err(Error::QmpClosed),
                // Events may have been missed, or none came: the job itself knows.
                Ok(Err(RecvError::Lagged(_))) | Err(_) => match self.job(id).await? {
                    Some(job) => {
                        progress(job["offset"].as_u64().unwrap_or(0), job["len"].as_u64().unwrap_or(0));
                        if until == Until::Ready && job["ready"] == true {
                            return Ok(());
                        }
                    }
                    None if until == Until::Done => return Ok(()),
                    None => return Err(Error::BlockJob { reason: "it ended without a word".into() }),
                },
            }
        }
    }
}
