//! JSON files that a crash never leaves half-written.

use std::fs;
use std::path::Path;

use outcome::{Context, Kind, Next, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The most bytes that such a file may have.
const MAX_JSON: u64 = 256 << 10;

/// Reads a JSON file written by [`write_json`].
///
/// # Errors
/// `BadInput` naming the file and, where serde knows it, the field.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let bytes =
        crate::read_bounded(path, MAX_JSON).context(Kind::BadInput, || format!("cannot read {}", path.display()))?;
    parse_json(path, &bytes)
}

/// Reads the content of such a file; `path` is for messages.
///
/// # Errors
/// `BadInput` naming the file and, where serde knows it, the field.
pub fn parse_json<T: DeserializeOwned>(path: &Path, bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes)
        .context(Kind::BadInput, || format!("{} is damaged", path.display()))
        .or_next(|| "undo the edit, or restore the file from a backup".into())
}

/// Writes a JSON file durably, readable by its owner only.
///
/// # Errors
/// When it cannot be written.
pub fn write_json<T: Serialize + ?Sized>(path: &Path, value: &T) -> Result<()> {
    let mut bytes =
        serde_json::to_vec_pretty(value).context(Kind::Internal, || format!("cannot serialise {}", path.display()))?;
    bytes.push(b'\n');
    crate::write_atomic(path, &bytes).context(Kind::Internal, || format!("cannot write {}", path.display()))
}

/// Reads such a file if it exists.
///
/// # Errors
/// Those of [`read_json`].
pub fn read_optional<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    if path.exists() { read_json(path).map(Some) } else { Ok(None) }
}

/// Writes such a file, or removes it durably where there is no value.
///
/// # Errors
/// When it cannot be written or removed.
pub fn write_optional<T: Serialize + ?Sized>(path: &Path, value: Option<&T>) -> Result<()> {
    match value {
        Some(value) => write_json(path, value),
        None => match fs::remove_file(path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                Err(e).context(Kind::Internal, || format!("cannot remove {}", path.display()))
            }
            _ => crate::sync_parent(path)
                .context(Kind::Internal, || format!("cannot flush the parent of {}", path.display())),
        },
    }
}
