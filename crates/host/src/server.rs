//! The unix socket: who may connect, one request per connection, progress, and consoles as raw streams.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

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

/// How long a client may take to send its request.
const REQUEST: Duration = Duration::from_secs(30);
/// How long an answer may wait for a client that does not read it, once the agent is to stop.
const LAST_ANSWER: Duration = Duration::from_secs(2);
/// Before the next attempt to accept a connection: out of file descriptors, most likely.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// Serves until `shutdown` resolves, then waits for running calls to end, and for nothing else: a client that has sent
/// no request, does not read its answer, or has a console open does not delay the agent. `ready` is called once clients
/// can connect.
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
    let (stop, stopping) = watch::channel(false);
    tokio::pin!(shutdown);
    loop {
        tokio::select! {
            () = &mut shutdown => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    let (handler, stopping) = (Arc::clone(&handler), stopping.clone());
                    calls.spawn(async move {
                        if let Err(e) = connection(stream, &*handler, stopping).await {
                            tracing::debug!(error = %e, "a client went away");
                        }
                    });
                }
                Err(e) => {
                    tracing::warn!(error = %e, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_AGAIN).await;
                }
            },
            Some(_) = calls.join_next(), if !calls.is_empty() => {}
        }
    }
    let _ = std::fs::remove_file(socket);
    drop(listener);
    let _ = stop.send(true);
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

async fn connection<H: RequestHandler>(
    mut stream: UnixStream,
    handler: &H,
    stopping: watch::Receiver<bool>,
) -> io::Result<()> {
    let peer = stream.peer_cred()?;
    let me = rustix::process::geteuid().as_raw();
    if peer.uid() != me && peer.uid() != 0 {
        let refused = Error::new(Kind::Refused, format!("user {} may not talk to this agent", peer.uid()))
            .remedy("run the command as root, or with sudo");
        return send(&mut stream, &Line::Error(refused)).await;
    }
    let line = tokio::select! {
        line = timeout(REQUEST, read_request(&mut stream)) => line??,
        () = stopped(stopping.clone()) => return Ok(()),
    };
    if line.last() != Some(&b'\n') {
        let refused = Error::new(Kind::BadInput, format!("the request is not one line of at most {MAX_REQUEST} bytes"));
        return send(&mut stream, &Line::Error(refused)).await;
    }
    let caller = caller(&line, peer.uid(), peer.pid());
    let outcome = in_the_name_of(caller, answer(&mut stream, handler, &line, stopping.clone())).await;
    let last = match outcome {
        Ok(Reply::Value(value)) => Line::Result(value),
        Ok(Reply::Stream(mut other)) => {
            send(&mut stream, &Line::Stream).await?;
            return tokio::select! {
                carried = tokio::io::copy_bidirectional(&mut stream, &mut other) => carried.map(drop),
                () = stopped(stopping) => Ok(()),
            };
        }
        Err(error) => Line::Error(error),
    };
    tokio::select! {
        sent = send(&mut stream, &last) => sent,
        () = late(stopping) => Err(io::ErrorKind::TimedOut.into()),
    }
}

async fn read_request(stream: &mut UnixStream) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    BufReader::new(stream.take(MAX_REQUEST)).read_until(b'\n', &mut line).await?;
    Ok(line)
}

/// Runs a call to its end, reporting its progress to the client for as long as that stays.
async fn answer<H: RequestHandler>(
    stream: &mut UnixStream,
    handler: &H,
    line: &[u8],
    stopping: watch::Receiver<bool>,
) -> Result<Reply> {
    let (sender, mut progress) = mpsc::channel(64);
    let call = handler.call(line, Events::new(sender));
    tokio::pin!(call);
    let (mut from_client, mut to_client) = stream.split();
    let mut probe = [0u8; 1];
    // Reports go out beside the work: a client that does not read them must not hold it up.
    let mut report = Vec::new();
    let mut client_left = false;
    let outcome = loop {
        tokio::select! {
            outcome = &mut call => break outcome,
            Some(next) = progress.recv(), if report.is_empty() && !client_left => {
                report = encode(&Line::Progress(next)).unwrap_or_default();
            }
            written = to_client.write(&report), if !report.is_empty() => match written {
                Ok(count) if count > 0 => {
                    report.drain(..count);
                }
                _ => {
                    report.clear();
                    progress.close();
                    client_left = true;
                }
            },
            // The client sends nothing more; end of file means that it left. The work is then cancelled, and ends at
            // its next safe point rather than in the middle of a step.
            read = from_client.read(&mut probe), if !client_left => {
                if !matches!(read, Ok(n) if n > 0) {
                    progress.close();
                    client_left = true;
                }
            }
        }
    };
    let rest = async {
        to_client.write_all(&report).await?;
        while let Ok(next) = progress.try_recv() {
            to_client.write_all(&encode(&Line::Progress(next))?).await?;
        }
        io::Result::Ok(())
    };
    tokio::select! {
        // A client that has left needs no reports; that it has is noticed at the answer too.
        _ = rest => {}
        () = late(stopping) => {}
    }
    outcome
}

