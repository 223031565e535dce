//! The anti-forensic splitter (specification 1.2.3, section 2.4): it spreads a key over so many bytes that a disk which
//! remaps a few sectors keeps no usable copy of it.

use aws_lc_rs::{digest, rand};
use zeroize::Zeroizing;

use super::layout::{KEY_LEN, STRIPES};
use crate::error::LuksFault;

/// A master key, or a key slot's.
pub(super) type Key = Zeroizing<[u8; KEY_LEN]>;

/// Fills `material`, [`STRIPES`] times the key's length, with random bytes that together yield the key.
pub(super) fn split(key: &Key, material: &mut [u8]) -> Result<(), LuksFault> {
    let (noise, last) = material.split_at_mut(KEY_LEN * (STRIPES - 1));
    rand::fill(noise).map_err(|_| LuksFault::NoRandom)?;
    let mixed = mix(noise);
    for ((byte, mixed), key) in last.iter_mut().zip(mixed.iter()).zip(key.iter()) {
        *byte = mixed ^ key;
    }
    Ok(())
}

/// The key that [`split`] spread.
pub(super) fn merge(material: &[u8]) -> Key {
    let (noise, last) = material.split_at(KEY_LEN * (STRIPES - 1));
    let mut key = mix(noise);
    xor(&mut key, last);
    key
}

/// The result of all stripes but the last.
fn mix(noise: &[u8]) -> Key {
    let mut mixed: Key = Zeroizing::new([0; KEY_LEN]);
    for stripe in noise.chunks_exact(KEY_LEN) {
        xor(&mut mixed, stripe);
        diffuse(&mut mixed);
    }
    mixed
}

fn xor(key: &mut Key, stripe: &[u8]) {
    for (byte, other) in key.iter_mut().zip(stripe) {
        *byte ^= other;
    }
}

/// Each part of a digest's length becomes the digest of its number, four bytes big-endian, and itself.
fn diffuse(key: &mut Key) {
    for (part, number) in key.chunks_mut(digest::SHA256_OUTPUT_LEN).zip(0u32..) {
        let mut hash = digest::Context::new(&digest::SHA256);
        hash.update(&number.to_be_bytes());
        hash.update(part);
        part.copy_from_slice(hash.finish().as_ref());
    }
}
