//! A VM's serial console: always drained, so that the guest never blocks on it; one reader at a time; a new reader
//! first sees the last screenful.

use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::time::timeout;

const REPLAY: usize = 64 << 10;
/// How long a reader may leave its buffer full before it is disconnected.
const PATIENCE: Duration = Duration::from_secs(2);

/// Handle to the task that owns the console's stream.
pub(crate) struct Console {
    clients: mpsc::Sender<UnixStream>,
}

impl Console {
    /// Takes over the host's end of the VM's serial port.
    #[must_use]
    pub(crate) fn spawn(port: UnixStream) -> Self {
        let (clients, incoming) = mpsc::channel(1);
        tokio::spawn(async move {
            if let Err(e) = drain(port, incoming).await {
                tracing::debug!(error = %e, "a console ended");
            }
        });
        Console { clients }
    }

    /// A new connection to the console; an earlier one ends.
    ///
    /// # Errors
    /// When the VM is gone.
    pub(crate) async fn attach(&self) -> io::Result<UnixStream> {
        let (ours, theirs) = UnixStream::pair()?;
        self.clients.send(ours).await.map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        Ok(theirs)
    }
}

async fn drain(mut port: UnixStream, mut incoming: mpsc::Receiver<UnixStream>) -> io::Result<()> {
    let mut replay: VecDeque<u8> = VecDeque::with_capacity(REPLAY);
    let mut client: Option<UnixStream> = None;
    let mut from_guest = [0u8; 4096];
    let mut from_client = [0u8; 4096];
    loop {
        tokio::select! {
            read = port.read(&mut from_guest) => {
                let read = read?;
                if read == 0 {
                    return Ok(());
                }
                let bytes = &from_guest[..read];
                replay.extend(bytes);
                let excess = replay.len().saturating_sub(REPLAY);
                replay.drain(..excess);
                // A reader that does not read is disconnected: the guest must not wait for it.
                if let Some(stream) = &mut client
                    && !matches!(timeout(PATIENCE, stream.write_all(bytes)).await, Ok(Ok(())))
                {
                    client = None;
                }
            }
            Some(mut stream) = incoming.recv() => {
                let (older, newer) = replay.as_slices();
                let replayed = async {
                    stream.write_all(older).await?;
                    stream.write_all(newer).await
                };
                let shown = matches!(timeout(PATIENCE, replayed).await, Ok(Ok(())));
                client = shown.then_some(stream);
            }
            read = read_from(&mut client, &mut from_client) => match read {
                Ok(read) if read > 0 => port.write_all(&from_client[..read]).await?,
                _ => client = None,
            }
        }
    }
}

async fn read_from(client: &mut Option<UnixStream>, buffer: &mut [u8]) -> io::Result<usize> {
    match client {
        Some(stream) => stream.read(buffer).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn a_late_reader_sees_earlier_output_and_can_answer() {
        let (mut guest, port) = UnixStream::pair().unwrap();
        let console = Console::spawn(port);
        guest.write_all(b"login: ").await.unwrap();
        let mut first = console.attach().await.unwrap();
        let mut seen = [0u8; 7];
        first.read_exact(&mut seen).await.unwrap();
        assert_eq!(&seen, b"login: ");
        first.write_all(b"root\n").await.unwrap();
        let mut typed = [0u8; 5];
        guest.read_exact(&mut typed).await.unwrap();
        assert_eq!(&typed, b"root\n");
        let mut second = console.attach().await.unwrap();
        second.read_exact(&mut seen).await.unwrap();
        assert_eq!(first.read(&mut seen).await.unwrap(), 0, "the first reader was disconnected");
    }

    #[tokio::test]
    async fn a_reader_that_sleeps_is_disconnected() {
        let (mut guest, port) = UnixStream::pair().unwrap();
        let console = Console::spawn(port);
        let asleep = console.attach().await.unwrap();
        for _ in 0..64 {
            guest.write_all(&[b'x'; 64 << 10]).await.unwrap();
        }
        drop(asleep);
        let mut awake = console.attach().await.unwrap();
        awake.read_exact(&mut [0u8; 16]).await.unwrap();
    }

    #[tokio::test]
    async fn a_guest_that_talks_to_nobody_never_blocks() {
        let (mut guest, port) = UnixStream::pair().unwrap();
        let _console = Console::spawn(port);
        for _ in 0..64 {
            guest.write_all(&[b'x'; 64 << 10]).await.unwrap();
        }
    }
}
