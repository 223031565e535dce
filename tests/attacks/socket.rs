//! The agent's socket without `drydock`: whatever bytes the attacker likes.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, Result};
use drydock_tests::world::World;
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(120);
/// More than any answer has.
const MOST: u64 = 1 << 20;

/// Sends bytes and reads until the agent has said its last word.
pub(crate) fn send(world: &World, bytes: &[u8]) -> Result<Vec<Value>> {
    let mut stream = UnixStream::connect(world.socket())?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(bytes)?;
    let mut said = Vec::new();
    stream.take(MOST).read_to_end(&mut said).context("the agent's answer has no end")?;
    lines(&said)
}

/// The same for a request that may become a stream: hangs up after the first answer.
pub(crate) fn first_answer(world: &World, request: &Value) -> Result<Value> {
    let mut stream = UnixStream::connect(world.socket())?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(format!("{request}\n").as_bytes())?;
    let mut said = Vec::new();
    let mut byte = [0];
    while stream.read(&mut byte)? == 1 && byte != *b"\n" {
        said.push(byte[0]);
    }
    stream.shutdown(Shutdown::Both)?;
    lines(&said)?.into_iter().next().context("no answer")
}

fn lines(said: &[u8]) -> Result<Vec<Value>> {
    let text = std::str::from_utf8(said).context("the agent says something else than text")?;
    text.lines().map(|line| serde_json::from_str(line).with_context(|| format!("not JSON: {line}"))).collect()
}
