//! What QEMU sends: one JSON object a line (docs/interop/qmp-spec.rst in QEMU's sources, Protocol Specification).

use serde::Deserialize;
use serde_json::Value;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt};

use crate::error::{Error, Result};

/// Longest line that is read, in bytes.
pub const MAX_LINE: u64 = 16 << 20;

/// One message from QEMU.
#[derive(Clone, Debug, PartialEq)]
pub enum Message {
    /// The first message: QEMU's version and capabilities, which nothing here depends on.
    Greeting,
    /// Something happened in the VM.
    Event(Event),
    /// The answer to the command with this id.
    Answer {
        /// The id that the command was sent with.
        id: u64,
        /// What QEMU returned.
        answer: Answer,
    },
    /// An object that is none of these.
    Stray,
}

/// Something that happened in the VM.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// For example `SHUTDOWN`.
    pub name: String,
    /// Null when the event has none.
    pub data: Value,
}

/// Why QEMU refused a command.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Refusal {
    /// QEMU's name for the kind of error.
    pub class: String,
    /// For people.
    pub desc: String,
}

/// What a command returned, or why QEMU refused it.
pub type Answer = std::result::Result<Value, Refusal>;

impl Message {
    /// Reads one line.
    ///
    /// # Errors
    /// [`Error::QmpProtocol`] for a line that is not JSON.
    pub fn parse(line: &[u8]) -> Result<Self> {
        let mut message: Value =
            serde_json::from_slice(line).map_err(|_| Error::QmpProtocol { reason: "a line is not JSON" })?;
        if message.get("QMP").is_some() {
            return Ok(Self::Greeting);
        }
        if let Some(name) = message.get("event").and_then(Value::as_str) {
            let name = name.to_owned();
            let data = message.get_mut("data").map(Value::take).unwrap_or_default();
            return Ok(Self::Event(Event { name, data }));
        }
        let Some(id) = message.get("id").and_then(Value::as_u64) else {
            return Ok(Self::Stray);
        };
        let answer = match message.get_mut("return").map(Value::take) {
            Some(value) => Ok(value),
            None => Err(message
                .get_mut("error")
                .map(Value::take)
                .and_then(|error| serde_json::from_value(error).ok())
                .unwrap_or_else(|| Refusal { class: "unknown".into(), desc: "neither a result nor an error".into() })),
        };
        Ok(Self::Answer { id, answer })
    }
}

/// Reads the next message; None at the end of the stream.
///
/// # Errors
/// [`Error::QmpProtocol`] for a line that is truncated, longer than [`MAX_LINE`], or not JSON; [`Error::QmpClosed`] when
/// the stream fails.
pub async fn read_message(lines: &mut (impl AsyncBufRead + Unpin)) -> Result<Option<Message>> {
    let mut line = Vec::new();
    let n = lines.take(MAX_LINE).read_until(b'\n', &mut line).await.map_err(|_| Error::QmpClosed)?;
    if n == 0 {
        return Ok(None);
    }
    if line.last() != Some(&b'\n') {
        return Err(Error::QmpProtocol { reason: "a line is truncated or too long" });
    }
    Message::parse(&line).map(Some)
}
