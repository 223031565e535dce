//! What an RG disk says about itself: the manifest in the partition `dd-manifest`.
//!
//! The partition holds two slots, A at 0 and B at 2 MiB. A slot is (little-endian)
//!
//! | Offset | Bytes | Field |
//! |---|---|---|
//! | 0 | 8 | magic `DDRGMAN1` |
//! | 8 | 4 | length of the body, at most 1 MiB |
//! | 12 | 4 | reserved, 0 |
//! | 16 | 8 | sequence, equal to the body's |
//! | 24 | 32 | SHA-256 of bytes 0..24 and the body |
//! | 56 | length | body, JSON |
//!
//! A new manifest goes to the slot that does not hold the newest valid one, and is made durable; a torn
//! write leaves the old one active.

use std::io;

use image::Digest;
use image::blocks::Blocks;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::layout::{Layout, MAX_DISKS, MAX_SIZE, disk_name, overlay_serial};

/// The version written, and the only one read.
pub const VERSION: u32 = 1;
/// Largest body in bytes.
pub const MAX_BODY: usize = 1 << 20;
/// Largest key protector in bytes.
pub const MAX_PROTECTOR: usize = 512 << 10;
/// Largest receipt in bytes.
pub const MAX_RECEIPT: usize = 64 << 10;
/// Largest VM specification in bytes.
pub const MAX_SPEC: usize = 64 << 10;
/// Longest VM name in bytes.
pub const MAX_NAME: usize = 128;
/// Longest disk serial in bytes.
pub const MAX_SERIAL: usize = 64;

const MAGIC: &[u8; 8] = b"DDRGMAN1";
const SLOTS: [u64; 2] = [0, 2 << 20];
const SIGNED_HEADER: usize = 24;
const HEADER: usize = 56;

/// Why a manifest is refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ManifestError {
    /// Neither slot holds one.
    #[error("no valid manifest in either slot (A: {a}; B: {b}): the RG disk must be made again")]
    NoneValid {
        /// Why slot A does not.
        a: SlotFault,
        /// Why slot B does not.
        b: SlotFault,
    },
    /// Both slots hold one, and neither is newer.
    #[error("two different manifests have the same sequence {sequence}")]
    Ambiguous {
        /// The sequence of both.
        sequence: u64,
    },
    /// The manifest to write is not newer than the active one.
    #[error("sequence {next} does not follow {newest}")]
    Sequence {
        /// The sequence of the active manifest.
        newest: u64,
        /// The sequence of the one to write.
        next: u64,
    },
    /// A field breaks a rule of its own.
    #[error("field `{field}`: {rule}")]
    Field {
        /// The field.
        field: &'static str,
        /// The rule.
        rule: &'static str,
    },
    /// A disk is not the one in its partition.
    #[error("disk {index}: field `{field}` does not agree with the partitions")]
    Disk {
        /// The disk, from 0.
        index: usize,
        /// The field that differs.
        field: &'static str,
    },
    /// Disks and partitions differ in number.
    #[error("{manifest} disks, but {partitions} disk partitions")]
    DiskCount {
        /// Disks in the manifest.
        manifest: usize,
        /// Partitions for disks.
        partitions: usize,
    },
    /// The body is larger than [`MAX_BODY`].
    #[error("the manifest has {size} bytes, more than 1 MiB")]
    TooLarge {
        /// Its size in bytes.
        size: usize,
    },
    /// It cannot be encoded.
    #[error("the manifest cannot be written as JSON")]
    Encode(#[source] serde_json::Error),
    /// The device failed.
    #[error("the manifest cannot be read or written")]
    Io(#[source] io::Error),
}

/// Why one slot holds no valid manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SlotFault {
    /// All zeros: never written.
    #[error("empty")]
    Empty,
    /// It does not begin with `DDRGMAN1`.
    #[error("wrong magic")]
    Magic,
    /// No body, or one larger than [`MAX_BODY`].
    #[error("length out of range")]
    Length,
    /// The reserved field is not 0.
    #[error("reserved field set")]
    Reserved,
    /// SHA-256 of header and body differs: a torn write, or damage.
    #[error("digest does not match")]
    Digest,
    /// The body is not the JSON of a [`Manifest`].
    #[error("not a manifest of this version")]
    Body,
    /// Header and body have different sequences.
    #[error("sequences disagree")]
    Sequence,
    /// [`Manifest::validate`] refuses it.
    #[error("a field is out of range")]
    Field,
}

