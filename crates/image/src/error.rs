//! What can go wrong with an image, with the file that it happened on.

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

/// Short for a result with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// A failed operation on an image.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused something.
    #[error("cannot {op} {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What was tried: stands between "cannot" and the path.
        op: &'static str,
        /// What the system answered.
        #[source]
        source: io::Error,
    },
    /// A tool is missing on this machine.
    #[error("`{tool}` is not installed: install the package qemu-utils")]
    ToolMissing {
        /// The program.
        tool: &'static str,
    },
    /// A tool could not be started on a file: the file is missing, or the confinement failed.
    #[error("cannot run `{tool}` on {}", path.display())]
    NotStarted {
        /// The program.
        tool: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system answered.
        #[source]
        source: io::Error,
    },
    /// A tool failed.
    #[error("{}: `{tool}` could not {op} ({status}): {stderr}", path.display())]
    Tool {
        /// The program.
        tool: &'static str,
        /// What it was to do: completes the sentence "could not …".
        op: &'static str,
        /// The image.
        path: PathBuf,
        /// How it exited.
        status: ExitStatus,
        /// The beginning of its error output.
        stderr: String,
    },
    /// A tool succeeded, but its output makes no sense.
    #[error("{}: unexpected answer from `{tool}`: {what}", path.display())]
    ToolAnswer {
        /// The program.
        tool: &'static str,
        /// The image.
        path: PathBuf,
        /// What is wrong with the answer.
        what: &'static str,
    },
    /// The VHDX has a log to replay: [`crate::replay_log`].
    #[error(
        "{}: the VHDX was not closed cleanly and its log must be replayed: make sure that no VM uses it, then replay the log",
        path.display()
    )]
    DirtyLog {
        /// The image.
        path: PathBuf,
    },
    /// The image, or the disk in it, has another size than it must have.
    #[error("{}: is {found} bytes long, expected {expected}", path.display())]
    SizeMismatch {
        /// The image.
        path: PathBuf,
        /// Bytes that it must have.
        expected: u64,
        /// Bytes that it has.
        found: u64,
    },
    /// Another process holds QEMU's lock on the image, or the lock on a file that is being written.
    #[error("{}: another process is using it: wait for it to end", path.display())]
    Busy {
        /// The image.
        path: PathBuf,
    },
    /// QEMU cannot open the file as an image of any format.
    #[error("{} is not a disk image: {stderr}", path.display())]
    NotAnImage {
        /// The file.
        path: PathBuf,
        /// What qemu-img said.
        stderr: String,
    },
    /// The image names a backing file or an external data file.
    #[error("{} refers to another file", path.display())]
    OtherFile {
        /// The image.
        path: PathBuf,
    },
    /// QEMU knows the image's format, and Drydock does not support it.
    #[error("{}: format '{format}' is not supported", path.display())]
    Unsupported {
        /// The image.
        path: PathBuf,
        /// QEMU's name for the format.
        format: String,
    },
    /// [`crate::Cancel::cancel`] was called.
    #[error("cancelled")]
    Cancelled,
}

impl Error {
    /// Turns what the system answered to `op` on `path` into [`Error::Io`].
    pub fn io(path: &Path, op: &'static str) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::Io { path, op, source }
    }

    /// Refuses a size other than the expected one, both in bytes.
    ///
    /// # Errors
    /// [`Error::SizeMismatch`].
    pub fn expect_size(path: &Path, expected: u64, found: u64) -> Result<()> {
        if expected == found {
            return Ok(());
        }
        Err(Self::SizeMismatch { path: path.to_owned(), expected, found })
    }
}
