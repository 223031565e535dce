//! A disk as QEMU gets it: block nodes over descriptor sets, and a device behind a root port.

use image::Format;
use serde_json::{Value, json};

use super::file_id::{FileId, file_id};
use super::nodes::{backing_node, backing_set, disk_id, disk_node, image_set};
use super::ports;
use crate::disk::{CheckedDisk, Image};
use crate::error::{Error, Result};
use crate::spec::DiskSpec;

/// QEMU's description of the `index`th block device; the image under an overlay is named [`backing_node`].
pub(crate) fn blockdev(disk: &CheckedDisk, index: usize) -> Value {
    let (node, image) = (disk_node(index), disk.image());
    let mut blockdev = json!({
        "node-name": node,
        "driver": image.format.driver(),
        "discard": "unmap",
        "detect-zeroes": "unmap",
        "file": protocol(image, image_set(index)),
    });
    if image.format == Format::Qcow2 {
        // The header was checked; if it changes before QEMU reads it, this still holds.
        blockdev["backing"] = Value::Null;
    }
    if let Some(image) = disk.backing() {
        let mut backing = json!({
            "node-name": backing_node(&node),
            "driver": image.format.driver(),
            "read-only": true,
            "discard": "unmap",
            "file": protocol(image, backing_set(index)),
        });
        if image.format == Format::Qcow2 {
            backing["backing"] = Value::Null;
        }
        blockdev["backing"] = backing;
    }
    blockdev
}

fn protocol(image: &Image, set: usize) -> Value {
    json!({
        "driver": image.storage.driver(), "filename": format!("/dev/fdset/{set}"), "read-only": !image.writable, "discard": "unmap",
    })
}

/// The descriptor sets by which QEMU knows the `index`th disk's images, in the order of [`CheckedDisk::into_files`].
pub(crate) fn sets(disk: &CheckedDisk, index: usize) -> Vec<usize> {
    let mut sets = vec![image_set(index)];
    sets.extend(disk.backing().map(|_| backing_set(index)));
    sets
}

/// Those of the sets that can be closed once the disk is in use. QEMU opens the image under a VM's own overlay again
/// when it merges, so that one stays.
pub(crate) fn spent_sets(disk: &CheckedDisk, index: usize) -> Vec<usize> {
    let mut sets = vec![image_set(index)];
    sets.extend(disk.backing().filter(|image| !image.writable).map(|_| backing_set(index)));
    sets
}

/// The images that QEMU may write to.
pub(crate) fn written(disk: &CheckedDisk) -> Result<Vec<FileId>> {
    let images = [Some(disk.image()), disk.backing()].into_iter().flatten();
    images
        .filter(|image| image.writable)
        .map(|image| {
            image.file.metadata().map(|m| file_id(&m)).map_err(Error::io("inspect", disk.spec().source.path()))
        })
        .collect()
}

/// QEMU's description of the `index`th disk's device, behind a root port.
pub(crate) fn disk_device(disk: &DiskSpec, index: usize, port: usize) -> Value {
    // Always stated, so that it never follows from the device behind the image.
    let block = if disk.opaque { DiskSpec::OPAQUE_BLOCK } else { 512 };
    json!({
        "driver": "virtio-blk-pci",
        "id": disk_id(index),
        "drive": disk_node(index),
        "bus": ports::bus(port),
        "serial": disk.serial_seen(),
        "logical_block_size": block,
        "physical_block_size": block,
    })
}
