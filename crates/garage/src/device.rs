//! The garage's side of an RG disk: a block device with partitions.
//!
//! Nothing is copied in the garage: the nested VM uses the partition at [`Device::disk_path`] directly.
//!
//! The GPT is read from the whole disk, and everything else through the kernel's partition nodes, because
//! the kernel caches a disk and its partitions separately: what the nested VM wrote to a partition may be
//! stale when read through the whole disk. A plain file in place of the device has no nodes and is read by offset.

mod places;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use image::blocks::{Blocks, FileBlocks, Slice};
use image::{Cancel, Digest, Progress};
pub use places::Places;
use uuid::Uuid;

use crate::error::{Error, Result};
use crate::layout::{Layout, Partition, overlay_serial};
use crate::manifest::{self, Manifest};
use crate::state::{self, Bundle, StateError};

/// Where the garage finds disk `index` in overlay mode: attached separately, under a serial number.
pub fn overlay_path(places: &Places, recovery: Uuid, index: usize) -> PathBuf {
    places.by_id.join(format!("virtio-{}", overlay_serial(recovery, index)))
}

/// Refuses an overlay that is missing, or not of the size in bytes that the manifest states.
///
/// # Errors
/// [`Error::NotFound`], [`Error::Image`].
pub fn check_overlay(path: &Path, size: u64) -> Result<()> {
    let blocks = match OpenOptions::new().read(true).open(path) {
        Ok(file) => FileBlocks::new(file).map_err(Error::io(path, "measure"))?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(Error::NotFound { path: path.to_owned() }),
        Err(error) => return Err(Error::io(path, "open")(error)),
    };
    Ok(image::Error::expect_size(path, size, blocks.size())?)
}

/// Returns when everything that was written to the overlay at `path` is durable. The nested VM must be off.
///
/// # Errors
/// [`Error::Image`].
pub fn flush_overlay(path: &Path) -> Result<()> {
    fault::write()
        .and_then(|()| std::fs::File::options().write(true).open(path)?.sync_all())
        .map_err(Error::io(path, "flush"))
}

/// An RG disk as the garage sees it. Holds paths, no open files.
#[derive(Clone, Debug)]
pub struct Device {
    path: PathBuf,
    layout: Layout,
    /// In the order of [`Layout::partitions`]; `None` for a plain file.
    nodes: Option<Vec<PathBuf>>,
}

impl Device {
    /// Finds the one RG disk that is attached to this machine, by its partitions' names.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Ambiguous`], those of [`Device::open`].
    pub fn find(places: &Places) -> Result<Self> {
        let path = places.find_disk()?;
        let device = Self::open_in(&path, places)?;
        places.check_links(&path, &device.layout)?;
        Ok(device)
    }

    /// Opens a given whole disk, or a plain file with the same contents.
    ///
    /// # Errors
    /// [`Error::Layout`], [`Error::Image`].
    pub fn open(path: &Path) -> Result<Self> {
        Self::open_in(path, &Places::default())
    }

    fn open_in(path: &Path, places: &Places) -> Result<Self> {
        let file = open(path, false)?;
        let kind = file.metadata().map_err(Error::io(path, "inspect"))?.file_type();
        let mut blocks = FileBlocks::new(file).map_err(Error::io(path, "measure"))?;
        let layout = Layout::read(&mut blocks).map_err(Error::layout(path))?;
        let nodes = if kind.is_block_device() { Some(places.partition_nodes(path, &layout)?) } else { None };
        Ok(Self { path: path.to_owned(), layout, nodes })
    }

    /// The whole disk.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the disks lie.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The block device of disk `index`, for the nested VM.
    ///
    /// # Errors
    /// [`Error::NoSuchDisk`].
    pub fn disk_path(&self, index: usize) -> Result<PathBuf> {
        let place = self.disk_place(index)?;
        self.nodes.as_ref().and_then(|nodes| nodes.get(place).cloned()).ok_or_else(|| self.no_such_disk(index))
    }

