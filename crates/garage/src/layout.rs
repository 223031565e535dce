//! Where things lie on an RG disk, and the strict GPT that says so.
//!
//! ```text
//! 0        1 MiB          5 MiB        37 MiB                             end-1 MiB      end
//! │ GPT    │ dd-manifest  │ dd-state   │ dd-disk-0 │ … │ dd-disk-63 │     │ … backup GPT │
//! ```
//!
//! In overlay mode the disks are attached separately, and it has no partitions for them.
//!
//! Partitions start on 1 MiB; a disk's partition has exactly the disk's size, because the guest's own
//! backup GPT must be found in its last sector. There is one valid encoding of a layout: the reader
//! rebuilds the GPT (UEFI 2.10 section 5.3) from what it has read and refuses any other byte.

use std::fmt;
use std::io::{self, Read, Seek, SeekFrom, Write};

use gpt::GptConfig;
use gpt::disk::LogicalBlockSize;
use gpt::mbr::ProtectiveMBR;
use gpt::partition::Partition as GptEntry;
use image::blocks::Blocks;
use uuid::Uuid;

/// 1 MiB: the alignment of every partition and of the whole disk.
pub const MIB: u64 = 1 << 20;
/// Size of `dd-manifest` in bytes.
pub const MANIFEST_SIZE: u64 = 4 * MIB;
/// Size of `dd-state` in bytes.
pub const STATE_SIZE: u64 = 32 * MIB;
/// Most disks one RG disk carries.
pub const MAX_DISKS: usize = 64;
/// Largest disk, and largest RG disk: what a VHDX can hold (MS-VHDX section 2.2, 64 TiB).
pub const MAX_SIZE: u64 = 64 << 40;
/// The partition type of all partitions of an RG disk.
pub const PARTITION_TYPE: Uuid = Uuid::from_u128(0x8e4ca25b_a1b3_4b6c_a17b_d1e8d71baf91);

const SECTOR: u64 = 512;
const MANIFEST_OFFSET: u64 = MIB;
const STATE_OFFSET: u64 = MANIFEST_OFFSET + MANIFEST_SIZE;
const DISKS_OFFSET: u64 = STATE_OFFSET + STATE_SIZE;
/// The smallest RG disk: no disk on it.
const MIN_SIZE: u64 = DISKS_OFFSET + MIB;
/// Partitions before `dd-disk-0`.
const FIXED: usize = 2;
/// MBR, header, 128 entries of 128 bytes.
const HEAD: usize = 34 * 512;
/// 128 entries, header.
const TAIL: usize = 33 * 512;

/// Why bytes are not an RG disk, or disks do not fit on one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LayoutError {
    /// More disks than [`MAX_DISKS`].
    #[error("{count} disks: an RG disk carries at most {MAX_DISKS}")]
    DiskCount {
        /// Disks that were to go onto it.
        count: usize,
    },
    /// A disk of a size that no partition can have.
    #[error("disk {index} has {size} bytes: must be a multiple of 512, from 512 bytes to 64 TiB")]
    DiskSize {
        /// The disk, from 0.
        index: usize,
        /// Its size in bytes.
        size: u64,
    },
    /// More than [`MAX_SIZE`] in all.
    #[error("the disks together are larger than a VHDX can be (64 TiB)")]
    TooLarge,
    /// The disk has a size that no RG disk has.
    #[error("an RG disk of {size} bytes is impossible: whole MiB from 38 MiB to 64 TiB")]
    TotalSize {
        /// Its size in bytes.
        size: u64,
    },
    /// A GPT header differs from the one of an RG disk (UEFI 2.10 section 5.3.2).
    #[error("{header} GPT header: field `{field}` is not what an RG disk has")]
    Header {
        /// `primary` or `backup`.
        header: &'static str,
        /// The field.
        field: &'static str,
    },
    /// The headers are right, and the rest is not a GPT.
    #[error("the GPT does not parse")]
    Gpt(#[source] gpt::GptError),
    /// Too few or too many partitions.
    #[error("{count} partitions: an RG disk has 2 to 66")]
    PartitionCount {
        /// Partitions in the GPT.
        count: usize,
    },
    /// A partition that no RG disk has there.
    #[error("partition {number}: {fault}")]
    Partition {
        /// Its number, from 1.
        number: usize,
        /// What is wrong with it.
        fault: PartitionFault,
    },
    /// A second encoding of a layout, which has only one.
    #[error("the GPT has bytes that no RG disk has (first difference at byte {offset})")]
    NotCanonical {
        /// From the start of the disk.
        offset: u64,
    },
    /// The device failed.
    #[error("the disk's GPT cannot be read or written")]
    Io(#[source] io::Error),
}

/// What is wrong with one partition entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PartitionFault {
    /// Its number does not follow the one before.
    Number,
    /// Its type is not [`PARTITION_TYPE`].
    Type,
    /// Its name is not the one that belongs at this place.
    Name,
    /// It has attribute flags.
    Flags,
    /// It begins inside the partition before it.
    Overlap,
    /// It is empty, or not where the layout puts it.
    Place,
    /// It is larger than allowed, or ends past the disk.
    Size,
}