/// Which way the RG disk travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// From the fabric into the garage.
    Outbound,
    /// Repaired, on its way back.
    Handback,
}

/// How the DVM's disks travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// On the RG disk, each in a partition.
    Copy,
    /// Each attached to the garage separately, as an overlay on the untouched original.
    Overlay,
}

/// One disk of the DVM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disk {
    /// Position, from 0.
    pub index: u32,
    /// Where the garage finds it: the partition's name, or the serial number of the overlay ([`overlay_serial`]).
    pub name: String,
    /// Exact size in bytes.
    pub size: u64,
    /// The serial number that the guest sees.
    pub serial: String,
    /// SHA-256 over all `size` bytes, when it was taken.
    pub sha256: Option<Digest>,
}

/// The manifest. Fields are checked when it is read and when it is written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`VERSION`].
    pub version: u32,
    /// Grows by at least one with every manifest written.
    pub sequence: u64,
    /// Identity of this recovery.
    pub recovery_id: Uuid,
    /// Identity of the damaged VM.
    pub vm_id: Uuid,
    /// Its name, for people.
    pub vm_name: String,
    /// Which way the disk travels.
    pub direction: Direction,
    /// How its disks travel.
    pub mode: Mode,
    /// When this manifest was made, in seconds since 1970 UTC.
    pub created: u64,
    /// The DVM's disks in order.
    pub disks: Vec<Disk>,
    /// The VM's specification, opaque JSON text.
    pub spec: String,
    /// The key protector, opaque.
    #[serde(with = "base64_bytes")]
    pub protector: Vec<u8>,
    /// The digest of the active bundle in `dd-state`.
    pub state_sha256: Digest,
    /// The hand-back receipt, opaque.
    #[serde(with = "base64_option")]
    pub receipt: Option<Vec<u8>>,
}

impl Manifest {
    /// Checks every field by itself.
    ///
    /// # Errors
    /// [`ManifestError::Field`] or [`ManifestError::Disk`] for the first that breaks a rule.
    pub fn validate(&self) -> Result<(), ManifestError> {
        let rules = [
            (self.version == VERSION, "version", "must be 1"),
            (is_text(&self.vm_name, MAX_NAME), "vm_name", "1 to 128 bytes without control characters"),
            (self.spec.len() <= MAX_SPEC, "spec", "at most 64 KiB"),
            (serde_json::from_str::<serde::de::IgnoredAny>(&self.spec).is_ok(), "spec", "must be JSON"),
            (!self.protector.is_empty() && self.protector.len() <= MAX_PROTECTOR, "protector", "1 byte to 512 KiB"),
            (self.receipt.as_ref().is_none_or(|receipt| receipt.len() <= MAX_RECEIPT), "receipt", "at most 64 KiB"),
            (
                self.disks.iter().all(|disk| is_text(&disk.serial, MAX_SERIAL)),
                "serial",
                "1 to 64 bytes without control characters",
            ),
        ];
        for (holds, field, rule) in rules {
            if !holds {
                return Err(ManifestError::Field { field, rule });
            }
        }
        let unfit = ManifestError::Field { field: "disks", rule: "number or sizes that no VM in recovery has" };
        match self.mode {
            Mode::Copy => {
                let sizes: Vec<u64> = self.disks.iter().map(|disk| disk.size).collect();
                match Layout::plan(&sizes) {
                    Ok(layout) if !sizes.is_empty() => self.check_layout(&layout),
                    _ => Err(unfit),
                }
            }
            Mode::Overlay => {
                let fits = |disk: &Disk| (1..=MAX_SIZE).contains(&disk.size) && disk.size.is_multiple_of(512);
                if self.disks.is_empty() || self.disks.len() > MAX_DISKS || !self.disks.iter().all(fits) {
                    return Err(unfit);
                }
                for (index, disk) in self.disks.iter().enumerate() {
                    if usize::try_from(disk.index) != Ok(index) {
                        return Err(ManifestError::Disk { index, field: "index" });
                    }
                    if disk.name != overlay_serial(self.recovery_id, index) {
                        return Err(ManifestError::Disk { index, field: "name" });
                    }
                }
                Ok(())
            }
        }
    }

