//! The files of a service: secrets are private from the open call on, and a half-made service never looks complete.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use crate::error::{Error, Result};

/// In bytes; far above any of the service's files.
const MAX_FILE: u64 = 256 << 10;

/// Creates a directory of mode 0700 next to `dir`, so that `finish` can rename it to that.
pub(crate) fn begin(dir: &Path) -> Result<Draft> {
    if fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(Error::AlreadyThere { dir: dir.to_owned() });
    }
    let mut name = dir.file_name().unwrap_or_default().to_owned();
    name.push(format!(".new-{}", uuid::Uuid::new_v4().simple()));
    let temporary = dir.with_file_name(name);
    DirBuilder::new().recursive(true).mode(0o700).create(&temporary).map_err(Error::io("create", &temporary))?;
    Ok(Draft { path: temporary })
}

/// A directory that is not in its place yet. If it never gets there, it is removed with its keys.
pub(crate) struct Draft {
    path: PathBuf,
}

impl Draft {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // It was renamed, or the error that prevented it is the one to report.
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// Moves the finished directory to its place. rename(2) replaces an empty directory and refuses others.
pub(crate) fn finish(draft: Draft, dir: &Path) -> Result<()> {
    sync_dir(draft.path())?;
    fs::rename(draft.path(), dir).map_err(|source| match source.kind() {
        std::io::ErrorKind::DirectoryNotEmpty => Error::AlreadyThere { dir: dir.to_owned() },
        _ => Error::Io { doing: "create", path: dir.to_owned(), source },
    })?;
    sync_dir(dir.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new(".")))
}

fn sync_dir(dir: &Path) -> Result<()> {
    File::open(dir).and_then(|d| d.sync_all()).map_err(Error::io("sync", dir))
}

/// Writes a file that must not exist yet, flushed, with this mode from the start.
pub(crate) fn write_new(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
        .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
        .map_err(Error::io("write", path))
}

/// Replaces a file: readers find the old content or the new one, even after a crash.
pub(crate) fn replace(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".new-{}", uuid::Uuid::new_v4().simple()));
    let temporary = path.with_file_name(name);
    write_new(&temporary, bytes, mode)?;
    fs::rename(&temporary, path).map_err(Error::io("replace", path))?;
    sync_dir(path.parent().unwrap_or(Path::new(".")))
}

pub(crate) fn remove(path: &Path) -> Result<()> {
    fs::remove_file(path).map_err(Error::io("remove", path))?;
    sync_dir(path.parent().unwrap_or(Path::new(".")))
}

/// Reads a secret, and refuses one that others could have read.
pub(crate) fn read_secret(path: &Path) -> Result<Zeroizing<String>> {
    let file = File::open(path).map_err(Error::io("read", path))?;
    let metadata = file.metadata().map_err(Error::io("read", path))?;
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(Error::Exposed { path: path.to_owned(), mode });
    }
    if metadata.len() > MAX_FILE {
        return Err(Error::TooLarge { path: path.to_owned() });
    }
    let capacity = usize::try_from(metadata.len()).unwrap_or(0).saturating_add(1);
    // The capacity comes first: a buffer that grows leaves copies of the secret behind.
    let mut text = Zeroizing::new(String::with_capacity(capacity));
    file.take(MAX_FILE).read_to_string(&mut text).map_err(Error::io("read", path))?;
    Ok(text)
}

pub(crate) fn read(path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MAX_FILE + 1).read_to_end(&mut bytes))
        .map_err(Error::io("read", path))?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(Error::TooLarge { path: path.to_owned() });
    }
    Ok(bytes)
}
