//! The interface to whatever holds a disk's bytes: a block device, a plain file, an image behind QEMU.
//!
//! Layout, manifest and state of an RG disk are read and written only through the trait [`Blocks`], so the same strict
//! parsers serve the host (over NBD) and the garage (over the kernel's device), and tests put faults underneath.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileExt;

/// A run of bytes of known size.
pub trait Blocks {
    /// Size in bytes.
    fn size(&self) -> u64;
    /// Fills `buf` from `offset`.
    ///
    /// # Errors
    /// `InvalidInput` past the end, what the device answers.
    fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> io::Result<()>;
    /// Writes all of `data` at `offset`.
    ///
    /// # Errors
    /// `InvalidInput` past the end, what the device answers.
    fn write_at(&mut self, offset: u64, data: &[u8]) -> io::Result<()>;
    /// Returns when everything written is durable.
    ///
    /// # Errors
    /// What the device answers.
    fn flush(&mut self) -> io::Result<()>;
}

/// A block device or a plain file. Never grows.
#[derive(Debug)]
pub struct FileBlocks {
    file: File,
    size: u64,
}

impl FileBlocks {
    /// Determines the size by seeking, which also works for block devices.
    ///
    /// # Errors
    /// What the system answers.
    pub fn new(mut file: File) -> io::Result<Self> {
        let size = file.seek(SeekFrom::End(0))?;
        Ok(Self { file, size })
    }
}

impl Blocks for FileBlocks {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        check_range(self.size, offset, buf.len())?;
        self.file.read_exact_at(buf, offset)
    }

    fn write_at(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        check_range(self.size, offset, data.len())?;
        fault::write()?;
        self.file.write_all_at(data, offset)
    }

    fn flush(&mut self) -> io::Result<()> {
        fault::write()?;
        self.file.sync_all()
    }
}

/// A part of other blocks, with its own offset 0; nothing outside it can be reached.
pub struct Slice<'a> {
    inner: &'a mut dyn Blocks,
    offset: u64,
    size: u64,
}

impl<'a> Slice<'a> {
    /// `size` bytes from `offset`, which must lie inside `inner`.
    ///
    /// # Errors
    /// `InvalidInput` when they do not.
    pub fn new(inner: &'a mut dyn Blocks, offset: u64, size: u64) -> io::Result<Self> {
        match offset.checked_add(size) {
            Some(end) if end <= inner.size() => Ok(Self { inner, offset, size }),
            _ => Err(out_of_range()),
        }
    }
}

impl Blocks for Slice<'_> {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        check_range(self.size, offset, buf.len())?;
        // offset <= size, and new() checked that offset + size does not overflow.
        self.inner.read_at(self.offset + offset, buf)
    }

    fn write_at(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        check_range(self.size, offset, data.len())?;
        self.inner.write_at(self.offset + offset, data)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Refuses an access that does not lie wholly inside `size` bytes.
///
/// # Errors
/// `InvalidInput`.
pub fn check_range(size: u64, offset: u64, len: usize) -> io::Result<()> {
    let end = u64::try_from(len).ok().and_then(|len| offset.checked_add(len));
    match end {
        Some(end) if end <= size => Ok(()),
        _ => Err(out_of_range()),
    }
}

fn out_of_range() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "access past the end")
}
