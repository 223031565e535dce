//! Disk images, and what an image must not bring along.
//!
//! A qcow2 header can name other files (a backing file, a data file), which QEMU would open with the host's rights. An
//! image that came from a tenant must not make the host read its own files.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::Path;

use image::{Format, Source, Storage};

use crate::error::{Error, Result};
use crate::spec::DiskSpec;

/// A disk whose image was checked and is open, like the one under it. QEMU gets these descriptors and can open no file
/// of the store itself, so it uses exactly what was checked.
#[derive(Debug)]
pub struct CheckedDisk {
    spec: DiskSpec,
    image: Image,
    backing: Option<Image>,
}

/// An open image.
#[derive(Debug)]
pub(crate) struct Image {
    pub(crate) format: Format,
    pub(crate) storage: Storage,
    pub(crate) writable: bool,
    pub(crate) file: File,
}

/// Checks a disk's images: each is a file or a block device and names no other file. The image under an overlay is
/// opened for reading only: it is another VM's.
///
/// # Errors
/// [`Error::DiskImage`] for an image that must not be used; [`Error::Spec`]; [`Error::Io`].
pub fn check(spec: &DiskSpec) -> Result<CheckedDisk> {
    check_images(spec, false)
}

/// The same for a disk that is part of the VM: its overlay may be merged into the image under it.
pub(crate) fn check_own(spec: &DiskSpec) -> Result<CheckedDisk> {
    check_images(spec, true)
}

fn check_images(spec: &DiskSpec, own: bool) -> Result<CheckedDisk> {
    spec.validate()?;
    let image = Image::open(&spec.source, true)?;
    let backing = match &spec.backing {
        None => None,
        Some(below) => Some(Image::open(below, own)?),
    };
    Ok(CheckedDisk { spec: spec.clone(), image, backing })
}

impl Image {
    fn open(source: &Source, writable: bool) -> Result<Self> {
        let (path, format) = (source.path(), source.format());
        let bad = |reason| Error::DiskImage { path: path.to_owned(), reason };
        let mut file = open(path, writable)?;
        let kind = file.metadata().map_err(Error::io("inspect", path))?.file_type();
        let storage = Storage::of(kind).ok_or_else(|| bad("is neither a file nor a block device"))?;
        if format == Format::Qcow2 {
            let mut header = Vec::new();
            file.by_ref().take(80).read_to_end(&mut header).map_err(Error::io("read", path))?;
            check_qcow2(&header).map_err(bad)?;
        }
        Ok(Self { format, storage, writable, file })
    }
}

/// Opens an image file for QEMU.
pub(crate) fn open(path: &Path, writable: bool) -> Result<File> {
    OpenOptions::new().read(true).write(writable).open(path).map_err(Error::io("open", path))
}

impl CheckedDisk {
    /// The description that was checked.
    pub fn spec(&self) -> &DiskSpec {
        &self.spec
    }

    /// The image that the guest writes to.
    pub(crate) fn image(&self) -> &Image {
        &self.image
    }

    /// The image under it, if it is an overlay.
    pub(crate) fn backing(&self) -> Option<&Image> {
        self.backing.as_ref()
    }

    /// The open images, the one below last. Once nobody else holds these descriptors, the locks on them are QEMU's.
    pub(crate) fn into_files(self) -> Vec<OwnedFd> {
        [Some(self.image), self.backing].into_iter().flatten().map(|image| image.file.into()).collect()
    }
}

/// Checks the first 80 bytes of a qcow2 image (docs/interop/qcow2.rst in QEMU's sources).
///
/// # Errors
/// Why the image is refused, above all because it names another file.
pub fn check_qcow2(header: &[u8]) -> std::result::Result<(), &'static str> {
    const DATA_FILE: u64 = 1 << 2;
    let be32 = |at: usize| header.get(at..at + 4)?.try_into().ok().map(u32::from_be_bytes);
    let be64 = |at: usize| header.get(at..at + 8)?.try_into().ok().map(u64::from_be_bytes);
    if !header.starts_with(b"QFI\xfb") {
        return Err("is not qcow2");
    }
    if be64(8) != Some(0) {
        return Err("names a backing file, which is never followed");
    }
    match be32(4) {
        Some(2) => Ok(()),
        Some(3) => match be64(72) {
            Some(features) if features & DATA_FILE == 0 => Ok(()),
            Some(_) => Err("names an external data file, which is never followed"),
            None => Err("is truncated in its header"),
        },
        _ => Err("has an unknown qcow2 version"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn header() -> Vec<u8> {
        let mut h = vec![0; 80];
        h[..4].copy_from_slice(b"QFI\xfb");
        h[7] = 3;
        h
    }

    #[test]
    fn qcow2_headers_that_name_other_files_are_refused() {
        check_qcow2(&header()).unwrap();
        let mut backing = header();
        backing[15] = 104;
        assert!(check_qcow2(&backing).unwrap_err().contains("backing"));
        let mut data = header();
        data[79] = 4;
        assert!(check_qcow2(&data).unwrap_err().contains("data file"));
        let mut version = header();
        version[7] = 4;
        check_qcow2(&version).unwrap_err();
    }

    #[test]
    fn short_headers_do_not_panic() {
        for n in 0..80 {
            assert!(check_qcow2(&header()[..n]).is_err(), "{n}");
        }
    }
}
