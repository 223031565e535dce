//! What a command that serves needs: a runtime, and the signal to end.

use outcome::{Context, Kind, Result};
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};

/// # Errors
/// `Internal` when the kernel gives it no threads or no event queue.
pub(crate) fn runtime() -> Result<Runtime> {
    Runtime::new().context(Kind::Internal, || "cannot start the asynchronous runtime".into())
}

/// Completes at SIGTERM or Ctrl-C.
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
    })
}
