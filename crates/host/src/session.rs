//! A session's bytes, carried between its client and the VM. Nothing is buffered for long: a side that does not read
//! makes the other one wait; in the guest that is the service that writes, and nothing else.

use std::io;

use machine::session::Session;
use rustix::net::{RecvFlags, recv};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{ReadHalf, WriteHalf};

/// Carries the bytes of a session that was just opened. Returns the client's end.
///
/// # Errors
/// When no socket can be made.
pub(crate) fn spawn(session: Session, vm: String) -> io::Result<UnixStream> {
    let (ours, theirs) = UnixStream::pair()?;
    tokio::spawn(async move {
        let Session { stream, mut guest } = session;
        let ended = carry(stream, ours, guest.left()).await;
        tracing::info!(vm, ended, "a session ended");
    });
    Ok(theirs)
}

/// Runs until either side ends the session, and returns which one did.
async fn carry(mut port: UnixStream, mut client: UnixStream, left: impl Future<Output = ()>) -> &'static str {
    let (mut from_guest, mut to_guest) = port.split();
    let (mut from_client, mut to_client) = client.split();
    tokio::select! {
        _ = to_the_client(&mut from_guest, &mut to_client, left) => "by the guest, or another session",
        _ = tokio::io::copy(&mut from_client, &mut to_guest) => "by the client",
    }
}

/// What the guest sent before it left still arrives.
async fn to_the_client(
    from: &mut ReadHalf<'_>,
    to: &mut WriteHalf<'_>,
    left: impl Future<Output = ()>,
) -> io::Result<()> {
    tokio::pin!(left);
    let mut buffer = [0u8; 16 << 10];
    loop {
        tokio::select! {
            read = from.read(&mut buffer) => match read? {
                0 => return Ok(()),
                read => to.write_all(&buffer[..read]).await?,
            },
            () = &mut left => break,
        }
    }
    // Ask the kernel: the runtime may not have noticed yet that there is something to read.
    while let Ok((read @ 1.., _)) = recv(from.as_ref(), &mut buffer[..], RecvFlags::DONTWAIT) {
        to.write_all(&buffer[..read]).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::future::{pending, ready};

    use tokio::time::{Duration, timeout};

    use super::*;

    async fn rest(stream: &mut UnixStream) -> Vec<u8> {
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).await.unwrap();
        bytes
    }

    #[tokio::test]
    async fn bytes_pass_both_ways_until_one_side_ends_it() {
        let (mut guest, port) = UnixStream::pair().unwrap();
        let (mut user, client) = UnixStream::pair().unwrap();
        let carried = tokio::spawn(carry(port, client, pending()));
        guest.write_all(b"SSH-2.0-guest").await.unwrap();
        user.write_all(b"SSH-2.0-user").await.unwrap();
        let mut seen = [0u8; 13];
        user.read_exact(&mut seen).await.unwrap();
        assert_eq!(&seen, b"SSH-2.0-guest");
        drop(user);
        assert_eq!(rest(&mut guest).await, b"SSH-2.0-user");
        assert_eq!(carried.await.unwrap(), "by the client");
    }

    #[tokio::test]
    async fn a_guests_last_words_arrive() {
        let (mut guest, port) = UnixStream::pair().unwrap();
        let (mut user, client) = UnixStream::pair().unwrap();
        let words = vec![b'x'; 100 << 10];
        guest.write_all(&words).await.unwrap();
        let carried = tokio::spawn(carry(port, client, ready(())));
        assert_eq!(rest(&mut user).await, words);
        assert_eq!(carried.await.unwrap(), "by the guest, or another session");
    }

    #[tokio::test]
    async fn whoever_does_not_read_makes_the_other_wait() {
        let (mut guest, port) = UnixStream::pair().unwrap();
        let (user, client) = UnixStream::pair().unwrap();
        let carried = tokio::spawn(carry(port, client, pending()));
        let flood = async {
            loop {
                guest.write_all(&[b'x'; 64 << 10]).await.unwrap();
            }
        };
        assert!(timeout(Duration::from_secs(1), flood).await.is_err(), "it is kept somewhere");
        drop(user);
        carried.await.unwrap();
    }
}
