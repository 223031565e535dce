//! The host's side of an RG disk: making the VHDX, reading it back, taking disks off it.
//!
//! QEMU's tools are the VHDX engine. Bulk data goes through `qemu-img convert` straight between the
//! source and its slice of the VHDX, without a copy in between; GPT, manifest and state, some KiB to some
//! MiB, go through the NBD client in `nbd.rs`, and so do digests.
//!
//! A file gets its final name when it is complete and durable. Until then it is `NAME.partial`, locked;
//! a failed or cancelled run removes it, and the next run takes over what a crash left.

mod partial;

use std::path::{Path, PathBuf};

use crate::blocks::Slice;
use crate::digest::{self, Digest};
use crate::error::{Error, Result};
use crate::layout::{Layout, Partition};
use crate::manifest::{self, Manifest, ManifestError};
use crate::nbd::{Access, Nbd};
use crate::progress::{Cancel, Progress};
use crate::qemu::{self, Range, image_opts};
use crate::state::{self, Bundle, StateError};
use partial::Partial;

/// Format of a disk image. Always told, never guessed from the contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// The disk's bytes as they are.
    Raw,
    /// QEMU's format.
    Qcow2,
    /// Hyper-V's format.
    Vhdx,
}

/// A disk image of the DVM on the host.
#[derive(Clone, Debug)]
pub struct Source {
    /// The image file.
    pub path: PathBuf,
    /// Its format.
    pub format: Format,
}

/// What an RG disk says, all checked: layout against manifest, bundle against manifest.
pub struct Contents {
    /// Where the disks lie.
    pub layout: Layout,
    /// The newest valid manifest.
    pub manifest: Manifest,
    /// The sealed state that it names.
    pub bundle: Bundle,
}

/// Makes the RG disk `target` with these disks on it.
///
/// `sources` come in the order of the layout's disks and must have exactly their sizes. `target` must not
/// exist. Progress counts the disks' bytes, holes included.
pub fn create(
    target: &Path,
    layout: &Layout,
    manifest: &Manifest,
    bundle: &Bundle,
    sources: &[Source],
    progress: &dyn Fn(Progress),
    cancel: &Cancel,
) -> Result<()> {
    let target = absolute(target)?;
    check_inputs(&target, layout, manifest, bundle)?;
    if sources.len() != layout.disks().len() {
        return Err(Error::SourceCount { expected: layout.disks().len(), found: sources.len() });
    }
    for (source, disk) in sources.iter().zip(layout.disks()) {
        let found = qemu::virtual_size(&source.path, source.format, cancel)?;
        expect_size(&source.path, disk.size, found)?;
    }

    let partial = Partial::create(&target)?;
    qemu::create_vhdx(partial.path(), layout.total(), cancel)?;
    write_head(partial.path(), layout, manifest, bundle)?;
    let total = layout.disks().iter().map(|disk| disk.size).sum();
    let mut done = 0;
    for (source, disk) in sources.iter().zip(layout.disks()) {
        qemu::convert_into(
            &image_opts(&source.path, source.format, None),
            &image_opts(partial.path(), Format::Vhdx, Some(range(disk))),
            partial.path(),
            cancel,
            &mut |percent| progress(part_done(done, disk.size, percent, total)),
        )?;
        done += disk.size;
        progress(Progress { bytes: done, total });
    }
    cancel.check()?;
    partial.finish()
}

/// Reads and checks GPT, manifest and sealed state of an RG disk that somebody else had in hand.
///
/// QEMU's lock refuses a VHDX that a VM still has open. [`Error::DirtyLog`] asks for [`replay_log`].
pub fn read(path: &Path) -> Result<Contents> {
    let mut vhdx = Nbd::open(&image_opts(path, Format::Vhdx, None), path, Access::Read)?;
    let (layout, manifest) = read_head(&mut vhdx, path)?;
    let bundle = {
        let mut part = slice(&mut vhdx, layout.state(), path)?;
        state::read(&mut part, manifest.state_sha256).map_err(Error::state(path))?
    };
    vhdx.close()?;
    Ok(Contents { layout, manifest, bundle })
}

/// Reads and checks GPT and manifest of an RG disk that a running VM has, through the NBD server of its QEMU.
pub fn peek(socket: &Path) -> Result<Manifest> {
    let mut disk = Nbd::join(socket)?;
    let (_, manifest) = read_head(&mut disk, socket)?;
    disk.close()?;
    Ok(manifest)
}

fn read_head(disk: &mut Nbd, path: &Path) -> Result<(Layout, Manifest)> {
    let layout = Layout::read(disk).map_err(Error::layout(path))?;
    let manifest = {
        let mut part = slice(disk, layout.manifest(), path)?;
        manifest::read(&mut part).map_err(Error::manifest(path))?
    };
    manifest.check_layout(&layout).map_err(Error::manifest(path))?;
    Ok((layout, manifest))
}

