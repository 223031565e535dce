//! The host's side of an RG disk: making the VHDX, reading it back, copying disks off it.
//!
//! A fresh VHDX is laid out directly ([`image::vhdx`]), its data copied inside the kernel. From then on QEMU's tools are
//! the VHDX engine: GPT, manifest, state and disks that come back are read through `qemu-nbd` ([`ServedImage`]), and a
//! disk is hashed while it is copied.
//!
//! A file gets its final name when it is complete and durable. Until then it is `NAME.partial`, locked;
//! a failed or cancelled run removes it, and the next run takes over what a crash left.

mod partial;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use image::blocks::{Blocks, Slice};
use image::vhdx::{self, Writer};
use image::{Cancel, Digest, Format, Progress, Range, ServedImage, Source, digest, extents};

use crate::error::{Error, Result};
use crate::layout::{Layout, Partition};
use crate::manifest::{self, Manifest, ManifestError};
use crate::state::{self, Bundle, StateError};
use partial::Partial;

/// Bytes copied between two reports of progress and checks for cancellation.
const PIECE: u64 = 16 << 20;
/// The smallest hole that is kept where data goes through memory.
const GRAIN: usize = 64 << 10;

/// What is on an RG disk, all checked: layout against manifest, bundle against manifest.
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
///
/// # Errors
/// [`Error::Exists`], [`Error::SourceCount`], [`Error::Manifest`] and [`Error::State`] for inputs that do not agree,
/// [`Error::Image`]. Nothing is left then.
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
        image::Error::expect_size(source.path(), disk.size, image::disk_size(source, cancel)?)?;
    }

    let partial = Partial::create(&target)?;
    let path = partial.path();
    let mut vhdx = Writer::new(partial.file(), layout.total(), vhdx::block_size(layout.total()))
        .map_err(Error::io(path, "lay out"))?;
    write_head(&mut vhdx, path, layout, manifest, bundle)?;
    let total = layout.disks().iter().map(|disk| disk.size).sum();
    let mut done = 0;
    for (source, disk) in sources.iter().zip(layout.disks()) {
        let report = |at: u64| progress(Progress { bytes: done + at.min(disk.size), total });
        copy_in(&mut vhdx, path, disk, source, &report, cancel)?;
        done += disk.size;
        progress(Progress { bytes: done, total });
    }
    cancel.check()?;
    vhdx.finish().map_err(Error::io(path, "complete"))?;
    partial.finish()
}

/// Removes the partial file that a killed [`create`] left beside `target`.
///
/// # Errors
/// [`Error::Image`] when the file system refuses.
pub fn discard(target: &Path) -> Result<()> {
    partial::discard(&absolute(target)?)
}

/// Copies a disk onto its partition: inside the kernel, where the image holds the bytes as they are; otherwise as QEMU
/// reads them.
fn copy_in(
    vhdx: &mut Writer<'_>,
    path: &Path,
    disk: &Partition,
    source: &Source,
    report: &dyn Fn(u64),
    cancel: &Cancel,
) -> Result<()> {
    let failed = || image::Error::io(path, "copy a disk into");
    let file = File::open(source.path()).map_err(Error::io(source.path(), "open"))?;
    let mut reader = None;
    let mut buffer = Vec::new();
    extents::each(source, disk.size, cancel, &mut |extent| {
        let mut done = 0;
        while done < extent.length {
            cancel.check()?;
            let piece = (extent.length - done).min(PIECE);
            let at = disk.offset + extent.start + done;
            match extent.offset {
                Some(offset) => vhdx.copy_from(&file, offset + done, at, piece),
                None => {
                    let reader = match &mut reader {
                        Some(reader) => reader,
                        none => none.insert(ServedImage::open(source, None)?),
                    };
                    copy_read(reader, &mut buffer, extent.start + done, vhdx, at, piece)
                }
            }
            .map_err(failed())?;
            done += piece;
            report(extent.start + done);
        }
        Ok(())
    })?;
    Ok(())
}

/// Copies through memory; a stretch of zeros stays a hole.
fn copy_read(
    reader: &mut ServedImage,
    buffer: &mut Vec<u8>,
    start: u64,
    vhdx: &mut Writer<'_>,
    at: u64,
    length: u64,
) -> std::io::Result<()> {
    buffer.resize(usize::try_from(length).unwrap_or(0), 0);
    reader.read_at(start, buffer)?;
    let mut offset = 0;
    for grain in buffer.chunks(GRAIN) {
        if grain.iter().any(|byte| *byte != 0) {
            vhdx.write_at(at + offset, grain)?;
        }
        offset += grain.len() as u64;
    }
    Ok(())
}

