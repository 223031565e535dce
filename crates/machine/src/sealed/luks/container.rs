//! Sealing contents into a container, and opening one.

use std::num::NonZeroU32;

use aes::Aes256;
use aes::cipher::KeyInit;
use aws_lc_rs::{pbkdf2, rand};
use xts_mode::{Xts128, get_tweak_default};
use zeroize::Zeroizing;

use super::header::{Header, KeySlot};
use super::layout::{
    DIGEST_LEN, HEADER_LEN, KEY_LEN, MATERIAL_AT, MATERIAL_LEN, MAX_LEN, PAYLOAD_AT, SALT_LEN, SECTOR,
};
use super::split::{self, Key};
use crate::error::LuksFault;

/// QEMU never goes below this.
const ITERATIONS: NonZeroU32 = NonZeroU32::MIN.saturating_add(999);

/// A new container with `contents`, which are whole sectors, under a fresh master key.
///
/// # Errors
/// [`LuksFault::Format`] when `contents` are not whole sectors or too long; [`LuksFault::NoRandom`].
pub fn seal(contents: &[u8], passphrase: &[u8]) -> Result<Vec<u8>, LuksFault> {
    if !contents.len().is_multiple_of(SECTOR) {
        return Err(LuksFault::Format("the contents are not whole sectors"));
    }
    if contents.len() > MAX_LEN - PAYLOAD_AT {
        return Err(LuksFault::Format("the contents are too long"));
    }
    let mut master: Key = Zeroizing::new([0; KEY_LEN]);
    rand::fill(&mut *master).map_err(|_| LuksFault::NoRandom)?;
    let slot = KeySlot { iterations: ITERATIONS, salt: salt()? };
    let digest_salt = salt()?;
    let header = Header {
        digest: *master_digest(&master, &digest_salt, ITERATIONS),
        digest_salt,
        digest_iterations: ITERATIONS,
        slot,
    };
    // Allocated in full: the plain text is encrypted in place below and must leave no copy behind.
    let mut container = vec![0; PAYLOAD_AT + contents.len()];
    container[..HEADER_LEN].copy_from_slice(&header.to_bytes());
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
/// [`LuksFault::Format`] for anything else, [`LuksFault::Key`] for another passphrase. Changed contents go unnoticed:
/// LUKS authenticates nothing.
pub fn open(container: &[u8], passphrase: &[u8]) -> Result<Zeroizing<Vec<u8>>, LuksFault> {
    let header = Header::parse(container)?;
    let (Some(material), Some(payload)) =
        (container.get(MATERIAL_AT..MATERIAL_AT + MATERIAL_LEN), container.get(PAYLOAD_AT..))
    else {
        return Err(LuksFault::Format("it is too short"));
    };
    if !payload.len().is_multiple_of(SECTOR) {
        return Err(LuksFault::Format("its contents are not whole sectors"));
    }
    let mut material = Zeroizing::new(material.to_vec());
    cipher(&slot_key(passphrase, &header.slot)).decrypt_area(&mut material, SECTOR, 0, get_tweak_default);
    let master = split::merge(&material);
    pbkdf2::verify(pbkdf2::PBKDF2_HMAC_SHA256, header.digest_iterations, &header.digest_salt, &*master, &header.digest)
        .map_err(|_| LuksFault::Key)?;
    let mut contents = Zeroizing::new(payload.to_vec());
    cipher(&master).decrypt_area(&mut contents, SECTOR, 0, get_tweak_default);
    Ok(contents)
}

fn salt() -> Result<[u8; SALT_LEN], LuksFault> {
    let mut salt = [0; SALT_LEN];
    rand::fill(&mut salt).map_err(|_| LuksFault::NoRandom)?;
    Ok(salt)
}

fn master_digest(master: &Key, salt: &[u8; SALT_LEN], iterations: NonZeroU32) -> Zeroizing<[u8; DIGEST_LEN]> {
    let mut digest = Zeroizing::new([0; DIGEST_LEN]);
    pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, iterations, salt, &**master, &mut *digest);
    digest
}

/// The key that encrypts the key slot's material.
fn slot_key(passphrase: &[u8], slot: &KeySlot) -> Key {
    let mut key = Zeroizing::new([0; KEY_LEN]);
    pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, slot.iterations, &slot.salt, passphrase, &mut *key);
    key
}

/// The cipher zeroes its round keys when it is dropped.
fn cipher(key: &Key) -> Xts128<Aes256> {
    let (data, tweak) = key.split_at(KEY_LEN / 2);
    let half = |half: &[u8]| {
        #[expect(clippy::expect_used)]
        Aes256::new_from_slice(half).expect("half of 64 bytes is a key of AES-256")
    };
    Xts128::new(half(data), half(tweak))
}
