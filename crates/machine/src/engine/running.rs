//! A running VM: QEMU and swtpm, and the only control channel to them.
//!
//! ```text
//! start ── QEMU greets, runs, has no forbidden device ──> running ── guest shuts down ──> ended
//!   └── any failure ──> both killed                         ├──────── kill, dropped ────> ended
//!                                                           └──────── either exits ─────> ended
//! ```

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::json;
use tokio::net::UnixStream;
use tokio::sync::{broadcast, mpsc, watch};
use tokio::time::Instant;

use super::devices::{Disks, SessionPort};
use super::exposure::{ExposureReport, Subject, inspect};
use super::file_id::FileId;
use super::qmp::{Command, Qmp};
use super::supervisor::{Exit, ended};
use crate::error::{Error, Result};

/// A guest acknowledges the unplugging of a PCIe device after five seconds at the earliest.
const DETACH: Duration = Duration::from_secs(60);
/// A guest that is still booting misses the power button, so it is pressed again.
const PRESS_AGAIN: Duration = Duration::from_secs(10);

/// A running VM. Dropping it cuts the power.
pub struct RunningVm {
    pub(super) qmp: Qmp,
    pub(super) pid: u32,
    pub(super) kill: mpsc::Sender<()>,
    pub(super) exit: watch::Receiver<Option<Exit>>,
    pub(super) console: Option<UnixStream>,
    pub(super) disks: Mutex<Disks>,
    pub(super) subject: Mutex<Subject>,
    pub(super) session: tokio::sync::Mutex<SessionPort>,
}

impl RunningVm {
    /// QEMU's process id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Whether it has not ended yet.
    pub fn is_alive(&self) -> bool {
        self.exit.borrow().is_none()
    }

    /// The serial console, if the VM has one. It can be taken once.
    pub fn take_console(&mut self) -> Option<UnixStream> {
        self.console.take()
    }

    /// What it exposes now.
    ///
    /// # Errors
    /// When it has ended, or cannot be inspected.
    pub async fn exposure(&self) -> Result<ExposureReport> {
        inspect(&self.qmp, &self.subject(), true).await
    }

    /// Checks what must hold for a VM to run, as after every start.
    pub(super) async fn require_exposure(&self) -> Result<()> {
        inspect(&self.qmp, &self.subject(), false).await?.require()
    }

    pub(super) fn subject(&self) -> Subject {
        self.subject.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// QEMU may write to these files from now on.
    pub(super) fn allow_writes(&self, files: Vec<FileId>) {
        self.subject.lock().unwrap_or_else(PoisonError::into_inner).written.extend(files);
    }

    /// Waits for the VM's end.
    pub async fn wait(&self) -> Exit {
        ended(&mut self.exit.clone()).await
    }

    /// Cuts the power and waits until both processes have ended.
    pub async fn kill(&self) {
        // Full or closed: it is being killed, or has ended.
        let _ = self.kill.try_send(());
        self.wait().await;
    }

    /// Asks the guest to shut down and waits. After an error the VM still runs.
    ///
    /// # Errors
    /// [`Error::Deadline`] when the guest does not shut down in time.
    pub async fn shutdown(&self, deadline: Duration) -> Result<Exit> {
        let late = || Error::Deadline { what: "the guest's shutdown", seconds: deadline.as_secs() };
        let end = Instant::now() + deadline;
        loop {
            match self.qmp.execute(Command::SystemPowerdown, json!({})).await {
                // It may have shut down at this very moment.
                Ok(_) | Err(Error::QmpClosed) => {}
                Err(error) => return Err(error),
            }
            let until = end.min(Instant::now() + PRESS_AGAIN);
            if let Ok(exit) = tokio::time::timeout_at(until, self.wait()).await {
                return Ok(exit);
            }
            if Instant::now() >= end {
                return Err(late());
            }
        }
    }

    /// Unplugs a device and waits until the guest has released it; `what` names that in an error.
    pub(super) async fn remove_device(&self, id: &str, what: &'static str) -> Result<()> {
        let mut events = self.qmp.events();
        match self.qmp.execute(Command::DeviceDel, json!({"id": id})).await {
            Ok(_) => {}
            // Requested before, and the guest has not answered yet.
            Err(Error::Qmp { description, .. }) if description.contains("in the process of unplug") => {}
            Err(error) => return Err(error),
        }
        let gone = async {
            loop {
                match events.recv().await {
                    Ok(event) if event.name == "DEVICE_DELETED" && event.data["device"] == id => {
                        return Ok(());
                    }
                    Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Err(broadcast::error::RecvError::Closed) => return Err(Error::QmpClosed),
                }
            }
        };
        tokio::select! {
            gone = tokio::time::timeout(DETACH, gone) => {
                gone.map_err(|_| Error::Deadline { what, seconds: DETACH.as_secs() })?
            }
            exit = self.wait() => Err(Error::Ended { reason: exit.reason }),
        }
    }

    pub(super) async fn drop_node(&self, node: &str) {
        let arguments = json!({"node-name": node});
        if let Err(error) = self.qmp.execute(Command::BlockdevDel, arguments).await {
            tracing::warn!(node, %error, "QEMU keeps a disk image open");
        }
    }

    pub(super) fn qmp(&self) -> &Qmp {
        &self.qmp
    }

    pub(super) fn disks(&self) -> MutexGuard<'_, Disks> {
        self.disks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
