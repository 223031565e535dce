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

use std::num::NonZeroU32;

use uuid::Uuid;

use super::layout::{
    DIGEST_LEN, HEADER_LEN, KEY_LEN, MATERIAL_AT, MAX_LEN, PAYLOAD_AT, SALT_LEN, SECTOR, SLOT_ROOM, SLOTS, STRIPES,
};
use crate::error::LuksFault;

const MAGIC: &[u8; 6] = b"LUKS\xba\xbe";
const VERSION: u16 = 1;
const CIPHER: &str = "aes";
const MODE: &str = "xts-plain64";
const HASH: &str = "sha256";
const ENABLED: u32 = 0x00ac_71f3;
const DISABLED: u32 = 0x0000_dead;
const NAME_LEN: usize = 32;
const UUID_LEN: usize = 40;
/// More than QEMU chooses for ten milliseconds, which earlier versions asked it for; a hostile header must not cost
/// minutes.
const MAX_ITERATIONS: u32 = 1_000_000;

/// What differs between the headers of two containers. Nothing in it is secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    pub(super) digest: [u8; DIGEST_LEN],
    pub(super) digest_salt: [u8; SALT_LEN],
    pub(super) digest_iterations: NonZeroU32,
    pub(super) slot: KeySlot,
}

/// How the passphrase becomes the key that encrypts slot 0's material.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct KeySlot {
    pub(super) iterations: NonZeroU32,
    pub(super) salt: [u8; SALT_LEN],
}

impl Header {
    /// The bytes at the beginning of a container, with a new UUID.
    pub fn to_bytes(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        let mut out = Out(&mut bytes);
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
        bytes
    }

    /// Reads the header of a container, or of the beginning of one. Algorithms and places that it names are compared
    /// with the expected ones, never followed.
    ///
    /// # Errors
    /// [`LuksFault::Format`] for a container that this program or QEMU would not have made, or one longer than
    /// [`MAX_LEN`].
    pub fn parse(container: &[u8]) -> Result<Self, LuksFault> {
        if container.len() > MAX_LEN {
            return Err(LuksFault::Format("it is too long"));
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

    /// How many iterations of PBKDF2 opening the container takes.
    pub fn iterations(&self) -> u64 {
        u64::from(self.slot.iterations.get()) + u64::from(self.digest_iterations.get())
    }
}

/// The rest of the header, still to be written.
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

/// The rest of the container, still to be read.
struct In<'a>(&'a [u8]);

impl In<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], LuksFault> {
        let (here, rest) = self.0.split_first_chunk().ok_or(LuksFault::Format("it is too short"))?;
        self.0 = rest;
        Ok(*here)
    }

    fn is<const N: usize>(&mut self, expected: &[u8; N], otherwise: &'static str) -> Result<(), LuksFault> {
        if self.take::<N>()? == *expected { Ok(()) } else { Err(LuksFault::Format(otherwise)) }
    }

    fn text(&mut self, expected: &str, otherwise: &'static str) -> Result<(), LuksFault> {
        let field = self.take::<NAME_LEN>()?;
        // What follows the end of the text is padding.
        let text = field.split(|byte| *byte == 0).next().unwrap_or_default();
        if text == expected.as_bytes() { Ok(()) } else { Err(LuksFault::Format(otherwise)) }
    }

    fn number(&mut self, expected: usize, otherwise: &'static str) -> Result<(), LuksFault> {
        self.is(&field(expected), otherwise)
    }

    fn iterations(&mut self) -> Result<NonZeroU32, LuksFault> {
        NonZeroU32::new(u32::from_be_bytes(self.take()?))
            .filter(|iterations| iterations.get() <= MAX_ITERATIONS)
            .ok_or(LuksFault::Format("no or too many iterations"))
    }
}

/// A number that is a constant of the layout.
#[expect(clippy::cast_possible_truncation)]
fn field(number: usize) -> [u8; 4] {
    (number as u32).to_be_bytes()
}
