//! What can go wrong with an RG disk, with the file that it happened on.

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
    /// An image could not be read or written, whether or not it is an RG disk.
    #[error(transparent)]
    Image(#[from] image::Error),
    /// The partition table is not that of an RG disk.
    #[error("{}: not a usable RG disk layout", path.display())]
    Layout {
        /// The RG disk.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: LayoutError,
    },
    /// There is no valid manifest, or it does not agree with the partitions.
    #[error("{}: bad manifest", path.display())]
    Manifest {
        /// The RG disk.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: ManifestError,
    },
    /// The sealed state is damaged, or another one than the manifest names.
    #[error("{}: bad sealed state", path.display())]
    State {
        /// The RG disk.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: StateError,
    },
    /// The layout is for another number of disks.
    #[error("{found} source images given for {expected} disks")]
    SourceCount {
        /// Disks in the layout.
        expected: usize,
        /// Images that were given.
        found: usize,
    },
    /// The RG disk carries fewer disks.
    #[error("there is no disk {index} on {}", path.display())]
    NoSuchDisk {
        /// The RG disk.
        path: PathBuf,
        /// The disk that was asked for, from 0.
        index: usize,
    },
    /// Nothing is overwritten.
    #[error("{}: exists already: remove it or choose another name", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// No RG disk, or not this part of it, is attached to this machine.
    #[error("no RG disk found: {} does not exist; is the disk attached?", path.display())]
    NotFound {
        /// Where it would be.
        path: PathBuf,
    },
    /// Two attached disks claim a partition's name.
    #[error(
        "{} is not a partition of {}: detach all RG disks but one",
        link.display(), disk.display()
    )]
    Ambiguous {
        /// udev's link with that name.
        link: PathBuf,
        /// The disk whose partition it should be.
        disk: PathBuf,
    },
}

impl Error {
    pub(crate) fn io(path: &Path, op: &'static str) -> impl FnOnce(io::Error) -> Self + use<> {
        let failed = image::Error::io(path, op);
        move |source| Self::Image(failed(source))
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