/// Replays the log of a VHDX whose VM was killed. Refused by QEMU's lock while a VM has it open.
pub fn replay_log(path: &Path) -> Result<()> {
    qemu::replay_log(path, &Cancel::new())
}

/// Copies one disk off the RG disk into the new qcow2 `target`, holes kept.
///
/// `expected` is the size that the caller knows the disk to have, from a source other than the RG disk.
pub fn extract_disk(
    path: &Path,
    disk: &Partition,
    target: &Path,
    expected: u64,
    progress: &dyn Fn(Progress),
    cancel: &Cancel,
) -> Result<()> {
    expect_size(path, expected, disk.size)?;
    let partial = Partial::create(&absolute(target)?)?;
    qemu::convert_to_qcow2(
        &image_opts(path, Format::Vhdx, Some(range(disk))),
        partial.path(),
        cancel,
        &mut |percent| progress(part_done(0, disk.size, percent, disk.size)),
    )?;
    let found = qemu::virtual_size(partial.path(), Format::Qcow2, cancel)?;
    expect_size(partial.path(), expected, found)?;
    cancel.check()?;
    partial.finish()
}

/// SHA-256 over all bytes of one disk on the RG disk.
pub fn digest_disk(path: &Path, disk: &Partition, progress: &dyn Fn(Progress), cancel: &Cancel) -> Result<Digest> {
    let opts = image_opts(path, Format::Vhdx, Some(range(disk)));
    let mut blocks = Nbd::open(&opts, path, Access::Read)?;
    expect_size(path, disk.size, crate::blocks::Blocks::size(&blocks))?;
    finish_digest(path, &mut blocks, progress, cancel)
}

/// SHA-256 over all bytes of the disk that an image holds.
pub fn digest_image(source: &Source, progress: &dyn Fn(Progress), cancel: &Cancel) -> Result<Digest> {
    let opts = image_opts(&source.path, source.format, None);
    let mut blocks = Nbd::open(&opts, &source.path, Access::Read)?;
    finish_digest(&source.path, &mut blocks, progress, cancel)
}

fn finish_digest(path: &Path, blocks: &mut Nbd, progress: &dyn Fn(Progress), cancel: &Cancel) -> Result<Digest> {
    digest::of_blocks(blocks, progress, cancel).map_err(Error::io(path, "hash the disk"))?.ok_or(Error::Cancelled)
}

/// What must agree before anything is written.
fn check_inputs(target: &Path, layout: &Layout, manifest: &Manifest, bundle: &Bundle) -> Result<()> {
    let failed = |source: ManifestError| Error::manifest(target)(source);
    manifest.validate().map_err(failed)?;
    manifest.check_layout(layout).map_err(failed)?;
    let found = bundle.sha256();
    if found != manifest.state_sha256 {
        return Err(Error::state(target)(StateError::Mismatch { named: manifest.state_sha256, found }));
    }
    Ok(())
}

fn write_head(path: &Path, layout: &Layout, manifest: &Manifest, bundle: &Bundle) -> Result<()> {
    let opts = image_opts(path, Format::Vhdx, None);
    let mut vhdx = Nbd::open(&opts, path, Access::Write)?;
    layout.write(&mut vhdx).map_err(Error::layout(path))?;
    {
        let mut part = slice(&mut vhdx, layout.state(), path)?;
        state::write(&mut part, bundle, None).map_err(Error::state(path))?;
    }
    {
        let mut part = slice(&mut vhdx, layout.manifest(), path)?;
        manifest::write_first(&mut part, manifest).map_err(Error::manifest(path))?;
    }
    vhdx.close()
}

fn slice<'a>(vhdx: &'a mut Nbd, part: &Partition, path: &Path) -> Result<Slice<'a>> {
    Slice::new(vhdx, part.offset, part.size).map_err(Error::io(path, "reach a partition"))
}

fn range(part: &Partition) -> Range {
    Range { offset: part.offset, size: part.size }
}

fn expect_size(path: &Path, expected: u64, found: u64) -> Result<()> {
    if expected != found {
        return Err(Error::SizeMismatch { path: path.to_owned(), expected, found });
    }
    Ok(())
}

/// `percent` of a disk of `size` bytes, after `done` bytes of other disks. Sizes are at most 2^46.
fn part_done(done: u64, size: u64, percent: f64, total: u64) -> Progress {
    let bytes = (size as f64 * percent / 100.0) as u64;
    Progress { bytes: done + bytes.min(size), total }
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).map_err(Error::io(path, "make an absolute path of"))
}
