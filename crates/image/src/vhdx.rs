//! Lays out a fresh dynamic VHDX (MS-VHDX) in a file, so that a copy is one `copy_file_range` for each piece of data:
//! as fast as `cp`, and on a file system that shares extents (XFS, btrfs) without moving any data.
//!
//! ```text
//! 0         64 KiB   128 KiB  192 KiB   256 KiB   1 MiB   2 MiB      3 MiB   whole MiB
//! │ identifier │ header │ header │ regions │ regions │ log │ metadata │ BAT … │ payload blocks in the order of first use
//! ```
//! The file is a VHDX once [`Writer::finish`] has returned; QEMU does everything after that.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crc::{CRC_32_ISCSI, Crc};
use rustix::io::Errno;
use uuid::Uuid;

use crate::blocks::{Blocks, check_range};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
/// MS-VHDX 2.2: what every structure is aligned to.
const HEADER_SIZE: usize = 4 << 10;
const TABLE_SIZE: usize = 64 << 10;
const LOG_OFFSET: u64 = MIB;
const LOG_LENGTH: u32 = 1 << 20;
const METADATA_OFFSET: u64 = 2 * MIB;
const METADATA_LENGTH: u32 = 1 << 20;
const BAT_OFFSET: u64 = 3 * MIB;
const SECTOR: u64 = 512;
/// MS-VHDX 2.5.1.1: the block is in the file, all of it.
const PAYLOAD_BLOCK_FULLY_PRESENT: u64 = 6;
/// Bytes written at once where the kernel cannot copy.
const PIECE: usize = 1 << 20;

/// MS-VHDX calls it CRC-32C.
const CRC: Crc<u32> = Crc::<u32>::new(&CRC_32_ISCSI);

/// MS-VHDX 2.2.3.2: the regions.
const BAT_REGION: Uuid = Uuid::from_u128(0x2dc27766_f623_4200_9d64_115e9bfd4a08);
const METADATA_REGION: Uuid = Uuid::from_u128(0x8b7ca206_4790_4b9a_b8fe_575f050f886e);
/// MS-VHDX 2.6.2: the metadata items.
const FILE_PARAMETERS: Uuid = Uuid::from_u128(0xcaa16737_fa36_4d43_b3b6_33f0aa44e76b);
const VIRTUAL_DISK_SIZE: Uuid = Uuid::from_u128(0x2fa54224_cd1b_4876_b211_5dbed83bf4b8);
const VIRTUAL_DISK_ID: Uuid = Uuid::from_u128(0xbeca12ab_b2e6_4523_93ef_c309e000c746);
const LOGICAL_SECTOR_SIZE: Uuid = Uuid::from_u128(0x8141bf1d_a96f_4709_ba47_f233a8faab5f);
const PHYSICAL_SECTOR_SIZE: Uuid = Uuid::from_u128(0xcda348c7_445d_4471_9cc9_e9885251c556);
/// MS-VHDX 2.6.1.2: flags of an item.
const IS_VIRTUAL_DISK: u32 = 2;
const IS_REQUIRED: u32 = 4;

/// The block size in bytes for a VHDX of `total` bytes. Small blocks keep a mostly empty disk small on file systems and
/// transports without holes; large disks get larger blocks, because QEMU keeps 8 bytes in memory for each.
#[must_use]
pub fn block_size(total: u64) -> u64 {
    const TIB: u64 = 1 << 40;
    if total <= TIB { 1 << 20 } else { 32 << 20 }
}

/// A VHDX that is being made: a disk of zeros until something is written.
pub struct Writer<'a> {
    file: &'a File,
    size: u64,
    block_size: u64,
    /// Where in the file each block is; 0 for none, which no block can be.
    blocks: Vec<u64>,
    /// Where the next block goes.
    end: u64,
}

impl<'a> Writer<'a> {
    /// Begins a VHDX of `size` bytes, a multiple of 512 and at most 64 TiB, in an empty file.
    ///
    /// # Errors
    /// `InvalidInput` when it has more blocks than memory can address.
    pub fn new(file: &'a File, size: u64, block_size: u64) -> io::Result<Self> {
        let count = usize::try_from(size.div_ceil(block_size)).map_err(|_| too_large())?;
        let mut writer = Self { file, size, block_size, blocks: vec![0; count], end: 0 };
        writer.end = BAT_OFFSET + writer.bat_length();
        Ok(writer)
    }

    /// Copies `length` bytes of another file from `offset` to `at` on the disk, inside the kernel where possible.
    ///
    /// # Errors
    /// `UnexpectedEof` when the source is shorter, `InvalidInput` past the end of the disk, what the system answers.
    pub fn copy_from(&mut self, source: &File, mut offset: u64, mut at: u64, mut length: u64) -> io::Result<()> {
        check_range(self.size, at, usize::try_from(length).map_err(|_| too_large())?)?;
        while length > 0 {
            let piece = length.min(self.block_size - at % self.block_size);
            let target = self.place(at)?;
            fault::write()?;
            copy_range(source, offset, self.file, target, piece)?;
            (offset, at, length) = (offset + piece, at + piece, length - piece);
        }
        Ok(())
    }

