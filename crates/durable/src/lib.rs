//! Files that survive a crash: written under a temporary name, flushed and renamed, and the directory flushed too.
//!
//! The crates `host`, `recovery` and `drydock` keep their files through it. It knows the error kinds of
//! `outcome` and nothing of what is in the files.

#![warn(missing_docs)]

mod json;

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

pub use json::{parse_json, read_json, read_optional, write_json, write_optional};

/// Writes `bytes` so that after a crash `path` holds either the old content or all of the new one.
/// The file is made 0600 in the open call itself.
///
/// # Errors
/// Whatever the file system answers; the temporary file is removed.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> io::Result<()> {
    fault::write()?;
    let partial = partial_name(path);
    let written = write_new(&partial, bytes).and_then(|()| fs::rename(&partial, path));
    if written.is_err() {
        let _ = fs::remove_file(&partial);
        return written;
    }
    sync_parent(path)
}

fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn partial_name(path: &Path) -> std::path::PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".partial");
    path.with_file_name(name)
}

/// Flushes the directory that holds `path`, so that a rename or a removal in it is durable.
///
/// # Errors
/// Whatever the file system answers.
pub fn sync_parent(path: &Path) -> io::Result<()> {
    fault::write()?;
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => File::open(parent)?.sync_all(),
        _ => File::open(".")?.sync_all(),
    }
}

/// Makes a directory that only its owner can enter; an existing one is left as it is.
///
/// # Errors
/// Whatever the file system answers.
pub fn private_dir(path: &Path) -> io::Result<()> {
    fault::write()?;
    match DirBuilder::new().recursive(true).mode(0o700).create(path) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        other => other,
    }
}

/// Reads a file of at most `limit` bytes; anything larger is an error, not a truncation.
///
/// # Errors
/// `InvalidData` when the file is larger than `limit`, otherwise whatever the file system answers.
pub fn read_bounded(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("larger than the {limit} bytes that such a file may have"),
        ));
    }
    Ok(bytes)
}

/// Removes a file that holds a private key: its bytes are overwritten and flushed before the name is removed.
///
/// On a copy-on-write or log-structured file system the old blocks can outlive this; that is one reason why the
/// key's certificate has a lifetime.
///
/// # Errors
/// Whatever the file system answers; a file that no longer exists is fine.
pub fn destroy_file(path: &Path) -> io::Result<()> {
    fault::write()?;
    let file = match OpenOptions::new().write(true).open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    };
    let length = file.metadata()?.len();
    let mut writer = &file;
    writer.write_all(&vec![0u8; usize::try_from(length).unwrap_or(0)])?;
    file.sync_all()?;
    fs::remove_file(path)?;
    sync_parent(path)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn an_atomic_write_is_private_and_replaces() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        write_atomic(&path, b"one").unwrap();
        write_atomic(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_file_over_the_limit_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        fs::write(&path, [0u8; 11]).unwrap();
        assert!(read_bounded(&path, 10).is_err());
        assert_eq!(read_bounded(&path, 11).unwrap().len(), 11);
    }

    #[test]
    fn a_destroyed_file_leaves_no_bytes_behind_another_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let link = dir.path().join("link");
        fs::write(&path, b"secret").unwrap();
        fs::hard_link(&path, &link).unwrap();
        destroy_file(&path).unwrap();
        assert!(!path.exists());
        assert_eq!(fs::read(&link).unwrap(), [0u8; 6]);
        destroy_file(&path).unwrap();
    }
}
