//! Disk images as QEMU gets them, and what an image must not bring along.
//!
//! A qcow2 header can name other files (a backing file, a data file) that QEMU would open with the
//! host's rights. An image that came from a tenant must not make the host read its own files.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::Path;

use image::{Format, Source, Storage};
use serde_json::{Value, json};

use crate::proof::{FileId, file_id};
use crate::qemu::{backing_set, disk_node, image_set};
use crate::spec::DiskSpec;
use crate::{Error, Result};

/// A disk whose image, and the one under it, were looked at and are open: QEMU gets these descriptors, can open no
/// file of the store itself, and what was looked at is what it uses.
#[derive(Debug)]
pub struct CheckedDisk {
    spec: DiskSpec,
    image: Image,
    backing: Option<Image>,
}

#[derive(Debug)]
struct Image {
    format: Format,
    storage: Storage,
    writable: bool,
    file: File,
}

/// Looks at a disk's images: each is a file or a block device, and names no other file. The one under an overlay can
/// only be read: it is another VM's.
pub fn check(spec: &DiskSpec) -> Result<CheckedDisk> {
    look_at(spec, false)
}

/// The same for a disk that is part of the VM: its overlay may be merged into the image under it.
pub(crate) fn check_own(spec: &DiskSpec) -> Result<CheckedDisk> {
    look_at(spec, true)
}

fn look_at(spec: &DiskSpec, own: bool) -> Result<CheckedDisk> {
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
        let kind = file.metadata().map_err(Error::io("look at", path))?.file_type();
        let storage = Storage::of(kind).ok_or_else(|| bad("is neither a file nor a block device"))?;
        if format == Format::Qcow2 {
            let mut header = Vec::new();
            file.by_ref().take(80).read_to_end(&mut header).map_err(Error::io("read", path))?;
            check_qcow2(&header).map_err(bad)?;
        }
        Ok(Self { format, storage, writable, file })
    }

    fn protocol(&self, set: usize) -> Value {
        json!({
            "driver": self.storage.driver(),
            "filename": format!("/dev/fdset/{set}"),
            "read-only": !self.writable,
            "discard": "unmap",
        })
    }
}

/// An image file as QEMU gets it.
pub(crate) fn open(path: &Path, writable: bool) -> Result<File> {
    OpenOptions::new().read(true).write(writable).open(path).map_err(Error::io("open", path))
}

impl CheckedDisk {
    pub fn spec(&self) -> &DiskSpec {
        &self.spec
    }

    /// QEMU's description of the `index`th block device; the image under an overlay is named [`backing_node`].
    pub(crate) fn blockdev(&self, index: usize) -> Value {
        let node = disk_node(index);
        let mut blockdev = json!({
            "node-name": node,
            "driver": self.image.format.driver(),
            "discard": "unmap",
            "detect-zeroes": "unmap",
            "file": self.image.protocol(image_set(index)),
        });
        if self.image.format == Format::Qcow2 {
            // the header was checked; should it change before QEMU reads it, this still holds
            blockdev["backing"] = Value::Null;
        }
        if let Some(image) = &self.backing {
            let mut backing = json!({
                "node-name": backing_node(&node),
                "driver": image.format.driver(),
                "read-only": true,
                "discard": "unmap",
                "file": image.protocol(backing_set(index)),
            });
            if image.format == Format::Qcow2 {
                backing["backing"] = Value::Null;
            }
            blockdev["backing"] = backing;
        }
        blockdev
    }

    /// The descriptor sets that QEMU knows the `index`th disk's images by, in the order of [`CheckedDisk::into_files`].
    pub(crate) fn sets(&self, index: usize) -> Vec<usize> {
        let mut sets = vec![image_set(index)];
        sets.extend(self.backing.as_ref().map(|_| backing_set(index)));
        sets
    }

    /// Those of the sets that are of no use once the disk is in use. QEMU opens the image under a VM's own overlay
    /// anew when it merges, so that one stays.
    pub(crate) fn spent_sets(&self, index: usize) -> Vec<usize> {
        let mut sets = vec![image_set(index)];
        sets.extend(self.backing.as_ref().filter(|image| !image.writable).map(|_| backing_set(index)));
        sets
    }

    /// The images that may be written to.
    pub(crate) fn written(&self) -> Result<Vec<FileId>> {
        let images = [Some(&self.image), self.backing.as_ref()].into_iter().flatten();
        images
            .filter(|image| image.writable)
            .map(|image| {
                image.file.metadata().map(|m| file_id(&m)).map_err(Error::io("look at", self.spec.source.path()))
            })
            .collect()
    }

    /// The images. Locks on them are QEMU's as soon as nobody else has these descriptors.
    pub(crate) fn into_files(self) -> Vec<OwnedFd> {
        [Some(self.image), self.backing].into_iter().flatten().map(|image| image.file.into()).collect()
    }
}

/// The node under the overlay `node`.
pub(crate) fn backing_node(node: &str) -> String {
    format!("{node}-backing")
}

/// Looks at the first 80 bytes of a qcow2 image (docs/interop/qcow2.rst in QEMU's sources).
///
/// # Errors
/// Why it is refused: above all, that it names another file.
pub fn check_qcow2(header: &[u8]) -> std::result::Result<(), &'static str> {
    const DATA_FILE: u64 = 1 << 2;
    let be32 = |at: usize| header.get(at..at + 4)?.try_into().ok().map(u32::from_be_bytes);
    let be64 = |at: usize| header.get(at..at + 8)?.try_into().ok().map(u64::from_be_bytes);
    if !header.starts_with(b"QFI\xfb") {
        return Err("is not qcow2");
    }
    if be64(8) != Some(0) {
        return Err("has a backing file, which is never followed");
    }
    match be32(4) {
        Some(2) => Ok(()),
        Some(3) => match be64(72) {
            Some(features) if features & DATA_FILE == 0 => Ok(()),
            Some(_) => Err("has an external data file, which is never followed"),
            None => Err("is cut off in its header"),
        },
        _ => Err("is of an unknown qcow2 version"),
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
