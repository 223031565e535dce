//! Where a disk's bytes are, and in which format: the seam at which a new kind of storage joins.
//!
//! A [`Source`] names an image. What it names is a [`Storage`]: a file or a block device today. Whoever opens an image
//! asks the storage for QEMU's driver, so another kind is a variant of [`Storage`] and its driver.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::FileType;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Format of a disk image. Always stated, never guessed from the contents. In JSON: `raw`, `qcow2` or `vhdx`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// The disk's bytes as they are.
    Raw,
    /// QEMU's format.
    Qcow2,
    /// Hyper-V's format (MS-VHDX).
    Vhdx,
}

/// The text names none of the formats that Drydock supports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a disk image is raw, qcow2 or vhdx")]
pub struct UnknownFormat;

impl Format {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Raw, Self::Qcow2, Self::Vhdx];

    /// QEMU's name for it, which is also the one in files.
    #[must_use]
    pub fn driver(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
            Self::Vhdx => "vhdx",
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.driver())
    }
}

impl FromStr for Format {
    type Err = UnknownFormat;

    fn from_str(text: &str) -> std::result::Result<Self, UnknownFormat> {
        Self::ALL.into_iter().find(|format| format.driver() == text).ok_or(UnknownFormat)
    }
}

/// What holds an image's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Storage {
    /// A regular file, whose holes read as zeros.
    File,
    /// A block device, all of which is the image.
    BlockDevice,
}

impl Storage {
    /// What a file of this type is, if it can hold an image.
    #[must_use]
    pub fn of(kind: FileType) -> Option<Self> {
        if kind.is_block_device() {
            Some(Self::BlockDevice)
        } else if kind.is_file() {
            Some(Self::File)
        } else {
            None
        }
    }

    /// QEMU's protocol driver for it.
    #[must_use]
    pub fn driver(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::BlockDevice => "host_device",
        }
    }
}

/// An image: where it is and in which format. In JSON: `path` and `format`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    path: PathBuf,
    format: Format,
}

/// A part of a disk, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// First byte.
    pub offset: u64,
    /// Length.
    pub size: u64,
}

impl Source {
    /// The image of this format at `path`.
    pub fn new(path: impl Into<PathBuf>, format: Format) -> Self {
        Self { path: path.into(), format }
    }

    /// The file or block device.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its format.
    #[must_use]
    pub fn format(&self) -> Format {
        self.format
    }

    /// What is at the path now.
    ///
    /// # Errors
    /// [`Error::Io`] when nothing is there, or something that can hold no image.
    pub fn storage(&self) -> Result<Storage> {
        let failed = || Error::io(&self.path, "inspect");
        let kind = std::fs::metadata(&self.path).map_err(failed())?.file_type();
        Storage::of(kind).ok_or_else(|| failed()(std::io::Error::other("it is neither a file nor a block device")))
    }

    /// The `--image-opts` text for the image, or for a part of its disk seen as a raw disk.
    pub(crate) fn options(&self, range: Option<Range>) -> Result<OsString> {
        Ok(image_options(self, self.storage()?, range))
    }
}

/// Formats are always given, and names go through a protocol driver's `filename`, so that neither a disk's contents
/// nor a file's name can make QEMU open something else.
fn image_options(source: &Source, storage: Storage, range: Option<Range>) -> OsString {
    let driver = source.format.driver();
    let (options, prefix) = match range {
        None => (format!("driver={driver}"), "file"),
        Some(Range { offset, size }) => {
            (format!("driver=raw,offset={offset},size={size},file.driver={driver}"), "file.file")
        }
    };
    let mut out = format!("{options},{prefix}.driver={},{prefix}.filename=", storage.driver()).into_bytes();
    for byte in source.path.as_os_str().as_bytes() {
        // A comma ends a value unless doubled.
        if *byte == b',' {
            out.push(b',');
        }
        out.push(*byte);
    }
    OsString::from_vec(out)
}

/// The options of an image as those of a backing image. A comma in a file's name is doubled, so only single ones
/// separate options.
pub(crate) fn as_backing(options: &OsStr) -> OsString {
    let mut out = b"backing.".to_vec();
    let mut rest = options.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        out.push(byte);
        rest = after;
        if byte == b',' {
            match rest.split_first() {
                Some((b',', after)) => {
                    out.push(b',');
                    rest = after;
                }
                _ => out.extend_from_slice(b"backing."),
            }
        }
    }
    OsString::from_vec(out)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn names_cannot_add_options() {
        let source = Source::new("/x/a,file.driver=nbd", Format::Vhdx);
        assert_eq!(
            image_options(&source, Storage::File, Some(Range { offset: 1, size: 2 })),
            "driver=raw,offset=1,size=2,file.driver=vhdx,file.file.driver=file,\
             file.file.filename=/x/a,,file.driver=nbd"
        );
        let source = Source::new("b", Format::Qcow2);
        assert_eq!(image_options(&source, Storage::File, None), "driver=qcow2,file.driver=file,file.filename=b");
        assert_eq!(
            image_options(&source, Storage::BlockDevice, None),
            "driver=qcow2,file.driver=host_device,file.filename=b"
        );
    }

    #[test]
    fn names_cannot_add_options_to_a_backing_image() {
        let source = Source::new("/x/a,,b,file.driver=nbd", Format::Raw);
        assert_eq!(
            as_backing(&image_options(&source, Storage::File, None)),
            "backing.driver=raw,backing.file.driver=file,backing.file.filename=/x/a,,,,b,,file.driver=nbd"
        );
    }

    #[test]
    fn formats_have_one_spelling() {
        for format in Format::ALL {
            assert_eq!(format.to_string().parse(), Ok(format));
            assert_eq!(serde_json::to_string(&format).unwrap(), format!("\"{format}\""));
        }
        for other in ["", "Raw", "vmdk", "raw "] {
            assert_eq!(other.parse::<Format>(), Err(UnknownFormat), "{other}");
        }
    }

    #[test]
    fn a_directory_holds_no_image() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Source::new(dir.path(), Format::Raw).storage().is_err());
        assert!(Source::new(dir.path().join("none"), Format::Raw).storage().is_err());
        assert_eq!(Source::new("Cargo.toml", Format::Raw).storage().unwrap(), Storage::File);
    }
}
