//! A disk in memory of which only what was written takes room.

use std::io;

use image::blocks::Blocks;

/// Zeros, and what was written over them.
pub(crate) struct Sparse {
    size: u64,
    /// In the order in which they were written.
    pieces: Vec<(u64, Vec<u8>)>,
}

impl Sparse {
    pub(crate) fn new(size: u64) -> Self {
        Self { size, pieces: Vec::new() }
    }

    pub(crate) fn with(mut self, offset: u64, bytes: &[u8]) -> Self {
        self.write_at(offset, bytes).unwrap();
        self
    }

    fn check(&self, offset: u64, length: usize) -> io::Result<()> {
        match offset.checked_add(length as u64) {
            Some(end) if end <= self.size => Ok(()),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

impl Blocks for Sparse {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.check(offset, buf.len())?;
        buf.fill(0);
        let end = offset + buf.len() as u64;
        for (start, bytes) in &self.pieces {
            let (from, until) = (offset.max(*start), end.min(start + bytes.len() as u64));
            if from < until {
                let (here, there) = ((from - offset) as usize, (from - start) as usize);
                let length = (until - from) as usize;
                buf[here..here + length].copy_from_slice(&bytes[there..there + length]);
            }
        }
        Ok(())
    }

    fn write_at(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.check(offset, data.len())?;
        self.pieces.push((offset, data.to_vec()));
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