/// Resolves once the agent is to stop.
async fn stopped(mut stopping: watch::Receiver<bool>) {
    // The sender is dropped only after that.
    let _ = stopping.wait_for(|stop| *stop).await;
}

/// The same, and a little later: for an answer on its way.
async fn late(stopping: watch::Receiver<bool>) {
    stopped(stopping).await;
    tokio::time::sleep(LAST_ANSWER).await;
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
    stream.write_all(&encode(line)?).await
}

fn encode(line: &Line) -> io::Result<Vec<u8>> {
    let mut bytes = serde_json::to_vec(line)?;
    bytes.push(b'\n');
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::Instant;

    use serde_json::json;
    use tokio::sync::{Notify, oneshot};

    use super::*;

    /// Answers `work` when it is told to, floods `talk` with progress until its client leaves, and has one stream.
    #[derive(Default)]
    struct Handler {
        begun: Notify,
        end: Notify,
    }

    impl RequestHandler for Handler {
        async fn call(&self, line: &[u8], events: Events) -> Result<Reply> {
            match line {
                b"stream\n" => {
                    let (ours, theirs) = UnixStream::pair().unwrap();
                    tokio::spawn(async move {
                        let _held = ours;
                        std::future::pending::<()>().await;
                    });
                    return Ok(Reply::Stream(theirs));
                }
                b"talk\n" => {
                    for _ in 0..10_000 {
                        events.say("talk", "x".repeat(1000));
                        tokio::task::yield_now().await;
                    }
                }
                _ => {}
            }
            self.begun.notify_one();
            self.end.notified().await;
            Ok(Reply::Value(json!("done")))
        }
    }

    struct Agent {
        handler: Arc<Handler>,
        stop: oneshot::Sender<()>,
        served: tokio::task::JoinHandle<Result<()>>,
        socket: std::path::PathBuf,
        _dir: tempfile::TempDir,
    }

    async fn agent() -> Agent {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("run/agent.sock");
        let (ready, is_ready) = oneshot::channel();
        let (stop, stopped) = oneshot::channel::<()>();
        let handler = Arc::new(Handler::default());
        let (path, serving) = (socket.clone(), Arc::clone(&handler));
        let served = tokio::spawn(async move {
            serve(&path, serving, || ready.send(()).unwrap(), async { stopped.await.unwrap() }).await
        });
        is_ready.await.unwrap();
        Agent { handler, stop, served, socket, _dir: dir }
    }

    async fn connect(agent: &Agent, request: &[u8]) -> UnixStream {
        let mut client = UnixStream::connect(&agent.socket).await.unwrap();
        client.write_all(request).await.unwrap();
        client
    }

    #[tokio::test]
    async fn no_client_delays_the_end_but_a_call_that_runs() {
        let agent = agent().await;
        let idle = connect(&agent, b"").await;
        let half = connect(&agent, b"{\"op\":").await;
        let mut console = connect(&agent, b"stream\n").await;
        console.read_exact(&mut [0; 1]).await.unwrap();
        let mut working = connect(&agent, b"work\n").await;
        agent.handler.begun.notified().await;

        let since = Instant::now();
        agent.stop.send(()).unwrap();
        // The others are let go at once, while the call goes on.
        for mut gone in [idle, half, console] {
            gone.read_to_end(&mut Vec::new()).await.unwrap();
        }
        assert!(!agent.served.is_finished());
        agent.handler.end.notify_one();
        agent.served.await.unwrap().unwrap();
        assert!(since.elapsed() < Duration::from_secs(20), "{:?}", since.elapsed());
        let mut answer = String::new();
        working.read_to_string(&mut answer).await.unwrap();
        assert!(answer.contains("done"), "{answer}");
    }

    #[tokio::test]
    async fn a_client_that_reads_nothing_holds_up_neither_the_work_nor_the_end() {
        let agent = agent().await;
        let deaf = connect(&agent, b"talk\n").await;
        // More than a socket buffers has been said, and the work has come past it.
        timeout(Duration::from_secs(60), agent.handler.begun.notified()).await.unwrap();
        agent.stop.send(()).unwrap();
        agent.handler.end.notify_one();
        timeout(Duration::from_secs(60), agent.served).await.unwrap().unwrap().unwrap();
        drop(deaf);
    }
}
