//! A small QMP client. The commands it can send are the ones listed here: the connection is the
//! only monitor a VM has, so this list is what anyone can ask of its QEMU.
//!
//! Protocol: docs/interop/qmp-spec.rst in QEMU's sources.

use std::collections::HashMap;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Interest};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{broadcast, oneshot};

use crate::{Error, Result};

const MAX_LINE: u64 = 16 << 20;
/// Events kept for a slow listener.
const EVENTS: usize = 256;
/// QEMU answers at once; longer means that it hangs.
const ANSWER: Duration = Duration::from_secs(60);

/// What can be asked of a VM's QEMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    Capabilities,
    QueryStatus,
    QueryKvm,
    QueryVersion,
    QueryNamedBlockNodes,
    QueryBlockExports,
    QomList,
    QueryChardev,
    SystemPowerdown,
    AddFd,
    RemoveFd,
    GetFd,
    BlockdevAdd,
    BlockdevDel,
    DeviceAdd,
    DeviceDel,
    ChardevAdd,
    ChardevRemove,
    NbdServerStart,
    NbdServerStop,
    BlockExportAdd,
    BlockCommit,
    BlockJobComplete,
    QueryBlockJobs,
    Stop,
    Cont,
    BlockdevMirror,
    BlockJobCancel,
    MigrateSetCapabilities,
    Migrate,
    MigrateIncoming,
    MigrateContinue,
    MigrateCancel,
    QueryMigrate,
}

impl Command {
    fn name(self) -> &'static str {
        match self {
            Self::Capabilities => "qmp_capabilities",
            Self::QueryKvm => "query-kvm",
            Self::QueryVersion => "query-version",
            Self::QueryNamedBlockNodes => "query-named-block-nodes",
            Self::QueryBlockExports => "query-block-exports",
            Self::QomList => "qom-list",
            Self::QueryStatus => "query-status",
            Self::QueryChardev => "query-chardev",
            Self::SystemPowerdown => "system_powerdown",
            Self::AddFd => "add-fd",
            Self::RemoveFd => "remove-fd",
            Self::GetFd => "getfd",
            Self::BlockdevAdd => "blockdev-add",
            Self::BlockdevDel => "blockdev-del",
            Self::DeviceAdd => "device_add",
            Self::DeviceDel => "device_del",
            Self::ChardevAdd => "chardev-add",
            Self::ChardevRemove => "chardev-remove",
            Self::NbdServerStart => "nbd-server-start",
            Self::NbdServerStop => "nbd-server-stop",
            Self::BlockExportAdd => "block-export-add",
            Self::BlockCommit => "block-commit",
            Self::BlockJobComplete => "block-job-complete",
            Self::QueryBlockJobs => "query-block-jobs",
            Self::Stop => "stop",
            Self::Cont => "cont",
            Self::BlockdevMirror => "blockdev-mirror",
            Self::BlockJobCancel => "block-job-cancel",
            Self::MigrateSetCapabilities => "migrate-set-capabilities",
            Self::Migrate => "migrate",
            Self::MigrateIncoming => "migrate-incoming",
            Self::MigrateContinue => "migrate-continue",
            Self::MigrateCancel => "migrate_cancel",
            Self::QueryMigrate => "query-migrate",
        }
    }
}

/// Something that happened in the VM.
#[derive(Clone, Debug)]
pub(crate) struct Event {
    pub(crate) name: String,
    pub(crate) data: Value,
}

#[derive(Deserialize)]
struct Refusal {
    class: String,
    desc: String,
}

type Answer = std::result::Result<Value, Refusal>;

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
    /// Waits for the greeting and negotiates.
    pub(crate) async fn connect(stream: UnixStream) -> Result<Self> {
        let (read, write) = stream.into_split();
        let mut lines = BufReader::new(read);
        let greeting = read_message(&mut lines).await?.ok_or(Error::QmpClosed)?;
        if greeting.get("QMP").is_none() {
            return Err(Error::QmpProtocol { reason: "no greeting" });
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

    /// Gives QEMU a file for a descriptor set. [`Qmp::release`] takes it back once it is in use.
    pub(crate) async fn add_fd(&self, set: usize, file: OwnedFd) -> Result<()> {
        let arguments = json!({"fdset-id": set});
        self.execute_with(Command::AddFd, arguments, Some(file)).await.map(drop)
    }

    /// Gives QEMU a descriptor, which it knows by `name` until a command uses it up.
    pub(crate) async fn get_fd(&self, name: &str, descriptor: OwnedFd) -> Result<()> {
        let arguments = json!({"fdname": name});
        self.execute_with(Command::GetFd, arguments, Some(descriptor)).await.map(drop)
    }

    /// Closes what a descriptor set keeps open beside the block nodes that use it: a node that is gone then leaves
    /// its image, and the locks on it.
    pub(crate) async fn release(&self, set: usize) -> Result<()> {
        self.execute(Command::RemoveFd, json!({"fdset-id": set})).await.map(drop)
    }

    /// Runs one command. The descriptor travels along with its first byte.
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

/// How much of `bytes` was sent, with the descriptor.
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
                tracing::warn!(%error, "QEMU's control channel");
                break;
            }
        }
    }
    let mut pending = lock(&pending);
    pending.closed = true;
    pending.waiting.clear();
}

fn deliver(mut message: Value, pending: &SharedPending, events: &broadcast::Sender<Event>) {
    if let Some(name) = message.get("event").and_then(Value::as_str) {
        let event = Event { name: name.to_owned(), data: message.get("data").cloned().unwrap_or_default() };
        tracing::debug!(event = event.name, "QEMU");
        // nobody listening is fine
        let _ = events.send(event);
        return;
    }
    let Some(id) = message.get("id").and_then(Value::as_u64) else {
        tracing::warn!("QEMU sent an answer to nothing");
        return;
    };
    let answer = match message.get_mut("return").map(Value::take) {
        Some(value) => Ok(value),
        None => Err(message
            .get_mut("error")
            .map(Value::take)
            .and_then(|e| serde_json::from_value(e).ok())
            .unwrap_or_else(|| Refusal { class: "unknown".into(), desc: "neither a result nor an error".into() })),
    };
    if let Some(sender) = lock(pending).waiting.remove(&id) {
        // the asker may have given up
        let _ = sender.send(answer);
    }
}

/// One line of JSON; None at the end.
async fn read_message(lines: &mut BufReader<OwnedReadHalf>) -> Result<Option<Value>> {
    let mut line = Vec::new();
    let n = lines.take(MAX_LINE).read_until(b'\n', &mut line).await.map_err(|_| Error::QmpClosed)?;
    if n == 0 {
        return Ok(None);
    }
    if line.last() != Some(&b'\n') {
        return Err(Error::QmpProtocol { reason: "a line is cut off or too long" });
    }
    serde_json::from_slice(&line).map(Some).map_err(|_| Error::QmpProtocol { reason: "a line is not JSON" })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
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
