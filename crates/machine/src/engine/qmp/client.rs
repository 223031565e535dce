//! A connection to one QEMU.

use std::collections::HashMap;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde_json::{Value, json};
use tokio::io::{AsyncWriteExt, BufReader, Interest};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{broadcast, oneshot};

use super::command::Command;
use super::message::{Answer, Event, Message, read_message};
use crate::error::{Error, Result};

/// Events kept for a slow listener.
const EVENTS: usize = 256;
/// QEMU answers at once; a longer wait means that it hangs.
const ANSWER: Duration = Duration::from_secs(60);

#[derive(Default)]
struct Pending {
    /// No more answers will come.
    closed: bool,
    waiting: HashMap<u64, oneshot::Sender<Answer>>,
}

type SharedPending = Arc<Mutex<Pending>>;

/// A connection to one QEMU.
pub(crate) struct Qmp {
    writer: tokio::sync::Mutex<(OwnedWriteHalf, u64)>,
    pending: SharedPending,
    events: broadcast::Sender<Event>,
    reader: tokio::task::JoinHandle<()>,
}

impl Qmp {
    /// Waits for the greeting and negotiates the capabilities.
    pub(crate) async fn connect(stream: UnixStream) -> Result<Self> {
        let (read, write) = stream.into_split();
        let mut lines = BufReader::new(read);
        match read_message(&mut lines).await?.ok_or(Error::QmpClosed)? {
            Message::Greeting => {}
            _ => return Err(Error::QmpProtocol { reason: "no greeting" }),
        }
        let pending = SharedPending::default();
        let (events, _) = broadcast::channel(EVENTS);
        let reader = tokio::spawn(dispatch(lines, Arc::clone(&pending), events.clone()));
        let qmp = Self { writer: tokio::sync::Mutex::new((write, 0)), pending, events, reader };
        qmp.execute(Command::Capabilities, json!({})).await?;
        Ok(qmp)
    }

    /// Runs one command.
    pub(crate) async fn execute(&self, command: Command, arguments: Value) -> Result<Value> {
        self.execute_with(command, arguments, None).await
    }

    /// Gives QEMU a file for a descriptor set. [`Qmp::release`] closes the set's copy once the file is in use.
    pub(crate) async fn add_fd(&self, set: usize, file: OwnedFd) -> Result<()> {
        let arguments = json!({"fdset-id": set});
        self.execute_with(Command::AddFd, arguments, Some(file)).await.map(drop)
    }

    /// Gives QEMU a descriptor, which it knows by `name` until a command consumes it.
    pub(crate) async fn get_fd(&self, name: &str, descriptor: OwnedFd) -> Result<()> {
        let arguments = json!({"fdname": name});
        self.execute_with(Command::GetFd, arguments, Some(descriptor)).await.map(drop)
    }

    /// Closes what a descriptor set itself keeps open, so that a block node that is deleted closes its image and drops
    /// the locks on it.
    pub(crate) async fn release(&self, set: usize) -> Result<()> {
        self.execute(Command::RemoveFd, json!({"fdset-id": set})).await.map(drop)
    }

    /// Runs one command. The descriptor travels with its first byte.
    async fn execute_with(&self, command: Command, arguments: Value, descriptor: Option<OwnedFd>) -> Result<Value> {
        let (sender, receiver) = oneshot::channel();
        {
            let mut guard = self.writer.lock().await;
            let (writer, last_id) = &mut *guard;
            *last_id += 1;
            {
                let mut pending = lock(&self.pending);
                if pending.closed {
                    return Err(Error::QmpClosed);
                }
                pending.waiting.insert(*last_id, sender);
            }
            let mut line = json!({
                "execute": command.name(), "arguments": arguments, "id": *last_id,
            })
            .to_string();
            line.push('\n');
            let sent = match descriptor {
                None => 0,
                Some(descriptor) => {
                    send_with(writer, line.as_bytes(), &descriptor).await.map_err(|_| Error::QmpClosed)?
                }
            };
            let rest = line.as_bytes().get(sent..).unwrap_or_default();
            writer.write_all(rest).await.map_err(|_| Error::QmpClosed)?;
        }
        match tokio::time::timeout(ANSWER, receiver).await {
            Err(_) => Err(Error::Deadline { what: command.name(), seconds: ANSWER.as_secs() }),
            Ok(Err(_)) => Err(Error::QmpClosed),
            Ok(Ok(Ok(value))) => Ok(value),
            Ok(Ok(Err(refusal))) => Err(Error::Qmp {
                command: command.name(),
                description: format!("{} ({})", refusal.desc, refusal.class),
            }),
        }
    }