    /// The newest valid manifest, checked against the layout.
    ///
    /// # Errors
    /// [`Error::Manifest`], [`Error::Image`].
    pub fn manifest(&self) -> Result<Manifest> {
        let manifest = self.with(MANIFEST, false, |part| manifest::read(part).map_err(Error::manifest(&self.path)))?;
        manifest.check_layout(&self.layout).map_err(Error::manifest(&self.path))?;
        Ok(manifest)
    }

    /// The sealed state that the active manifest names.
    ///
    /// # Errors
    /// [`Error::State`], those of [`Device::manifest`].
    pub fn bundle(&self) -> Result<Bundle> {
        let expected = self.manifest()?.state_sha256;
        self.read_state(expected)
    }

    /// Writes new sealed state beside the active one; it counts once a manifest that names it is written.
    ///
    /// # Errors
    /// Those of [`Device::bundle`].
    pub fn write_state(&self, bundle: &Bundle) -> Result<Digest> {
        let active = self.manifest()?.state_sha256;
        self.with(STATE, true, |part| state::write(part, bundle, Some(active)).map_err(Error::state(&self.path)))
    }

    /// Makes a newer manifest the active one. The state that it names must be on the disk already.
    ///
    /// # Errors
    /// Those of [`Device::bundle`].
    pub fn write_manifest(&self, next: &Manifest) -> Result<()> {
        next.validate().and_then(|()| next.check_layout(&self.layout)).map_err(Error::manifest(&self.path))?;
        self.read_state(next.state_sha256)?;
        self.with(MANIFEST, true, |part| manifest::write_next(part, next).map_err(Error::manifest(&self.path)))
    }

    /// SHA-256 over all bytes of disk `index`. The nested VM must be off.
    ///
    /// # Errors
    /// [`Error::NoSuchDisk`], [`Error::Image`].
    pub fn digest_disk(&self, index: usize, progress: &dyn Fn(Progress), cancel: &Cancel) -> Result<Digest> {
        let place = self.disk_place(index)?;
        self.with(place, false, |part| Ok(image::digest_blocks(&self.path, part, progress, cancel)?))
    }

    fn read_state(&self, expected: Digest) -> Result<Bundle> {
        self.with(STATE, false, |part| {
            state::read(part, expected).map_err(|source: StateError| Error::state(&self.path)(source))
        })
    }

    /// The place of disk `index` among all partitions.
    fn disk_place(&self, index: usize) -> Result<usize> {
        if index >= self.layout.disks().len() {
            return Err(self.no_such_disk(index));
        }
        Ok(FIRST_DISK + index)
    }

    fn no_such_disk(&self, index: usize) -> Error {
        Error::NoSuchDisk { path: self.path.clone(), index }
    }

    /// Opens the partition at `place` while `work` runs.
    fn with<T>(&self, place: usize, write: bool, work: impl FnOnce(&mut dyn Blocks) -> Result<T>) -> Result<T> {
        let part: &Partition = self.layout.partitions().nth(place).ok_or_else(|| self.no_such_disk(place))?;
        let node = self.nodes.as_ref().and_then(|nodes| nodes.get(place));
        let path = node.unwrap_or(&self.path);
        let mut blocks = FileBlocks::new(open(path, write)?).map_err(Error::io(path, "measure"))?;
        if node.is_none() {
            let mut slice =
                Slice::new(&mut blocks, part.offset, part.size).map_err(Error::io(path, "reach a partition of"))?;
            return work(&mut slice);
        }
        image::Error::expect_size(path, part.size, blocks.size())?;
        work(&mut blocks)
    }
}

const MANIFEST: usize = 0;
const STATE: usize = 1;
const FIRST_DISK: usize = 2;

fn open(path: &Path, write: bool) -> Result<File> {
    OpenOptions::new().read(true).write(write).open(path).map_err(Error::io(path, "open"))
}
