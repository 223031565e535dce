//! What a command that serves needs: a runtime, the signal to end, and a word to the service manager.
//!
//! The units in `contrib/systemd` have `Type=notify`: a unit that is ordered after one of them starts when its socket
//! listens, not when its process exists. Without `NOTIFY_SOCKET`, outside systemd, nothing is sent.

use outcome::{Context, Kind, Result};
use sd_notify::NotifyState;
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};

/// # Errors
/// `Internal` when the kernel gives it no threads or no event queue.
pub(crate) fn runtime() -> Result<Runtime> {
    Runtime::new().context(Kind::Internal, || "cannot start the asynchronous runtime".into())
}

/// Tells the service manager that clients can connect.
pub(crate) fn ready() {
    notify(NotifyState::Ready);
}

/// Completes at SIGTERM or Ctrl-C, and tells the service manager that this process is going to end.
///
/// # Errors
/// `Internal` when signals cannot be received.
pub(crate) fn shutdown() -> Result<impl Future<Output = ()> + Send + 'static> {
    let mut terminate =
        signal(SignalKind::terminate()).context(Kind::Internal, || "cannot listen for signals".into())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = tokio::signal::ctrl_c() => {}
        }
        notify(NotifyState::Stopping);
    })
}

/// A service manager that cannot be reached is no reason to stop serving; it ends the process if it wants to.
fn notify(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!(%error, "cannot notify the service manager at NOTIFY_SOCKET");
    }
}