    /// Checks that the disks are those of the partitions, in number, order, name and exact size; or, in overlay
    /// mode, that there are no partitions for them.
    ///
    /// # Errors
    /// [`ManifestError::DiskCount`], [`ManifestError::Disk`].
    pub fn check_layout(&self, layout: &Layout) -> Result<(), ManifestError> {
        let partitions = layout.disks();
        if self.mode == Mode::Overlay && partitions.is_empty() {
            return Ok(());
        }
        if self.disks.len() != partitions.len() {
            return Err(ManifestError::DiskCount { manifest: self.disks.len(), partitions: partitions.len() });
        }
        for (index, (disk, partition)) in self.disks.iter().zip(partitions).enumerate() {
            let fields = [
                (usize::try_from(disk.index) == Ok(index), "index"),
                (disk.name == disk_name(index), "name"),
                (disk.size == partition.size, "size"),
            ];
            for (agrees, field) in fields {
                if !agrees {
                    return Err(ManifestError::Disk { index, field });
                }
            }
        }
        Ok(())
    }

    fn to_slot(&self) -> Result<Vec<u8>, ManifestError> {
        self.validate()?;
        let body = serde_json::to_vec(self).map_err(ManifestError::Encode)?;
        let length = match u32::try_from(body.len()) {
            Ok(length) if body.len() <= MAX_BODY => length,
            _ => return Err(ManifestError::TooLarge { size: body.len() }),
        };
        let mut slot = Vec::with_capacity(HEADER + body.len());
        slot.extend_from_slice(MAGIC);
        slot.extend_from_slice(&length.to_le_bytes());
        slot.extend_from_slice(&[0; 4]);
        slot.extend_from_slice(&self.sequence.to_le_bytes());
        let digest = Digest::of_parts(&[&slot, &body]);
        slot.extend_from_slice(digest.as_bytes());
        slot.extend_from_slice(&body);
        Ok(slot)
    }
}

/// Reads the newest valid manifest of a `dd-manifest` partition.
///
/// # Errors
/// [`ManifestError::NoneValid`], [`ManifestError::Ambiguous`], [`ManifestError::Io`].
pub fn read(partition: &mut dyn Blocks) -> Result<Manifest, ManifestError> {
    newest(partition).map(|(_, manifest)| manifest)
}

/// Writes the first manifest of a fresh partition.
///
/// # Errors
/// Those of [`Manifest::validate`], [`ManifestError::TooLarge`], [`ManifestError::Io`].
pub fn write_first(partition: &mut dyn Blocks, manifest: &Manifest) -> Result<(), ManifestError> {
    write_slot(partition, SLOTS[0], manifest)
}

/// Writes a newer manifest beside the active one, and returns when it is durable.
///
/// # Errors
/// [`ManifestError::Sequence`], those of [`read`] and [`write_first`].
pub fn write_next(partition: &mut dyn Blocks, manifest: &Manifest) -> Result<(), ManifestError> {
    let (slot, current) = newest(partition)?;
    if manifest.sequence <= current.sequence {
        return Err(ManifestError::Sequence { newest: current.sequence, next: manifest.sequence });
    }
    let other = if slot == SLOTS[0] { SLOTS[1] } else { SLOTS[0] };
    write_slot(partition, other, manifest)
}

