//! The messages that two agents exchange: a length of four bytes, big-endian, then that much JSON.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use uuid::Uuid;

use super::offer::Offer;
use outcome::{Context, Error, Kind, Result};

/// The most bytes of an offer, which carries a key protector of at most 1 MiB and a sealed record of at most 64 KiB.
const MAX_OFFER: u32 = 2 << 20;
/// The most bytes of any other message.
const MAX_MESSAGE: u32 = 64 << 10;

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) enum Purpose {
    /// The messages of the migration itself.
    Control,
    /// NBD, to write a disk.
    Disk(usize),
    /// QEMU's stream.
    Memory,
    /// To ask again how the migration ended.
    Outcome,
}

/// The first message, from the source.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) enum Hello {
    Offer(Box<Offer>),
    /// One more connection of a migration that was offered.
    Join {
        migration: Uuid,
        purpose: Purpose,
    },
}

/// Every later message, from either side.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) enum Message {
    /// HMAC-SHA256; see [`super::channel`].
    Proof([u8; 32]),
    /// The destination is ready for the disks and the memory, or for the one that this connection is for.
    Ready,
    /// The destination has everything; its guest is paused.
    Loaded,
    /// The source's guest will not resume.
    Run,
    /// The destination's guest resumed, and the VM is complete there.
    Running,
    /// The destination's guest does not run and never will.
    Refused(Error),
}

pub(super) async fn send<T: Serialize>(to: &mut (impl AsyncWrite + Unpin), message: &T) -> Result<()> {
    let body = serde_json::to_vec(message).context(Kind::Internal, || "a message cannot be written".into())?;
    let length = u32::try_from(body.len())
        .ok()
        .filter(|length| *length <= MAX_OFFER)
        .ok_or_else(|| Error::new(Kind::Internal, "a message is too long"))?;
    let mut frame = length.to_be_bytes().to_vec();
    frame.extend_from_slice(&body);
    let sent = async {
        to.write_all(&frame).await?;
        to.flush().await
    };
    sent.await.context(Kind::Unreachable, || "the other host disconnected".into())
}

pub(super) async fn receive(from: &mut (impl AsyncRead + Unpin)) -> Result<Message> {
    receive_up_to(from, MAX_MESSAGE).await
}

pub(super) async fn receive_hello(from: &mut (impl AsyncRead + Unpin)) -> Result<Hello> {
    receive_up_to(from, MAX_OFFER).await
}

async fn receive_up_to<T: DeserializeOwned>(from: &mut (impl AsyncRead + Unpin), limit: u32) -> Result<T> {
    let gone = || "the other host disconnected".to_owned();
    let length = from.read_u32().await.context(Kind::Unreachable, gone)?;
    if length > limit {
        return Err(Error::new(Kind::BadInput, format!("the other host sent a message of {length} bytes")));
    }
    // Grows with what arrives, not with the announced length.
    let mut body = Vec::new();
    from.take(length.into()).read_to_end(&mut body).await.context(Kind::Unreachable, gone)?;
    if body.len() as u64 != u64::from(length) {
        return Err(Error::new(Kind::Unreachable, gone()));
    }
    parse(&body)
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T> {
    serde_json::from_slice(body)
        .context(Kind::BadInput, || "the other host sent something that is not a message of a migration".into())
        .map_err(|error| error.remedy("run the same version of drydock on both hosts"))
}

/// Parses a first or a later message of another host, and writes it as this one would.
///
/// # Errors
/// `BadInput` for anything else.
pub fn respell(body: &[u8]) -> Result<Vec<u8>> {
    let written = match parse::<Hello>(body) {
        Ok(hello) => serde_json::to_vec(&hello),
        Err(_) => serde_json::to_vec(&parse::<Message>(body)?),
    };
    written.context(Kind::Internal, || "a message cannot be written".into())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn messages_arrive_and_others_are_refused() {
        let mut wire = Vec::new();
        send(&mut wire, &Message::Proof([7; 32])).await.unwrap();
        assert!(matches!(receive(&mut wire.as_slice()).await.unwrap(), Message::Proof([7, ..])));
        let refused = async |bytes: &[u8]| receive(&mut &*bytes).await.unwrap_err().kind;
        assert_eq!(refused(&wire[..wire.len() - 1]).await, Kind::Unreachable);
        assert_eq!(refused(b"").await, Kind::Unreachable);
        assert_eq!(refused(&[0xff; 64]).await, Kind::BadInput);
        assert_eq!(refused(b"\0\0\0\x02{}").await, Kind::BadInput);
        assert_eq!(refused(b"\0\0\0\x07\"Ready\"").await, Kind::BadInput);
        assert_eq!(refused(b"\0\0\0\x0d{\"proof\":[1]}").await, Kind::BadInput);
        assert_eq!(refused(&(MAX_MESSAGE + 1).to_be_bytes()).await, Kind::BadInput);
    }

    #[tokio::test]
    async fn an_announced_length_alone_takes_no_memory() {
        let (mut near, far) = tokio::io::duplex(64);
        near.write_u32(MAX_OFFER).await.unwrap();
        near.write_all(b"{").await.unwrap();
        drop(near);
        let mut far = far;
        assert!(matches!(receive_hello(&mut far).await, Err(error) if error.kind == Kind::Unreachable));
    }
}
