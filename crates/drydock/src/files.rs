//! The small files that a command reads and writes: documents, certificates, keys.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use outcome::{Context, Error, Kind, Result};

/// The longest file that is read, in bytes. Documents and keys are small.
const MAX_FILE: u64 = 1 << 20;

/// Reads a file of at most 1 MiB.
///
/// # Errors
/// `NotFound` when it does not exist, `BadInput` when it cannot be read or is longer.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>> {
    durable::read_bounded(path, MAX_FILE).map_err(|e| {
        let kind = if e.kind() == std::io::ErrorKind::NotFound { Kind::NotFound } else { Kind::BadInput };
        Error::new(kind, format!("cannot read {}", path.display()))
            .caused_by(&e)
            .remedy("name an existing, readable file")
    })
}

/// Reads a document that travels to the agent as text; `what` names it where the file is no text.
///
/// # Errors
/// As [`read`], and `BadInput` for what is not UTF-8.
pub(crate) fn read_text(path: &Path, what: &str) -> Result<String> {
    String::from_utf8(read(path)?).context(Kind::BadInput, || format!("{} is not {what}", path.display()))
}

/// Writes a file so that it is complete or does not exist.
///
/// # Errors
/// `Internal` when it cannot be written.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    durable::write_atomic(path, bytes).context(Kind::Internal, || format!("cannot write {}", path.display()))
}

/// Refuses a target that exists; `remedy` says what to do instead.
///
/// # Errors
/// `WrongState` when it exists.
pub(crate) fn must_be_new(path: &Path, remedy: &str) -> Result<()> {
    if path.exists() {
        return Err(Error::new(Kind::WrongState, format!("{} already exists", path.display())).remedy(remedy));
    }
    Ok(())
}

/// Refuses a file with secrets that others may read.
///
/// # Errors
/// `Refused` where its mode lets the group or others in.
pub(crate) fn refuse_open_to_others(path: &Path) -> Result<()> {
    let mode = std::fs::metadata(path).context(Kind::Internal, || format!("cannot read {}", path.display()))?.mode();
    if mode & 0o077 == 0 {
        return Ok(());
    }
    Err(Error::new(
        Kind::Refused,
        format!("{} holds secrets and others may read it (mode {:o})", path.display(), mode & 0o777),
    )
    .remedy(format!("chmod 600 {}", path.display())))
}

/// A path as the agent can follow it, which has another working directory.
///
/// # Errors
/// `BadInput` for an empty path.
pub(crate) fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).context(Kind::BadInput, || format!("'{}' is not a valid path", path.display()))
}

/// The last part of a path: what the file is called where somebody carries it to.
pub(crate) fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
