//! The command line's side of the agent's socket. It blocks: a command does one thing.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

use outcome::wire::{Line, Progress};
use outcome::{Context, Error, Kind, Result};

const MAX_LINE: u64 = 16 << 20;

/// Sends one request and waits for its result, passing on progress as it arrives.
///
/// # Errors
/// The agent's error as it sent it, or `Unreachable`.
pub fn call<Q: Serialize, A: DeserializeOwned>(
    socket: &Path,
    request: &Q,
    on_progress: impl FnMut(&Progress),
) -> Result<A> {
    let (line, _) = exchange(socket, request, on_progress)?;
    match line {
        Line::Result(value) => serde_json::from_value(value)
            .context(Kind::Internal, || "the agent's answer does not have the expected fields".into()),
        Line::Error(error) => Err(error),
        Line::Stream | Line::Progress(_) => Err(Error::new(Kind::Internal, "the agent answered with a stream")),
    }
}

/// Asks for a stream; returns the connection and what had already arrived on it.
///
/// # Errors
/// The agent's error as it sent it, or `Unreachable`.
pub fn stream<Q: Serialize>(socket: &Path, request: &Q) -> Result<(UnixStream, Vec<u8>)> {
    match exchange(socket, request, |_| ())? {
        (Line::Stream, reader) => {
            let early = reader.buffer().to_vec();
            Ok((reader.into_inner(), early))
        }
        (Line::Error(error), _) => Err(error),
        _ => Err(Error::new(Kind::Internal, "the agent answered without a stream")),
    }
}

fn exchange<Q: Serialize>(
    socket: &Path,
    request: &Q,
    mut on_progress: impl FnMut(&Progress),
) -> Result<(Line, BufReader<UnixStream>)> {
    let mut stream = UnixStream::connect(socket).map_err(|e| {
        Error::new(Kind::Unreachable, format!("the agent does not answer on {}", socket.display()))
            .caused_by(&e)
            .remedy("start it (`drydock host serve`), or name its socket with --socket")
    })?;
    let gone = |e: std::io::Error| Error::new(Kind::Unreachable, "the agent closed the connection").caused_by(&e);
    let mut bytes =
        serde_json::to_vec(request).context(Kind::Internal, || "the request cannot be serialised".into())?;
    bytes.push(b'\n');
    // An agent that refuses whoever asks does not wait for the question: its answer is there all the same.
    let unsent = stream.write_all(&bytes).err();
    let mut reader = BufReader::new(stream);
    loop {
        let mut line = Vec::new();
        let read = reader.by_ref().take(MAX_LINE).read_until(b'\n', &mut line);
        if line.is_empty()
            && let Some(error) = unsent
        {
            return Err(gone(error));
        }
        read.map_err(gone)?;
        if line.is_empty() {
            return Err(Error::new(Kind::Unreachable, "the agent exited in the middle of the request")
                .remedy("see its log, then run the command again: it resumes where it stopped"));
        }
        let line: Line =
            serde_json::from_slice(&line).context(Kind::Internal, || "the agent's answer cannot be parsed".into())?;
        match line {
            Line::Progress(progress) => on_progress(&progress),
            other => return Ok((other, reader)),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::os::unix::net::UnixListener;

    /// A refused client gets the refusal, whether or not it had sent its request by then.
    #[test]
    fn a_refusal_is_heard_by_whoever_could_not_ask() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("agent.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let rounds = 200;
        let agent = std::thread::spawn(move || {
            for _ in 0..rounds {
                let (mut stream, _) = listener.accept().unwrap();
                let mut line = serde_json::to_vec(&Line::Error(Error::new(Kind::Refused, "not you"))).unwrap();
                line.push(b'\n');
                stream.write_all(&line).unwrap();
            }
        });
        // Larger than a socket's buffer: it cannot be sent to somebody who does not read.
        let questions = ["vm-list".to_owned(), "x".repeat(1 << 20)];
        for n in 0..rounds {
            let (line, _) = exchange(&socket, &questions[n % 2], |_| ()).unwrap();
            assert!(matches!(line, Line::Error(error) if error.kind == Kind::Refused));
        }
        agent.join().unwrap();
    }
}
