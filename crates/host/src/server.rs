//! The unix socket: who may connect, one request per connection, progress, and consoles as raw streams.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::holder::in_the_name_of;
use outcome::wire::{Events, Line, MAX_REQUEST};
use outcome::{Context, Error, Kind, Result};

/// The answer to a request.
pub enum Reply {
    /// One JSON value, which ends the call.
    Value(Value),
    /// The connection carries this stream's bytes from here on.
    Stream(UnixStream),
}

/// Answers the requests that come over the socket.
pub trait RequestHandler: Send + Sync + 'static {
    /// Answers one request; `line` is untrusted text.
    fn call(&self, line: &[u8], events: Events) -> impl Future<Output = Result<Reply>> + Send;
}

/// Serves until `shutdown` resolves, then waits for running calls to end. `ready` is called once clients can connect.
///
/// # Errors
/// When the socket cannot be made.
pub async fn serve<H: RequestHandler>(
    socket: &Path,
    handler: Arc<H>,
    ready: impl FnOnce(),
    shutdown: impl Future<Output = ()>,
) -> Result<()> {
    let listener = bind(socket).context(Kind::Internal, || format!("cannot listen on {}", socket.display()))?;
    ready();
    let mut calls = JoinSet::new();
    tokio::pin!(shutdown);
    loop {
        tokio::select! {
            () = &mut shutdown => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    let handler = Arc::clone(&handler);
                    calls.spawn(async move {
                        if let Err(e) = connection(stream, &*handler).await {
                            tracing::debug!(error = %e, "a client went away");
                        }
                    });
                }
                Err(e) => tracing::warn!(error = %e, "cannot accept a connection"),
            },
            Some(_) = calls.join_next(), if !calls.is_empty() => {}
        }
    }
    let _ = std::fs::remove_file(socket);
    drop(listener);
    while calls.join_next().await.is_some() {}
    Ok(())
}

/// A socket that only its owner can open. A second agent on the same path is refused, a stale file is not.
fn bind(socket: &Path) -> io::Result<UnixListener> {
    if std::os::unix::net::UnixStream::connect(socket).is_ok() {
        return Err(io::Error::new(io::ErrorKind::AddrInUse, "an agent already answers there"));
    }
    match std::fs::remove_file(socket) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    if let Some(parent) = socket.parent() {
        durable::private_dir(parent)?;
    }
    // The mode is set by umask at bind time: no moment at which others could connect.
    let old = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
    let listener = UnixListener::bind(socket);
    rustix::process::umask(old);
    let listener = listener?;
    debug_assert_eq!(std::fs::metadata(socket)?.permissions().mode() & 0o077, 0);
    Ok(listener)
}

async fn connection<H: RequestHandler>(mut stream: UnixStream, handler: &H) -> io::Result<()> {
    let peer = stream.peer_cred()?;
    let me = rustix::process::geteuid().as_raw();
    if peer.uid() != me && peer.uid() != 0 {
        let refused = Error::new(Kind::Refused, format!("user {} may not talk to this agent", peer.uid()))
            .remedy("run the command as root, or with sudo");
        return send(&mut stream, &Line::Error(refused)).await;
    }
    let mut line = Vec::new();
    {
        let mut reader = BufReader::new((&mut stream).take(MAX_REQUEST));
        reader.read_until(b'\n', &mut line).await?;
    }
    if line.last() != Some(&b'\n') {
        let refused = Error::new(Kind::BadInput, format!("the request is not one line of at most {MAX_REQUEST} bytes"));
        return send(&mut stream, &Line::Error(refused)).await;
    }
    let (sender, mut progress) = mpsc::channel(64);
    let caller = caller(&line, peer.uid(), peer.pid());
    let call = in_the_name_of(caller, handler.call(&line, Events::new(sender)));
    tokio::pin!(call);
    let mut probe = [0u8; 1];
    let mut client_left = false;
    let outcome = loop {
        tokio::select! {
            outcome = &mut call => break outcome,
            Some(report) = progress.recv() => {
                if send(&mut stream, &Line::Progress(report)).await.is_err() {
                    progress.close();
                    client_left = true;
                }
            }
            // The client sends nothing more; end of file means that it left. The work is then cancelled, and ends at
            // its next safe point rather than in the middle of a step.
            read = stream.read(&mut probe), if !client_left => {
                if !matches!(read, Ok(n) if n > 0) {
                    progress.close();
                    client_left = true;
                }
            }
        }
    };
    while let Ok(report) = progress.try_recv() {
        send(&mut stream, &Line::Progress(report)).await?;
    }
    match outcome {
        Ok(Reply::Value(value)) => send(&mut stream, &Line::Result(value)).await,
        Ok(Reply::Stream(mut other)) => {
            send(&mut stream, &Line::Stream).await?;
            tokio::io::copy_bidirectional(&mut stream, &mut other).await.map(drop)
        }
        Err(error) => send(&mut stream, &Line::Error(error)).await,
    }
}

/// What is asked and by whom, for other commands that want the same VM meanwhile.
fn caller(line: &[u8], uid: u32, pid: Option<i32>) -> String {
    #[derive(serde::Deserialize)]
    struct Named {
        op: String,
    }
    // Anything else is refused by the handler.
    let op = serde_json::from_slice::<Named>(line).map_or_else(|_| "a request".into(), |named| named.op);
    let process = pid.map(|pid| format!(" (process {pid})")).unwrap_or_default();
    format!("{} by user {uid}{process}", op.chars().take(40).collect::<String>())
}

async fn send(stream: &mut UnixStream, line: &Line) -> io::Result<()> {
    let mut bytes = serde_json::to_vec(line)?;
    bytes.push(b'\n');
    stream.write_all(&bytes).await
}
