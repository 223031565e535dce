//! The task that owns a VM's two processes. When one of them ends, it ends the other, reaps both and removes the taps.

use std::time::Duration;

use tokio::sync::{mpsc, watch};

use crate::process::Process;
use crate::tap::Taps;

/// How long swtpm may take to exit once QEMU has ended.
pub(super) const SWTPM_END: Duration = Duration::from_secs(5);

/// How a VM ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exit {
    /// The guest shut down, by itself or on request.
    pub clean: bool,
    /// For people.
    pub reason: String,
}

/// Waits for the VM's end.
pub(super) async fn ended(exit: &mut watch::Receiver<Option<Exit>>) -> Exit {
    match exit.wait_for(Option::is_some).await {
        Ok(exit) => exit.clone(),
        Err(_) => None,
    }
    .unwrap_or_else(|| Exit { clean: false, reason: "its supervisor has ended".into() })
}

/// Runs until both processes have ended, and then sends how. A message on `killed`, or its end, cuts the power.
pub(super) async fn supervise(
    mut qemu: Process,
    mut swtpm: Process,
    taps: Taps,
    mut killed: mpsc::Receiver<()>,
    exit: watch::Sender<Option<Exit>>,
) {
    let outcome = tokio::select! {
        status = qemu.child.wait() => Some(status),
        status = swtpm.child.wait() => {
            qemu.kill().await;
            let status = status.map_or_else(|e| e.to_string(), |s| s.to_string());
            let reason = swtpm.failure(status).await.to_string();
            taps.remove().await;
            exit.send_replace(Some(Exit { clean: false, reason }));
            return;
        }
        // A message, or the VM's handle was dropped.
        _ = killed.recv() => None,
    };
    if outcome.is_none() {
        qemu.kill().await;
    }
    // swtpm exits by itself once QEMU has ended.
    if tokio::time::timeout(SWTPM_END, swtpm.child.wait()).await.is_err() {
        swtpm.kill().await;
    }
    taps.remove().await;
    let result = match outcome {
        None => Exit { clean: false, reason: "its power was cut".into() },
        Some(Ok(status)) if status.success() => Exit { clean: true, reason: "the guest shut down".into() },
        Some(Ok(status)) => Exit { clean: false, reason: qemu.failure(status.to_string()).await.to_string() },
        Some(Err(error)) => Exit { clean: false, reason: error.to_string() },
    };
    exit.send_replace(Some(result));
}
