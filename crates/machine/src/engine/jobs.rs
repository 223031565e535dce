//! Waiting for QEMU's block jobs.

use std::time::Duration;

use serde_json::json;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;

use super::qmp::{BlockJob, Command, Event};
use super::running::RunningVm;
use crate::error::{Error, Result};

/// How often QEMU is asked for the progress of a job or a migration.
pub(super) const PROGRESS: Duration = Duration::from_millis(500);

/// How far a job is awaited.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Until {
    /// Everything is copied; new writes go to both images.
    Ready,
    /// It has succeeded: after a merge, the guest uses the image below.
    Done,
}

impl RunningVm {
    /// The job of this name, if it exists.
    pub(super) async fn job(&self, id: &str) -> Result<Option<BlockJob>> {
        BlockJob::find(&self.qmp().execute(Command::QueryBlockJobs, json!({})).await?, id)
    }

    /// Waits for a job; `events` were subscribed to before it began. `progress` gets bytes done and in all.
    pub(super) async fn job_until(
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
                // Events may have been missed, or none arrived: QEMU knows the state of the job.
                Ok(Err(RecvError::Lagged(_))) | Err(_) => match self.job(id).await? {
                    Some(job) => {
                        progress(job.done, job.total);
                        if until == Until::Ready && job.ready {
                            return Ok(());
                        }
                    }
                    None if until == Until::Done => return Ok(()),
                    None => return Err(Error::BlockJob { reason: "it ended without an error message".into() }),
                },
            }
        }
    }
}
