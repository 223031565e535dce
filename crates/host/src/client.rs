//! The command line's side of the agent's socket. Blocking: a command does one thing.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Context, Error, Kind, Result};
use crate::wire::{Line, Progress};

const MAX_LINE: u64 = 16 << 20;

/// Sends one request and waits for its result, handing on progress as it comes.
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
        Line::Result(value) => {
            serde_json::from_value(value).context(Kind::Internal, || "the agent's answer has another shape".into())
        }
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
    stream.write_all(&bytes).map_err(gone)?;
    let mut reader = BufReader::new(stream);
    loop {
        let mut line = Vec::new();
        reader.by_ref().take(MAX_LINE).read_until(b'\n', &mut line).map_err(gone)?;
        if line.is_empty() {
            return Err(Error::new(Kind::Unreachable, "the agent ended in the middle of the request")
                .remedy("see its log; run the command again: it goes on where it was"));
        }
        let line: Line =
            serde_json::from_slice(&line).context(Kind::Internal, || "the agent's answer is not understood".into())?;
        match line {
            Line::Progress(progress) => on_progress(&progress),
            other => return Ok((other, reader)),
        }
    }
}
