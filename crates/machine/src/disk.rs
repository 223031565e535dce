//! Disk images as QEMU gets them, and what an image must not bring along.
//!
//! A qcow2 header can name other files (a backing file, a data file) that QEMU would open with the
//! host's rights. An image that came from a tenant must not make the host read its own files.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use serde_json::{Value, json};

use crate::spec::{Backing, DiskFormat, DiskSpec};
use crate::{Error, Result};

/// A disk whose image, and the one under it, were looked at.
#[derive(Clone, Debug)]
pub struct CheckedDisk {
    spec: DiskSpec,
    block_device: bool,
    backing: Option<CheckedBacking>,
}

#[derive(Clone, Debug)]
struct CheckedBacking {
    image: Backing,
    block_device: bool,
}

/// Looks at a disk's images: each is a file or a block device, and names no other file.
pub fn check(spec: &DiskSpec) -> Result<CheckedDisk> {
    spec.validate()?;
    let block_device = check_image(&spec.path, spec.format)?;
    let backing = match &spec.backing {
        None => None,
        Some(image) => {
            let block_device = check_image(&image.path, image.format)?;
            Some(CheckedBacking { image: image.clone(), block_device })
        }
    };
    Ok(CheckedDisk { spec: spec.clone(), block_device, backing })
}

/// Whether the image is a block device.
fn check_image(path: &Path, format: DiskFormat) -> Result<bool> {
    let bad = |reason| Error::DiskImage { path: path.to_owned(), reason };
    let mut file = File::open(path).map_err(Error::io("open", path))?;
    let kind = file.metadata().map_err(Error::io("look at", path))?.file_type();
    let block_device = kind.is_block_device();
    if !block_device && !kind.is_file() {
        return Err(bad("is neither a file nor a block device"));
    }
    if format == DiskFormat::Qcow2 {
        let mut header = Vec::new();
        file.by_ref().take(80).read_to_end(&mut header).map_err(Error::io("read", path))?;
        check_qcow2(&header).map_err(bad)?;
    }
    Ok(block_device)
}

impl CheckedDisk {
    pub fn spec(&self) -> &DiskSpec {
        &self.spec
    }

    /// QEMU's description of the block device, named `node`; the image under an overlay is named
    /// [`backing_node`].
    pub(crate) fn blockdev(&self, node: &str) -> Value {
        let mut blockdev = json!({
            "node-name": node,
            "driver": self.spec.format.driver(),
            "discard": "unmap",
            "detect-zeroes": "unmap",
            "file": {"driver": protocol(self.block_device), "filename": self.spec.path, "discard": "unmap"},
        });
        if self.spec.format == DiskFormat::Qcow2 {
            // the header was checked; should it change before QEMU reads it, this still holds
            blockdev["backing"] = Value::Null;
        }
        if let Some(CheckedBacking { image, block_device }) = &self.backing {
            let mut backing = json!({
                "node-name": backing_node(node),
                "driver": image.format.driver(),
                "read-only": true,
                "discard": "unmap",
                "file": {
                    "driver": protocol(*block_device), "filename": image.path, "auto-read-only": true, "discard": "unmap",
                },
            });
            if image.format == DiskFormat::Qcow2 {
                backing["backing"] = Value::Null;
            }
            blockdev["backing"] = backing;
        }
        blockdev
    }
}

/// The node under the overlay `node`.
pub(crate) fn backing_node(node: &str) -> String {
    format!("{node}-backing")
}

fn protocol(block_device: bool) -> &'static str {
    if block_device { "host_device" } else { "file" }
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