fn write_slot(partition: &mut dyn Blocks, offset: u64, manifest: &Manifest) -> Result<(), ManifestError> {
    let slot = manifest.to_slot()?;
    partition.write_at(offset, &slot).and_then(|()| partition.flush()).map_err(ManifestError::Io)
}

fn newest(partition: &mut dyn Blocks) -> Result<(u64, Manifest), ManifestError> {
    let a = read_slot(partition, SLOTS[0])?;
    let b = read_slot(partition, SLOTS[1])?;
    match (a, b) {
        (Ok(a), Ok(b)) if a.sequence == b.sequence && a != b => Err(ManifestError::Ambiguous { sequence: a.sequence }),
        (Ok(a), Ok(b)) if b.sequence > a.sequence => Ok((SLOTS[1], b)),
        (Ok(a), _) => Ok((SLOTS[0], a)),
        (Err(_), Ok(b)) => Ok((SLOTS[1], b)),
        (Err(a), Err(b)) => Err(ManifestError::NoneValid { a, b }),
    }
}

/// The outer error is the device's, the inner one the slot's.
fn read_slot(partition: &mut dyn Blocks, offset: u64) -> Result<Result<Manifest, SlotFault>, ManifestError> {
    let mut header = [0u8; HEADER];
    partition.read_at(offset, &mut header).map_err(ManifestError::Io)?;
    let length = match body_length(&header) {
        Ok(length) => length,
        Err(fault) => return Ok(Err(fault)),
    };
    let mut body = vec![0u8; length];
    partition.read_at(offset + HEADER as u64, &mut body).map_err(ManifestError::Io)?;
    Ok(parse_slot(&header, &body))
}

fn body_length(header: &[u8; HEADER]) -> Result<usize, SlotFault> {
    if header.iter().all(|byte| *byte == 0) {
        return Err(SlotFault::Empty);
    }
    if &header[..8] != MAGIC {
        return Err(SlotFault::Magic);
    }
    if header[12..16] != [0; 4] {
        return Err(SlotFault::Reserved);
    }
    let length = u32::from_le_bytes([header[8], header[9], header[10], header[11]]);
    match usize::try_from(length) {
        Ok(length) if (1..=MAX_BODY).contains(&length) => Ok(length),
        _ => Err(SlotFault::Length),
    }
}

fn parse_slot(header: &[u8; HEADER], body: &[u8]) -> Result<Manifest, SlotFault> {
    let digest = Digest::of_parts(&[&header[..SIGNED_HEADER], body]);
    if digest.as_bytes() != &header[SIGNED_HEADER..] {
        return Err(SlotFault::Digest);
    }
    let manifest: Manifest = serde_json::from_slice(body).map_err(|_| SlotFault::Body)?;
    if manifest.sequence.to_le_bytes() != header[16..24] {
        return Err(SlotFault::Sequence);
    }
    manifest.validate().map_err(|_| SlotFault::Field)?;
    Ok(manifest)
}

fn is_text(text: &str, max: usize) -> bool {
    !text.is_empty() && text.len() <= max && !text.chars().any(char::is_control)
}

mod base64_bytes {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(from)?;
        STANDARD.decode(text).map_err(serde::de::Error::custom)
    }
}

mod base64_option {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(bytes: &Option<Vec<u8>>, serializer: S) -> Result<S::Ok, S::Error> {
        bytes.as_ref().map(|bytes| STANDARD.encode(bytes)).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Vec<u8>>, D::Error> {
        Option::<String>::deserialize(from)?
            .map(|text| STANDARD.decode(text).map_err(serde::de::Error::custom))
            .transpose()
    }
}

#[cfg(test)]
mod tests;