impl fmt::Display for PartitionFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Number => "its number does not follow the one before",
            Self::Type => "its type is not that of an RG disk",
            Self::Name => "its name does not belong at this place",
            Self::Flags => "it has attribute flags",
            Self::Overlap => "it overlaps the partition before it",
            Self::Place => "it is not where an RG disk has it",
            Self::Size => "its size is not allowed",
        })
    }
}

/// A partition in bytes from the start of the RG disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    /// GPT name, which is also the link's name in `/dev/disk/by-partlabel`.
    pub name: String,
    /// First byte.
    pub offset: u64,
    /// Length in bytes.
    pub size: u64,
}

/// Sizes and places of everything on an RG disk; consistent by construction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    total: u64,
    manifest: Partition,
    state: Partition,
    disks: Vec<Partition>,
}

/// The name of the partition that holds disk `index`.
pub fn disk_name(index: usize) -> String {
    format!("dd-disk-{index}")
}

/// The serial number with which disk `index` is attached to the garage in overlay mode. At most 20 characters,
/// which is what a guest sees of one.
pub fn overlay_serial(recovery: Uuid, index: usize) -> String {
    format!("dd-{}-{index}", &recovery.simple().to_string()[..14])
}

impl Layout {
    /// Lays out an RG disk for DVM disks of these sizes in bytes; for none in overlay mode.
    ///
    /// # Errors
    /// [`LayoutError::DiskCount`], [`LayoutError::DiskSize`], [`LayoutError::TooLarge`].
    pub fn plan(sizes: &[u64]) -> Result<Self, LayoutError> {
        if sizes.len() > MAX_DISKS {
            return Err(LayoutError::DiskCount { count: sizes.len() });
        }
        let mut disks = Vec::with_capacity(sizes.len());
        let mut offset = DISKS_OFFSET;
        for (index, &size) in sizes.iter().enumerate() {
            if size == 0 || size > MAX_SIZE || !size.is_multiple_of(SECTOR) {
                return Err(LayoutError::DiskSize { index, size });
            }
            disks.push(Partition { name: disk_name(index), offset, size });
            offset = offset
                .checked_add(size)
                .and_then(|end| end.checked_next_multiple_of(MIB))
                .ok_or(LayoutError::TooLarge)?;
        }
        let total = offset.checked_add(MIB).ok_or(LayoutError::TooLarge)?;
        if total > MAX_SIZE {
            return Err(LayoutError::TooLarge);
        }
        let fixed = |name: &str, offset, size| Partition { name: name.to_owned(), offset, size };
        Ok(Self {
            total,
            manifest: fixed("dd-manifest", MANIFEST_OFFSET, MANIFEST_SIZE),
            state: fixed("dd-state", STATE_OFFSET, STATE_SIZE),
            disks,
        })
    }

    /// Size of the whole RG disk in bytes, a multiple of 1 MiB.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// The partition `dd-manifest`.
    pub fn manifest(&self) -> &Partition {
        &self.manifest
    }

    /// The partition `dd-state`.
    pub fn state(&self) -> &Partition {
        &self.state
    }

    /// The partitions `dd-disk-0` and so on, in order.
    pub fn disks(&self) -> &[Partition] {
        &self.disks
    }

    /// All partitions in the order of the GPT.
    pub fn partitions(&self) -> impl Iterator<Item = &Partition> {
        [&self.manifest, &self.state].into_iter().chain(&self.disks)
    }

    /// Writes protective MBR and both GPTs, with fresh random identities.
    ///
    /// # Errors
    /// [`LayoutError::TotalSize`] for a disk of another size, [`LayoutError::Io`].
    pub fn write(&self, blocks: &mut dyn Blocks) -> Result<(), LayoutError> {
        if blocks.size() != self.total {
            return Err(LayoutError::TotalSize { size: blocks.size() });
        }
        let ids: Vec<Uuid> = self.partitions().map(|_| Uuid::new_v4()).collect();
        let ends = self.encode(Uuid::new_v4(), &ids)?;
        blocks
            .write_at(0, &ends.head)
            .and_then(|()| blocks.write_at(ends.tail_offset(), &ends.tail))
            .map_err(LayoutError::Io)
    }

