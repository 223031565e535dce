//! New images.

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use confine::Shown;

use crate::error::{Error, Result};
use crate::progress::Cancel;
use crate::qemu_img;

/// Makes an empty qcow2 for a disk of `size` bytes that only its owner can open, in the same time whatever the size.
///
/// # Errors
/// [`Error::Io`] when the file cannot be made, [`Error::Tool`] when qemu-img fails.
pub fn create(path: &Path, size: u64, cancel: &Cancel) -> Result<()> {
    private_file(path)?;
    let size = size.to_string();
    let args: [&OsStr; 6] =
        ["create".as_ref(), "-q".as_ref(), "-f".as_ref(), "qcow2".as_ref(), path.as_os_str(), size.as_ref()];
    qemu_img::run_quietly("create the image", &[Shown::Write(path)], &args, cancel)
}

/// An empty file that only this user may open: qemu-img is shown files that exist, and may make none.
pub(crate) fn private_file(path: &Path) -> Result<File> {
    let mut options = File::options();
    options.write(true).create(true).truncate(true).mode(0o600).open(path).map_err(Error::io(path, "create"))
}
