//! A LUKS container of our own making, for the UEFI variables; QEMU opens and writes it as one of its own.
//!
//! LUKS On-Disk Format Specification 1.2.3, with the one set of algorithms that QEMU chooses too: AES-256 in XTS mode with the
//! sector's number (`xts-plain64`), SHA-256. The passphrase is a random key, so stretching it protects nothing: the
//! iteration counts are the least that QEMU would use.
//!
//! QEMU makes such a container too, but each time measures for seconds how many iterations the machine is good for.

mod header;
mod split;

use std::num::NonZeroU32;
use std::ops::Range;

use aes::Aes256;
use aes::cipher::KeyInit;
use aws_lc_rs::{pbkdf2, rand};
use xts_mode::{Xts128, get_tweak_default};
use zeroize::Zeroizing;

use header::{Header, KeySlot, MATERIAL_AT, MATERIAL_LEN, PAYLOAD_AT};

/// Contents come in sectors of this many bytes.
pub const SECTOR: usize = 512;
/// Largest container that is read, in bytes.
pub const MAX_LEN: usize = 16 << 20;

/// The bytes of a container that are always zero: the material of the key slots that nobody uses.
pub const HOLE: Range<usize> = MATERIAL_AT + MATERIAL_LEN..PAYLOAD_AT;

/// The master key: two keys of AES-256.
const KEY_LEN: usize = 64;
const DIGEST_LEN: usize = 20;
const SALT_LEN: usize = 32;
/// What QEMU never goes below.
const ITERATIONS: NonZeroU32 = NonZeroU32::MIN.saturating_add(999);

type Key = Zeroizing<[u8; KEY_LEN]>;

/// Why a container does not open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Not a container as this program or QEMU makes it.
    #[error("is not a LUKS container of the expected kind: {0}")]
    Format(&'static str),
    /// Another passphrase, or a changed byte in the key slot.
    #[error("does not open with this key")]
    Key,
    /// The operating system gave no random bytes.
    #[error("was not made: there are no random numbers")]
    NoRandom,
}

/// A new container around `contents`, whole sectors, under a fresh master key.
///
/// # Errors
/// [`Fault::Format`] when `contents` are no whole sectors or too many.
pub fn seal(contents: &[u8], passphrase: &[u8]) -> Result<Vec<u8>, Fault> {
    if !contents.len().is_multiple_of(SECTOR) {
        return Err(Fault::Format("the contents are not whole sectors"));
    }
    if contents.len() > MAX_LEN - PAYLOAD_AT {
        return Err(Fault::Format("the contents are too long"));
    }
    let mut master: Key = Zeroizing::new([0; KEY_LEN]);
    rand::fill(&mut *master).map_err(|_| Fault::NoRandom)?;
    let slot = KeySlot { iterations: ITERATIONS, salt: salt()? };
    let digest_salt = salt()?;
    let header = Header {
        digest: *master_digest(&master, &digest_salt, ITERATIONS),
        digest_salt,
        digest_iterations: ITERATIONS,
        slot,
    };
    // Reserved in full: what is encrypted in place below must leave no copy behind.
    let mut container = vec![0; PAYLOAD_AT + contents.len()];
    header.write(&mut container);
    let material = &mut container[MATERIAL_AT..MATERIAL_AT + MATERIAL_LEN];
    split::split(&master, material)?;
    cipher(&slot_key(passphrase, &header.slot)).encrypt_area(material, SECTOR, 0, get_tweak_default);
    let payload = &mut container[PAYLOAD_AT..];
    payload.copy_from_slice(contents);
    cipher(&master).encrypt_area(payload, SECTOR, 0, get_tweak_default);
    Ok(container)
}

/// The contents of a container that [`seal`] or QEMU made.
///
/// # Errors
/// [`Fault::Format`] for anything else, [`Fault::Key`] for another passphrase. Changed contents are not noticed: LUKS
/// authenticates nothing.
pub fn open(container: &[u8], passphrase: &[u8]) -> Result<Zeroizing<Vec<u8>>, Fault> {
    let header = Header::read(container)?;
    let (Some(material), Some(payload)) =
        (container.get(MATERIAL_AT..MATERIAL_AT + MATERIAL_LEN), container.get(PAYLOAD_AT..))
    else {
        return Err(Fault::Format("it is too short"));
    };
    if !payload.len().is_multiple_of(SECTOR) {
        return Err(Fault::Format("its contents are not whole sectors"));
    }
    let mut material = Zeroizing::new(material.to_vec());
    cipher(&slot_key(passphrase, &header.slot)).decrypt_area(&mut material, SECTOR, 0, get_tweak_default);
    let master = split::merge(&material);
    pbkdf2::verify(pbkdf2::PBKDF2_HMAC_SHA256, header.digest_iterations, &header.digest_salt, &*master, &header.digest)
        .map_err(|_| Fault::Key)?;
    let mut contents = Zeroizing::new(payload.to_vec());
    cipher(&master).decrypt_area(&mut contents, SECTOR, 0, get_tweak_default);
    Ok(contents)
}

fn salt() -> Result<[u8; SALT_LEN], Fault> {
    let mut salt = [0; SALT_LEN];
    rand::fill(&mut salt).map_err(|_| Fault::NoRandom)?;
    Ok(salt)
}

fn master_digest(master: &Key, salt: &[u8; SALT_LEN], iterations: NonZeroU32) -> Zeroizing<[u8; DIGEST_LEN]> {
    let mut digest = Zeroizing::new([0; DIGEST_LEN]);
    pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, iterations, salt, &**master, &mut *digest);
    digest
}

/// The key that the key slot's material is encrypted with.
fn slot_key(passphrase: &[u8], slot: &KeySlot) -> Key {
    let mut key = Zeroizing::new([0; KEY_LEN]);
    pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, slot.iterations, &slot.salt, passphrase, &mut *key);
    key
}

/// Its round keys are zeroed when it is dropped.
fn cipher(key: &Key) -> Xts128<Aes256> {
    let (data, tweak) = key.split_at(KEY_LEN / 2);
    let half = |half: &[u8]| {
        #[expect(clippy::expect_used)]
        Aes256::new_from_slice(half).expect("half of 64 bytes is a key of AES-256")
    };
    Xts128::new(half(data), half(tweak))
}