/// Reads and checks GPT, manifest and sealed state of an RG disk that was in somebody else's hands.
///
/// QEMU's lock refuses a VHDX that a VM still has open. [`image::Error::DirtyLog`] asks for [`image::replay_log`].
///
/// # Errors
/// [`Error::Layout`], [`Error::Manifest`], [`Error::State`], [`Error::Image`].
pub fn read(path: &Path) -> Result<Contents> {
    let mut vhdx = ServedImage::open(&rg_disk(path), None)?;
    let (layout, manifest) = read_head(&mut vhdx, path)?;
    let bundle = {
        let mut part = slice(&mut vhdx, layout.state(), path)?;
        state::read(&mut part, manifest.state_sha256).map_err(Error::state(path))?
    };
    vhdx.close()?;
    Ok(Contents { layout, manifest, bundle })
}

/// Reads and checks GPT and manifest of an RG disk that a running VM uses, through its QEMU's NBD server on `socket`.
///
/// # Errors
/// Those of [`read`].
pub fn peek(socket: &Path) -> Result<Manifest> {
    let mut disk = ServedImage::join(socket)?;
    let (_, manifest) = read_head(&mut disk, socket)?;
    disk.close()?;
    Ok(manifest)
}

fn read_head(disk: &mut ServedImage, path: &Path) -> Result<(Layout, Manifest)> {
    let layout = Layout::read(disk).map_err(Error::layout(path))?;
    let manifest = {
        let mut part = slice(disk, layout.manifest(), path)?;
        manifest::read(&mut part).map_err(Error::manifest(path))?
    };
    manifest.check_layout(&layout).map_err(Error::manifest(path))?;
    Ok((layout, manifest))
}

/// Copies one disk off the RG disk into the new raw image `target`, keeping holes, and returns its SHA-256: what was
/// written is what was hashed, in one pass.
///
/// `expected` is the disk's size in bytes, which the caller knows from a source other than the RG disk.
///
/// # Errors
/// [`Error::Exists`], [`Error::Image`]. Nothing is left then.
pub fn extract_disk(
    path: &Path,
    disk: &Partition,
    target: &Path,
    expected: u64,
    progress: &dyn Fn(Progress),
    cancel: &Cancel,
) -> Result<Digest> {
    image::Error::expect_size(path, expected, disk.size)?;
    let mut blocks = ServedImage::open(&rg_disk(path), Some(range(disk)))?;
    image::Error::expect_size(path, expected, blocks.size())?;
    let partial = Partial::create(&absolute(target)?)?;
    let written = Error::io(partial.path(), "write");
    partial.file().set_len(expected).map_err(written)?;
    let digest =
        digest::of_blocks(&mut blocks, progress, cancel, &mut |at, bytes| write_data(partial.file(), at, bytes))
            .map_err(Error::io(path, "copy a disk off"))?
            .ok_or(image::Error::Cancelled)?;
    partial.finish()?;
    Ok(digest)
}

/// Writes what is not zero.
fn write_data(file: &File, mut at: u64, bytes: &[u8]) -> std::io::Result<()> {
    fault::write()?;
    for grain in bytes.chunks(GRAIN) {
        if grain.iter().any(|byte| *byte != 0) {
            file.write_all_at(grain, at)?;
        }
        at += grain.len() as u64;
    }
    Ok(())
}

/// SHA-256 over all bytes of one disk on the RG disk.
///
/// # Errors
/// [`Error::Image`].
pub fn digest_disk(path: &Path, disk: &Partition, progress: &dyn Fn(Progress), cancel: &Cancel) -> Result<Digest> {
    let mut blocks = ServedImage::open(&rg_disk(path), Some(range(disk)))?;
    image::Error::expect_size(path, disk.size, blocks.size())?;
    Ok(image::digest_blocks(path, &mut blocks, progress, cancel)?)
}

fn rg_disk(path: &Path) -> Source {
    Source::new(path, Format::Vhdx)
}

/// Checks what must agree before anything is written.
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

fn write_head(vhdx: &mut Writer<'_>, path: &Path, layout: &Layout, manifest: &Manifest, bundle: &Bundle) -> Result<()> {
    layout.write(vhdx).map_err(Error::layout(path))?;
    {
        let mut part = slice(vhdx, layout.state(), path)?;
        state::write(&mut part, bundle, None).map_err(Error::state(path))?;
    }
    let mut part = slice(vhdx, layout.manifest(), path)?;
    manifest::write_first(&mut part, manifest).map_err(Error::manifest(path))
}

fn slice<'a>(vhdx: &'a mut dyn Blocks, part: &Partition, path: &Path) -> Result<Slice<'a>> {
    Slice::new(vhdx, part.offset, part.size).map_err(Error::io(path, "reach a partition of"))
}

fn range(part: &Partition) -> Range {
    Range { offset: part.offset, size: part.size }
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).map_err(Error::io(path, "make an absolute path of"))
}

#[cfg(test)]
mod tests;
