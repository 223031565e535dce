//! The header (specification 1.2.3, section 2.2, figures 1 and 2). All integers are big-endian.
//!
//! | Offset | Bytes | What |
//! |---|---|---|
//! | 0 | 6 | `LUKS\xba\xbe` |
//! | 6 | 2 | version, 1 |
//! | 8 | 32 | cipher, `aes` |
//! | 40 | 32 | mode, `xts-plain64` |
//! | 72 | 32 | hash, `sha256` |
//! | 104 | 4 | first sector of the contents |
//! | 108 | 4 | bytes of the master key, 64 |
//! | 112 | 20 | digest of the master key |
//! | 132 | 32 | its salt |
//! | 164 | 4 | its iterations |
//! | 168 | 40 | UUID, text |
//! | 208 | 8 × 48 | key slots: state, iterations, salt (32), first sector of the material, stripes |
//!
//! The layout behind it is QEMU's: the material of slot *n* at sector 8 + 504 *n*, the contents behind all eight. Only slot 0
//! is ever used.

use std::num::NonZeroU32;

use uuid::Uuid;

use super::split::STRIPES;
use super::{DIGEST_LEN, Fault, KEY_LEN, MAX_LEN, SALT_LEN, SECTOR};

/// Where the material of slot 0 is, and how long it is, in bytes.
pub(super) const MATERIAL_AT: usize = 4096;
pub(super) const MATERIAL_LEN: usize = KEY_LEN * STRIPES;
/// Where the contents are, in bytes.
pub(super) const PAYLOAD_AT: usize = MATERIAL_AT + SLOTS * SLOT_ROOM;

const MAGIC: &[u8; 6] = b"LUKS\xba\xbe";
const VERSION: u16 = 1;
const CIPHER: &str = "aes";
const MODE: &str = "xts-plain64";
const HASH: &str = "sha256";
const SLOTS: usize = 8;
/// Slots begin at multiples of 4096 bytes.
const SLOT_ROOM: usize = MATERIAL_LEN.next_multiple_of(4096);
const ENABLED: u32 = 0x00ac_71f3;
const DISABLED: u32 = 0x0000_dead;
const NAME_LEN: usize = 32;
const UUID_LEN: usize = 40;
/// More than QEMU chooses for the ten milliseconds that it was once asked for; a hostile header must not cost minutes.
const MAX_ITERATIONS: u32 = 1_000_000;

/// What differs between two containers.
pub(super) struct Header {
    pub(super) digest: [u8; DIGEST_LEN],
    pub(super) digest_salt: [u8; SALT_LEN],
    pub(super) digest_iterations: NonZeroU32,
    pub(super) slot: KeySlot,
}

/// How the passphrase becomes the key of slot 0's material.
pub(super) struct KeySlot {
    pub(super) iterations: NonZeroU32,
    pub(super) salt: [u8; SALT_LEN],
}

impl Header {
    /// Writes it at the beginning of `container`.
    pub(super) fn write(&self, container: &mut [u8]) {
        let mut out = Out(container);
        out.put(MAGIC);
        out.put(&VERSION.to_be_bytes());
        for name in [CIPHER, MODE, HASH] {
            out.text(name, NAME_LEN);
        }
        out.sector(PAYLOAD_AT);
        out.number(KEY_LEN);
        out.put(&self.digest);
        out.put(&self.digest_salt);
        out.put(&self.digest_iterations.get().to_be_bytes());
        out.text(&Uuid::new_v4().to_string(), UUID_LEN);
        for slot in 0..SLOTS {
            let (state, iterations, salt) = match slot {
                0 => (ENABLED, self.slot.iterations.get(), self.slot.salt),
                _ => (DISABLED, 0, [0; SALT_LEN]),
            };
            out.put(&state.to_be_bytes());
            out.put(&iterations.to_be_bytes());
            out.put(&salt);
            out.sector(MATERIAL_AT + slot * SLOT_ROOM);
            out.number(STRIPES);
        }
    }

    /// Reads it from the beginning of `container`. What it says about algorithms and places is compared, not followed.
    pub(super) fn read(container: &[u8]) -> Result<Self, Fault> {
        if container.len() > MAX_LEN {
            return Err(Fault::Format("it is too long"));
        }
        let mut from = In(container);
        from.is(MAGIC, "no LUKS header")?;
        from.is(&VERSION.to_be_bytes(), "another version")?;
        from.text(CIPHER, "another cipher")?;
        from.text(MODE, "another cipher mode")?;
        from.text(HASH, "another hash")?;
        from.number(PAYLOAD_AT / SECTOR, "contents at another place")?;
        from.number(KEY_LEN, "a master key of another length")?;
        let digest = from.take()?;
        let digest_salt = from.take()?;
        let digest_iterations = from.iterations()?;
        from.take::<UUID_LEN>()?;
        from.is(&ENABLED.to_be_bytes(), "no key in the first slot")?;
        let slot = KeySlot { iterations: from.iterations()?, salt: from.take()? };
        from.number(MATERIAL_AT / SECTOR, "a key slot at another place")?;
        from.number(STRIPES, "another number of stripes")?;
        Ok(Header { digest, digest_salt, digest_iterations, slot })
    }
}

/// The rest of the container, to be written.
struct Out<'a>(&'a mut [u8]);

impl Out<'_> {
    fn put(&mut self, bytes: &[u8]) {
        let (here, rest) = std::mem::take(&mut self.0).split_at_mut(bytes.len());
        here.copy_from_slice(bytes);
        self.0 = rest;
    }

    /// Text in a field of `len` bytes; the rest stays zero.
    fn text(&mut self, text: &str, len: usize) {
        let mut field = [0; UUID_LEN];
        field[..text.len()].copy_from_slice(text.as_bytes());
        self.put(&field[..len]);
    }

    fn number(&mut self, number: usize) {
        self.put(&field(number));
    }

    fn sector(&mut self, at: usize) {
        self.number(at / SECTOR);
    }
}

/// The rest of the container, to be read.
struct In<'a>(&'a [u8]);

impl In<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        let (here, rest) = self.0.split_first_chunk().ok_or(Fault::Format("it is too short"))?;
        self.0 = rest;
        Ok(*here)
    }

    fn is<const N: usize>(&mut self, expected: &[u8; N], otherwise: &'static str) -> Result<(), Fault> {
        if self.take::<N>()? == *expected { Ok(()) } else { Err(Fault::Format(otherwise)) }
    }

    fn text(&mut self, expected: &str, otherwise: &'static str) -> Result<(), Fault> {
        let field = self.take::<NAME_LEN>()?;
        // What follows the end of the text is filling.
        let text = field.split(|byte| *byte == 0).next().unwrap_or_default();
        if text == expected.as_bytes() { Ok(()) } else { Err(Fault::Format(otherwise)) }
    }

    fn number(&mut self, expected: usize, otherwise: &'static str) -> Result<(), Fault> {
        self.is(&field(expected), otherwise)
    }

    fn iterations(&mut self) -> Result<NonZeroU32, Fault> {
        NonZeroU32::new(u32::from_be_bytes(self.take()?))
            .filter(|iterations| iterations.get() <= MAX_ITERATIONS)
            .ok_or(Fault::Format("no or too many iterations"))
    }
}

/// A number that is a constant of this file.
#[expect(clippy::cast_possible_truncation)]
fn field(number: usize) -> [u8; 4] {
    (number as u32).to_be_bytes()
}
