//! Blocks in memory for tests: sparse, in two halves (written, durable), with a power cut to order.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::io;

use image::blocks::{Blocks, check_range};

const PAGE: u64 = 4096;

#[derive(Clone)]
pub(crate) struct Memory {
    size: u64,
    volatile: BTreeMap<u64, Vec<u8>>,
    durable: BTreeMap<u64, Vec<u8>>,
    /// Bytes that may still be written before the power goes.
    budget: Option<usize>,
}

impl Memory {
    pub(crate) fn new(size: u64) -> Self {
        Self { size, volatile: BTreeMap::new(), durable: BTreeMap::new(), budget: None }
    }

    /// After `budget` more bytes the write fails; what was written by then stays.
    pub(crate) fn cut_after(&mut self, budget: usize) {
        self.budget = Some(budget);
    }

    /// Power is back. What was written before the cut may all have reached the disk.
    pub(crate) fn restore(&mut self) {
        self.budget = None;
    }

    /// Power is back, and nothing since the last flush has reached the disk.
    pub(crate) fn restore_durable(&mut self) {
        self.budget = None;
        self.volatile = self.durable.clone();
    }

    pub(crate) fn get(&mut self, offset: u64, len: usize) -> Vec<u8> {
        let mut out = vec![0; len];
        self.read_at(offset, &mut out).unwrap();
        out
    }

    pub(crate) fn flip(&mut self, offset: u64, mask: u8) {
        let byte = self.get(offset, 1)[0];
        self.write_at(offset, &[byte ^ mask]).unwrap();
    }
}

impl Blocks for Memory {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        check_range(self.size, offset, buf.len())?;
        for (at, byte) in (offset..).zip(buf) {
            *byte = self.volatile.get(&(at / PAGE)).map_or(0, |page| page[(at % PAGE) as usize]);
        }
        Ok(())
    }

    fn write_at(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        check_range(self.size, offset, data.len())?;
        let count = self.budget.map_or(data.len(), |left| left.min(data.len()));
        for (at, byte) in (offset..).zip(&data[..count]) {
            let page = self.volatile.entry(at / PAGE).or_insert_with(|| vec![0; PAGE as usize]);
            page[(at % PAGE) as usize] = *byte;
        }
        if let Some(left) = &mut self.budget {
            *left -= count;
        }
        if count < data.len() {
            return Err(io::Error::other("power cut"));
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.budget == Some(0) {
            return Err(io::Error::other("power cut"));
        }
        self.durable = self.volatile.clone();
        Ok(())
    }
}