    /// Reads and checks the GPT of a disk that somebody else may have written.
    ///
    /// # Errors
    /// Any [`LayoutError`]: the first difference from an RG disk.
    pub fn read(blocks: &mut dyn Blocks) -> Result<Self, LayoutError> {
        let size = blocks.size();
        if !size.is_multiple_of(MIB) || !(MIN_SIZE..=MAX_SIZE).contains(&size) {
            return Err(LayoutError::TotalSize { size });
        }
        let mut ends = Ends::new(size);
        blocks.read_at(0, &mut ends.head).map_err(LayoutError::Io)?;
        let tail_offset = ends.tail_offset();
        blocks.read_at(tail_offset, &mut ends.tail).map_err(LayoutError::Io)?;
        check_headers(&ends)?;

        let disk = GptConfig::new()
            .logical_block_size(LogicalBlockSize::Lb512)
            .only_valid_headers(true)
            .open_from_device(&mut ends)
            .map_err(LayoutError::Gpt)?;
        let guid = *disk.guid();
        let entries: Vec<(u32, GptEntry)> =
            disk.partitions().iter().map(|(number, entry)| (*number, entry.clone())).collect();
        drop(disk);

        let layout = Self::from_entries(&entries, size)?;
        let ids: Vec<Uuid> = entries.iter().map(|(_, entry)| entry.part_guid).collect();
        let expected = layout.encode(guid, &ids)?;
        match ends.first_difference(&expected) {
            Some(offset) => Err(LayoutError::NotCanonical { offset }),
            None => Ok(layout),
        }
    }

    fn from_entries(entries: &[(u32, GptEntry)], total: u64) -> Result<Self, LayoutError> {
        if entries.len() < FIXED || entries.len() > FIXED + MAX_DISKS {
            return Err(LayoutError::PartitionCount { count: entries.len() });
        }
        let mut sizes = Vec::with_capacity(entries.len() - FIXED);
        let mut free_from = 0u64;
        for (place, (number, entry)) in entries.iter().enumerate() {
            let fault = |fault| LayoutError::Partition { number: place + 1, fault };
            if usize::try_from(*number) != Ok(place + 1) {
                return Err(fault(PartitionFault::Number));
            }
            let (start, end) = check_entry(entry, place, free_from, total).map_err(fault)?;
            if place >= FIXED {
                sizes.push(end - start);
            }
            free_from = end;
        }
        let layout = Self::plan(&sizes)?;
        if layout.total != total {
            return Err(LayoutError::TotalSize { size: total });
        }
        for (place, (planned, (_, entry))) in layout.partitions().zip(entries).enumerate() {
            let number = place + 1;
            let fault = |fault| LayoutError::Partition { number, fault };
            // check_entry has seen that these products do not overflow.
            if planned.offset != entry.first_lba * SECTOR {
                return Err(fault(PartitionFault::Place));
            }
            if planned.size != (entry.last_lba + 1) * SECTOR - planned.offset {
                return Err(fault(PartitionFault::Size));
            }
        }
        Ok(layout)
    }

    fn encode(&self, guid: Uuid, ids: &[Uuid]) -> Result<Ends, LayoutError> {
        let mut ends = Ends::new(self.total);
        let sectors = u32::try_from(self.total / SECTOR - 1).unwrap_or(u32::MAX);
        ends.head[..512].copy_from_slice(&ProtectiveMBR::with_lb_size(sectors).to_bytes());
        let mut disk = GptConfig::new()
            .logical_block_size(LogicalBlockSize::Lb512)
            .writable(true)
            .create_from_device(&mut ends, Some(guid))
            .map_err(LayoutError::Gpt)?;
        let entries = (1u32..)
            .zip(self.partitions().zip(ids))
            .map(|(number, (part, id))| {
                let entry = GptEntry {
                    part_type_guid: PARTITION_TYPE.into(),
                    part_guid: *id,
                    first_lba: part.offset / SECTOR,
                    last_lba: (part.offset + part.size) / SECTOR - 1,
                    flags: 0,
                    name: part.name.clone(),
                };
                (number, entry)
            })
            .collect();
        disk.update_partitions(entries).map_err(LayoutError::Gpt)?;
        disk.write().map_err(LayoutError::Gpt)?;
        Ok(ends)
    }
}

