//! How QEMU's block nodes, devices and descriptor sets are named. A disk's index is never used twice, so no name is.

/// The descriptor set of the UEFI variables.
pub(crate) const VARS_SET: usize = 1;

/// The descriptor set of the `index`th disk's image.
pub(crate) fn image_set(index: usize) -> usize {
    VARS_SET + 1 + 2 * index
}

/// The descriptor set of the image under it.
pub(crate) fn backing_set(index: usize) -> usize {
    image_set(index) + 1
}

/// The block node of the `index`th disk's image.
pub(crate) fn disk_node(index: usize) -> String {
    format!("disk{index}")
}

/// The block node under the overlay `node`.
pub(crate) fn backing_node(node: &str) -> String {
    format!("{node}-backing")
}

/// The device of the `index`th disk.
pub(crate) fn disk_id(index: usize) -> String {
    format!("disk{index}-device")
}
