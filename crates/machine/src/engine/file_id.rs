//! What identifies a file, whatever it is called.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;

/// Device and inode.
pub(crate) type FileId = (u64, u64);

pub(crate) fn file_id(metadata: &Metadata) -> FileId {
    (metadata.dev(), metadata.ino())
}