    /// Events from now on.
    pub(crate) fn events(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }
}

impl Drop for Qmp {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

/// Sends the descriptor with the beginning of `bytes`, and returns how many bytes were sent.
async fn send_with(writer: &OwnedWriteHalf, bytes: &[u8], descriptor: &OwnedFd) -> std::io::Result<usize> {
    let socket: &UnixStream = writer.as_ref();
    let descriptors = [descriptor.as_fd()];
    socket
        .async_io(Interest::WRITABLE, || {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if !control.push(SendAncillaryMessage::ScmRights(&descriptors)) {
                return Err(std::io::ErrorKind::InvalidInput.into());
            }
            let sent = sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?;
            Ok(sent)
        })
        .await
}

fn lock(pending: &SharedPending) -> std::sync::MutexGuard<'_, Pending> {
    pending.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn dispatch(mut lines: BufReader<OwnedReadHalf>, pending: SharedPending, events: broadcast::Sender<Event>) {
    loop {
        match read_message(&mut lines).await {
            Ok(Some(message)) => deliver(message, &pending, &events),
            Ok(None) => break,
            Err(error) => {
                tracing::warn!(%error, "QEMU's control channel failed");
                break;
            }
        }
    }
    let mut pending = lock(&pending);
    pending.closed = true;
    pending.waiting.clear();
}

fn deliver(message: Message, pending: &SharedPending, events: &broadcast::Sender<Event>) {
    match message {
        Message::Event(event) => {
            tracing::debug!(event = event.name, "QEMU");
            // An error means that nobody listens.
            let _ = events.send(event);
        }
        Message::Answer { id, answer } => {
            if let Some(sender) = lock(pending).waiting.remove(&id) {
                // An error means that the caller no longer waits.
                let _ = sender.send(answer);
            }
        }
        Message::Greeting | Message::Stray => tracing::warn!("QEMU sent a message that answers no command"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use tokio::io::AsyncBufReadExt;

    use super::*;

    async fn server(answers: &'static [&'static str]) -> Result<Qmp> {
        let (ours, theirs) = UnixStream::pair().unwrap();
        tokio::spawn(async move {
            let (read, mut write) = theirs.into_split();
            let mut lines = BufReader::new(read).lines();
            for answer in answers {
                write.write_all(answer.as_bytes()).await.unwrap();
                if answer.contains("event") {
                    continue;
                }
                if lines.next_line().await.unwrap().is_none() {
                    return;
                }
            }
        });
        Qmp::connect(ours).await
    }

    #[tokio::test]
    async fn commands_events_and_refusals() {
        let qmp = server(&[
            "{\"QMP\":{}}\n",
            "{\"return\":{},\"id\":1}\n",
            "{\"event\":\"STOP\",\"data\":{}}\n{\"return\":{\"status\":\"running\"},\"id\":2}\n",
            "{\"return\":{\"status\":\"running\"},\"id\":2}\n",
            "{\"error\":{\"class\":\"GenericError\",\"desc\":\"no\"},\"id\":3}\n",
        ])
        .await
        .unwrap();
        let mut events = qmp.events();
        let status = qmp.execute(Command::QueryStatus, json!({})).await.unwrap();
        assert_eq!(status["status"], "running");
        assert_eq!(events.recv().await.unwrap().name, "STOP");
        let error = qmp.execute(Command::QueryStatus, json!({})).await.unwrap_err();
        assert!(error.to_string().contains("no (GenericError)"), "{error}");
        let error = qmp.execute(Command::QueryStatus, json!({})).await.unwrap_err();
        assert!(matches!(error, Error::QmpClosed));
    }

    #[tokio::test]
    async fn what_is_not_qmp_is_refused() {
        for hostile in ["hello\n", "{}\n", "{\"QMP\":", "\u{0}\n", "[]\n"] {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            theirs.write_all(hostile.as_bytes()).await.unwrap();
            drop(theirs);
            assert!(Qmp::connect(ours).await.is_err(), "{hostile}");
        }
    }
}