    /// Writes everything that makes the file a VHDX. The caller flushes it.
    ///
    /// # Errors
    /// What the system answers.
    pub fn finish(self) -> io::Result<()> {
        // MS-VHDX 2.2: the payload blocks are whole, and the file ends with the last one.
        self.file.set_len(self.end)?;
        self.write_bat()?;
        self.put(METADATA_OFFSET, &self.metadata())?;
        let regions = self.regions();
        self.put(192 * KIB, &regions)?;
        self.put(256 * KIB, &regions)?;
        let (file_write, data_write) = (Uuid::new_v4(), Uuid::new_v4());
        // MS-VHDX 2.2.2: of two valid headers the one with the larger number counts.
        self.put(64 * KIB, &header(1, file_write, data_write))?;
        self.put(128 * KIB, &header(2, file_write, data_write))?;
        let mut identifier = b"vhdxfile".to_vec();
        identifier.extend("drydock".encode_utf16().flat_map(u16::to_le_bytes));
        self.put(0, &identifier)
    }

    /// MS-VHDX 2.5: blocks of one chunk, then an entry for their sector bitmap, which only a differencing disk has.
    fn chunk_ratio(&self) -> u64 {
        (SECTOR << 23) / self.block_size
    }

    /// Bytes of the BAT, in whole MiB.
    fn bat_length(&self) -> u64 {
        let blocks = self.blocks.len() as u64;
        let entries = blocks + blocks.saturating_sub(1) / self.chunk_ratio();
        (entries * 8).next_multiple_of(MIB).max(MIB)
    }

    fn write_bat(&self) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(PIECE);
        let mut at = BAT_OFFSET;
        let ratio = usize::try_from(self.chunk_ratio()).map_err(|_| too_large())?;
        for chunk in self.blocks.chunks(ratio) {
            for offset in chunk {
                let entry = if *offset == 0 { 0 } else { offset | PAYLOAD_BLOCK_FULLY_PRESENT };
                bytes.extend_from_slice(&entry.to_le_bytes());
            }
            bytes.extend_from_slice(&[0; 8]);
            self.put(at, &bytes)?;
            at += bytes.len() as u64;
            bytes.clear();
        }
        Ok(())
    }

    fn metadata(&self) -> Vec<u8> {
        let block_size = u32::try_from(self.block_size).unwrap_or(u32::MAX);
        let parameters = [block_size.to_le_bytes(), [0; 4]].concat();
        let items = [
            (FILE_PARAMETERS, IS_REQUIRED, parameters),
            (VIRTUAL_DISK_SIZE, IS_REQUIRED | IS_VIRTUAL_DISK, self.size.to_le_bytes().to_vec()),
            (VIRTUAL_DISK_ID, IS_REQUIRED | IS_VIRTUAL_DISK, Uuid::new_v4().to_bytes_le().to_vec()),
            (LOGICAL_SECTOR_SIZE, IS_REQUIRED | IS_VIRTUAL_DISK, 512u32.to_le_bytes().to_vec()),
            (PHYSICAL_SECTOR_SIZE, IS_REQUIRED | IS_VIRTUAL_DISK, 4096u32.to_le_bytes().to_vec()),
        ];
        let mut table = b"metadata".to_vec();
        table.extend_from_slice(&[0; 2]);
        table.extend_from_slice(&(items.len() as u16).to_le_bytes());
        table.extend_from_slice(&[0; 20]);
        let mut values = Vec::new();
        for (id, flags, value) in &items {
            table.extend_from_slice(&id.to_bytes_le());
            for word in [(TABLE_SIZE + values.len()) as u32, value.len() as u32, *flags, 0] {
                table.extend_from_slice(&word.to_le_bytes());
            }
            values.extend_from_slice(value);
        }
        table.resize(TABLE_SIZE, 0);
        table.extend_from_slice(&values);
        table
    }

    fn regions(&self) -> Vec<u8> {
        let mut table = b"regi".to_vec();
        table.extend_from_slice(&[0; 4]);
        table.extend_from_slice(&2u32.to_le_bytes());
        table.extend_from_slice(&[0; 4]);
        let bat = u32::try_from(self.bat_length()).unwrap_or(u32::MAX);
        for (id, offset, length) in [(BAT_REGION, BAT_OFFSET, bat), (METADATA_REGION, METADATA_OFFSET, METADATA_LENGTH)]
        {
            table.extend_from_slice(&id.to_bytes_le());
            table.extend_from_slice(&offset.to_le_bytes());
            table.extend_from_slice(&length.to_le_bytes());
            table.extend_from_slice(&1u32.to_le_bytes());
        }
        table.resize(TABLE_SIZE, 0);
        checksummed(table)
    }

    /// Where in the file the byte `at` of the disk is; a block is allocated if it has none.
    fn place(&mut self, at: u64) -> io::Result<u64> {
        let index = usize::try_from(at / self.block_size).map_err(|_| too_large())?;
        let block = self.blocks.get_mut(index).ok_or_else(too_large)?;
        if *block == 0 {
            *block = self.end;
            self.end += self.block_size;
        }
        Ok(*block + at % self.block_size)
    }

    fn put(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        fault::write()?;
        self.file.write_all_at(bytes, offset)
    }
}

