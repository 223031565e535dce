//! A file that gets its final name when it is complete.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FlockOperation, Mode, OFlags, RenameFlags, fchmod, flock, openat, renameat_with};

use crate::error::{Error, Result};

/// `NAME.partial`, mode 0600, locked while it is written, removed on drop.
pub(super) struct Partial {
    target: PathBuf,
    path: PathBuf,
    file: File,
}

impl Partial {
    /// Takes over what a crash left, but not what another process is writing.
    pub(super) fn create(target: &Path) -> Result<Self> {
        if target.symlink_metadata().is_ok() {
            return Err(Error::Exists { path: target.to_owned() });
        }
        let path = beside(target);
        let mode = Mode::RUSR | Mode::WUSR;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file: File =
            openat(CWD, &path, flags, mode).map_err(|errno| Error::io(&path, "create")(errno.into()))?.into();
        // flock, because QEMU locks with fcntl: the two do not meet.
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(image::Error::Busy { path }.into()),
            Err(errno) => return Err(Error::io(&path, "lock")(errno.into())),
        }
        let partial = Self { target: target.to_owned(), path, file };
        fchmod(&partial.file, mode).map_err(|errno| Error::io(&partial.path, "set the mode of")(errno.into()))?;
        partial.file.set_len(0).map_err(Error::io(&partial.path, "empty"))?;
        Ok(partial)
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the file durable, then gives it its name, which must still be free.
    pub(super) fn finish(self) -> Result<()> {
        fault::write().and_then(|()| self.file.sync_all()).map_err(Error::io(&self.path, "flush"))?;
        renameat_with(CWD, &self.path, CWD, &self.target, RenameFlags::NOREPLACE).map_err(|errno| match errno {
            rustix::io::Errno::EXIST => Error::Exists { path: self.target.clone() },
            errno => Error::io(&self.target, "create")(errno.into()),
        })?;
        // Targets are absolute paths of files, so there is a parent.
        let parent = self.target.parent().unwrap_or(Path::new("/"));
        File::open(parent).and_then(|parent| parent.sync_all()).map_err(Error::io(parent, "flush"))
    }
}

fn beside(target: &Path) -> PathBuf {
    let mut name = target.as_os_str().to_owned();
    name.push(".partial");
    PathBuf::from(name)
}

/// Removes what a killed run left of `target`.
pub(super) fn discard(target: &Path) -> Result<()> {
    let path = beside(target);
    match fault::write().and_then(|()| fs::remove_file(&path)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io(&path, "remove")(error)),
        _ => Ok(()),
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // After finish() the name is gone, and before it nobody else may hold the lock.
        let _ = fs::remove_file(&self.path);
    }
}
