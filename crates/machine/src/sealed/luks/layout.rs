//! Sizes and places in a container, in bytes unless a name says otherwise (specification 1.2.3, section 2).
//!
//! The layout behind the header is QEMU's: the key material of slot *n* at sector 8 + 504 *n*, the contents behind all
//! eight slots. Only slot 0 is ever used.

use std::ops::Range;

/// Contents come in sectors of this many bytes.
pub const SECTOR: usize = 512;
/// Largest container that is read, in bytes.
pub const MAX_LEN: usize = 16 << 20;
/// Length of the header in bytes: figure 1 of the specification.
pub const HEADER_LEN: usize = 208 + SLOTS * 48;
/// The bytes of a container that are always zero: the material of the unused key slots.
pub const HOLE: Range<usize> = MATERIAL_AT + MATERIAL_LEN..PAYLOAD_AT;

/// The master key: two keys of AES-256.
pub(super) const KEY_LEN: usize = 64;
pub(super) const DIGEST_LEN: usize = 20;
pub(super) const SALT_LEN: usize = 32;
/// The number of stripes that every implementation uses.
pub(super) const STRIPES: usize = 4000;
pub(super) const SLOTS: usize = 8;
/// Where the material of slot 0 begins.
pub(super) const MATERIAL_AT: usize = 4096;
pub(super) const MATERIAL_LEN: usize = KEY_LEN * STRIPES;
/// Slots begin at multiples of 4096 bytes.
pub(super) const SLOT_ROOM: usize = MATERIAL_LEN.next_multiple_of(4096);
/// Where the contents begin.
pub(super) const PAYLOAD_AT: usize = MATERIAL_AT + SLOTS * SLOT_ROOM;