impl Blocks for Writer<'_> {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&mut self, mut offset: u64, buf: &mut [u8]) -> io::Result<()> {
        check_range(self.size, offset, buf.len())?;
        let mut rest = buf;
        while !rest.is_empty() {
            let piece =
                usize::try_from(self.block_size - offset % self.block_size).map_or(rest.len(), |n| n.min(rest.len()));
            let (now, later) = rest.split_at_mut(piece);
            let index = usize::try_from(offset / self.block_size).map_err(|_| too_large())?;
            match self.blocks.get(index) {
                Some(0) | None => now.fill(0),
                // The end of the file may not have been written yet.
                Some(block) => read_padded(self.file, block + offset % self.block_size, now)?,
            }
            offset += piece as u64;
            rest = later;
        }
        Ok(())
    }

    fn write_at(&mut self, mut offset: u64, data: &[u8]) -> io::Result<()> {
        check_range(self.size, offset, data.len())?;
        let mut rest = data;
        while !rest.is_empty() {
            let piece =
                usize::try_from(self.block_size - offset % self.block_size).map_or(rest.len(), |n| n.min(rest.len()));
            let (now, later) = rest.split_at(piece);
            let place = self.place(offset)?;
            self.put(place, now)?;
            offset += piece as u64;
            rest = later;
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        fault::write()?;
        self.file.sync_all()
    }
}

/// Reads the file, and zeros past its end.
fn read_padded(file: &File, mut offset: u64, mut buf: &mut [u8]) -> io::Result<()> {
    while !buf.is_empty() {
        match file.read_at(buf, offset)? {
            0 => {
                buf.fill(0);
                return Ok(());
            }
            n => {
                offset += n as u64;
                buf = &mut buf[n..];
            }
        }
    }
    Ok(())
}

fn header(sequence: u64, file_write: Uuid, data_write: Uuid) -> Vec<u8> {
    let mut bytes = b"head".to_vec();
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&sequence.to_le_bytes());
    bytes.extend_from_slice(&file_write.to_bytes_le());
    bytes.extend_from_slice(&data_write.to_bytes_le());
    // No log to replay.
    bytes.extend_from_slice(&[0; 16]);
    bytes.extend_from_slice(&0u16.to_le_bytes());
    bytes.extend_from_slice(&1u16.to_le_bytes());
    bytes.extend_from_slice(&LOG_LENGTH.to_le_bytes());
    bytes.extend_from_slice(&LOG_OFFSET.to_le_bytes());
    bytes.resize(HEADER_SIZE, 0);
    checksummed(bytes)
}

/// Puts the checksum over the whole structure into bytes 4 to 8, which count as zero.
fn checksummed(mut bytes: Vec<u8>) -> Vec<u8> {
    let sum = CRC.checksum(&bytes);
    bytes[4..8].copy_from_slice(&sum.to_le_bytes());
    bytes
}

/// `copy_file_range`, which shares extents where the file system can; reads and writes where the kernel cannot copy
/// between these two files.
fn copy_range(from: &File, mut offset: u64, to: &File, mut at: u64, length: u64) -> io::Result<()> {
    let mut left = usize::try_from(length).map_err(|_| too_large())?;
    while left > 0 {
        match rustix::fs::copy_file_range(from, Some(&mut offset), to, Some(&mut at), left) {
            Ok(0) => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the source is shorter than it was")),
            Ok(n) => left -= n,
            Err(Errno::INTR) => {}
            Err(Errno::XDEV | Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS) => {
                return copy_by_hand(from, offset, to, at, left);
            }
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

fn copy_by_hand(from: &File, mut offset: u64, to: &File, mut at: u64, mut left: usize) -> io::Result<()> {
    let mut buffer = vec![0; left.min(PIECE)];
    while left > 0 {
        let now = left.min(buffer.len());
        from.read_exact_at(&mut buffer[..now], offset)?;
        to.write_all_at(&buffer[..now], at)?;
        (offset, at, left) = (offset + now as u64, at + now as u64, left - now);
    }
    Ok(())
}

fn too_large() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "larger than a VHDX can be")
}

#[cfg(test)]
mod tests;