/// Checks one entry by itself and against the one before; returns its first byte and the byte after it.
fn check_entry(entry: &GptEntry, place: usize, free_from: u64, total: u64) -> Result<(u64, u64), PartitionFault> {
    let name = match place {
        0 => "dd-manifest".to_owned(),
        1 => "dd-state".to_owned(),
        _ => disk_name(place - FIXED),
    };
    if entry.part_type_guid.guid != PARTITION_TYPE {
        return Err(PartitionFault::Type);
    }
    if entry.name != name {
        return Err(PartitionFault::Name);
    }
    if entry.flags != 0 {
        return Err(PartitionFault::Flags);
    }
    let start = entry.first_lba.checked_mul(SECTOR);
    let end = entry.last_lba.checked_add(1).and_then(|sectors| sectors.checked_mul(SECTOR));
    match (start, end) {
        (Some(_), Some(end)) if end > total => Err(PartitionFault::Size),
        (Some(start), Some(_)) if start < free_from => Err(PartitionFault::Overlap),
        (Some(start), Some(end)) if start < end => Ok((start, end)),
        (Some(_), Some(_)) => Err(PartitionFault::Place),
        _ => Err(PartitionFault::Size),
    }
}

/// Refuses what the `gpt` crate would not survive: it asserts on the entry size, and allocates whatever
/// the entry count says.
fn check_headers(ends: &Ends) -> Result<(), LayoutError> {
    let last = ends.size / SECTOR - 1;
    let headers =
        [("primary", &ends.head[512..1024], 1, last, 2), ("backup", &ends.tail[TAIL - 512..], last, 1, last - 32)];
    for (header, bytes, own, other, entries) in headers {
        let fields: [(&'static str, usize, &[u8]); 8] = [
            ("signature", 0, b"EFI PART"),
            ("revision", 8, &0x0001_0000u32.to_le_bytes()),
            ("size", 12, &92u32.to_le_bytes()),
            ("own place", 24, &u64::to_le_bytes(own)),
            ("other header", 32, &u64::to_le_bytes(other)),
            ("entries", 72, &u64::to_le_bytes(entries)),
            ("entry count", 80, &128u32.to_le_bytes()),
            ("entry size", 84, &128u32.to_le_bytes()),
        ];
        for (field, at, expected) in fields {
            if &bytes[at..at + expected.len()] != expected {
                return Err(LayoutError::Header { header, field });
            }
        }
    }
    Ok(())
}

/// The two ends of a disk, where a GPT lives, as a device for the `gpt` crate. The middle cannot be reached.
#[derive(Debug)]
struct Ends {
    size: u64,
    head: Vec<u8>,
    tail: Vec<u8>,
    position: u64,
}

impl Ends {
    /// `size` is at least `HEAD + TAIL`: every caller has a disk of some MiB.
    fn new(size: u64) -> Self {
        Self { size, head: vec![0; HEAD], tail: vec![0; TAIL], position: 0 }
    }

    fn tail_offset(&self) -> u64 {
        self.size - TAIL as u64
    }

    /// The bytes from the current position to the end of the part that it lies in.
    fn here(&mut self) -> io::Result<&mut [u8]> {
        let tail_offset = self.tail_offset();
        if self.position >= tail_offset {
            let at = (self.position - tail_offset).min(TAIL as u64) as usize;
            return Ok(&mut self.tail[at..]);
        }
        match usize::try_from(self.position) {
            Ok(at) if at < HEAD => Ok(&mut self.head[at..]),
            _ => Err(io::Error::new(io::ErrorKind::InvalidData, "the GPT points into the middle of the disk")),
        }
    }

    fn first_difference(&self, other: &Self) -> Option<u64> {
        let differ = |a: &[u8], b: &[u8]| a.iter().zip(b).position(|(a, b)| a != b);
        differ(&self.head, &other.head)
            .map(|at| at as u64)
            .or_else(|| differ(&self.tail, &other.tail).map(|at| self.tail_offset() + at as u64))
    }
}

impl Read for Ends {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let here = self.here()?;
        let count = here.len().min(buf.len());
        buf[..count].copy_from_slice(&here[..count]);
        self.position += count as u64;
        Ok(count)
    }
}

impl Write for Ends {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let here = self.here()?;
        let count = here.len().min(data.len());
        here[..count].copy_from_slice(&data[..count]);
        self.position += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for Ends {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let target = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.size.checked_add_signed(by),
            SeekFrom::Current(by) => self.position.checked_add_signed(by),
        };
        self.position = target.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "seek before the start"))?;
        Ok(self.position)
    }
}

#[cfg(test)]
mod tests;
