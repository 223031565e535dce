//! What can go wrong with an RG disk, with the file it happened on.

use std::io;
use std::path::{Path, PathBuf};

use crate::layout::LayoutError;
use crate::manifest::ManifestError;
use crate::state::StateError;

/// Short for a result with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// A failed operation on an RG disk or on an image that goes onto or comes off it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    #[error("{}: cannot {op}", path.display())]
    Io {
        path: PathBuf,
        op: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("{}: not a usable RG disk layout", path.display())]
    Layout {
        path: PathBuf,
        #[source]
        source: LayoutError,
    },
    #[error("{}: bad manifest", path.display())]
    Manifest {
        path: PathBuf,
        #[source]
        source: ManifestError,
    },
    #[error("{}: bad sealed state", path.display())]
    State {
        path: PathBuf,
        #[source]
        source: StateError,
    },
    #[error("`{tool}` is not installed: install the package qemu-utils")]
    ToolMissing { tool: &'static str },
    #[error("{}: `{tool}` could not {op} ({status}): {stderr}", path.display())]
    Tool { tool: &'static str, op: &'static str, path: PathBuf, status: String, stderr: String },
    #[error("{}: unexpected answer from `{tool}`: {what}", path.display())]
    ToolAnswer { tool: &'static str, path: PathBuf, what: &'static str },
    #[error(
        "{}: the VHDX was not closed cleanly and its log must be replayed: make sure that no VM uses it, then replay the log",
        path.display()
    )]
    DirtyLog { path: PathBuf },
    #[error("{}: is {found} bytes long, expected {expected}", path.display())]
    SizeMismatch { path: PathBuf, expected: u64, found: u64 },
    #[error("{found} source images given for {expected} disks")]
    SourceCount { expected: usize, found: usize },
    #[error("there is no disk {index} on {}", path.display())]
    NoSuchDisk { path: PathBuf, index: usize },
    #[error("{}: exists already: remove it or choose another name", path.display())]
    Exists { path: PathBuf },
    #[error("{}: another process is using it: wait for it to end", path.display())]
    Busy { path: PathBuf },
    #[error("no RG disk found: {} does not exist; is the disk attached?", path.display())]
    NotFound { path: PathBuf },
    #[error(
        "{} is not a partition of {}: detach all RG disks but one",
        link.display(), disk.display()
    )]
    Ambiguous { link: PathBuf, disk: PathBuf },
    #[error("cancelled")]
    Cancelled,
}

impl Error {
    /// A stable name for this kind of failure.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Io { .. } => "io",
            Self::Layout { .. } => "layout",
            Self::Manifest { .. } => "manifest",
            Self::State { .. } => "state",
            Self::ToolMissing { .. } => "tool-missing",
            Self::Tool { .. } => "tool",
            Self::ToolAnswer { .. } => "tool-answer",
            Self::DirtyLog { .. } => "dirty-log",
            Self::SizeMismatch { .. } => "size-mismatch",
            Self::SourceCount { .. } => "source-count",
            Self::NoSuchDisk { .. } => "no-such-disk",
            Self::Exists { .. } => "exists",
            Self::Busy { .. } => "busy",
            Self::NotFound { .. } => "not-found",
            Self::Ambiguous { .. } => "ambiguous",
            Self::Cancelled => "cancelled",
        }
    }

    pub(crate) fn io(path: &Path, op: &'static str) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::Io { path, op, source }
    }

    pub(crate) fn layout(path: &Path) -> impl FnOnce(LayoutError) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::Layout { path, source }
    }

    pub(crate) fn manifest(path: &Path) -> impl FnOnce(ManifestError) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::Manifest { path, source }
    }

    pub(crate) fn state(path: &Path) -> impl FnOnce(StateError) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::State { path, source }
    }
}
