//! SHA-256 as a value: 64 lower-case hexadecimal digits in text and JSON.

use std::fmt;
use std::io;
use std::str::FromStr;

use aws_lc_rs::digest::{Context, SHA256};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::blocks::Blocks;
use crate::progress::{Cancel, Progress};

/// Bytes read at once while hashing a disk.
const CHUNK: usize = 1 << 20;

/// A SHA-256 digest. Not a secret: comparison is not constant-time.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digest([u8; 32]);

/// The text is not 64 lower-case hexadecimal digits.
#[derive(Debug, thiserror::Error)]
#[error("a SHA-256 digest is written as 64 lower-case hexadecimal digits")]
pub struct BadDigest;

impl Digest {
    /// The digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self::of_parts(&[bytes])
    }

    /// The digest of the concatenated parts.
    pub fn of_parts(parts: &[&[u8]]) -> Self {
        let mut context = Context::new(&SHA256);
        for part in parts {
            context.update(part);
        }
        Self::finish(context)
    }

    /// The raw 32 bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    fn finish(context: Context) -> Self {
        let mut out = [0u8; 32];
        // SHA-256 gives 32 bytes by definition.
        out.copy_from_slice(context.finish().as_ref());
        Self(out)
    }
}

impl From<[u8; 32]> for Digest {
    fn from(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({self})")
    }
}

impl FromStr for Digest {
    type Err = BadDigest;

    fn from_str(text: &str) -> Result<Self, BadDigest> {
        fn nibble(byte: u8) -> Result<u8, BadDigest> {
            match byte {
                b'0'..=b'9' => Ok(byte - b'0'),
                b'a'..=b'f' => Ok(byte - b'a' + 10),
                _ => Err(BadDigest),
            }
        }
        if text.len() != 64 {
            return Err(BadDigest);
        }
        let mut out = [0u8; 32];
        for (slot, pair) in out.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            *slot = nibble(pair[0])? << 4 | nibble(pair[1])?;
        }
        Ok(Self(out))
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Hashes all of `blocks` in constant memory, and passes each piece with its offset to `each`. `None` when cancelled.
///
/// # Errors
/// What `blocks` or `each` returns.
pub fn of_blocks(
    blocks: &mut dyn Blocks,
    progress: &dyn Fn(Progress),
    cancel: &Cancel,
    each: &mut dyn FnMut(u64, &[u8]) -> io::Result<()>,
) -> io::Result<Option<Digest>> {
    let total = blocks.size();
    let mut context = Context::new(&SHA256);
    let mut buffer = vec![0u8; CHUNK];
    let mut bytes = 0u64;
    progress(Progress { bytes, total });
    while bytes < total {
        if cancel.is_cancelled() {
            return Ok(None);
        }
        let step = (total - bytes).min(CHUNK as u64);
        // step <= CHUNK, so it fits a usize.
        let piece = &mut buffer[..step as usize];
        blocks.read_at(bytes, piece)?;
        context.update(piece);
        each(bytes, piece)?;
        bytes += step;
        progress(Progress { bytes, total });
    }
    Ok(Some(Digest::finish(context)))
}
