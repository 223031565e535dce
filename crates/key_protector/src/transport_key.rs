//! The transport key, and the keys that are derived from it.

use aws_lc_rs::{hkdf, rand};
use data_encoding::HEXLOWER;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

/// The HKDF salt of every derivation; it only separates this product from others.
pub(crate) const HKDF_SALT: &[u8] = b"drydock";

/// The secret from which everything that seals a VM is derived: 32 random bytes.
///
/// It has neither `Debug` nor `Clone`, and is zeroed when dropped.
#[derive(Zeroize, ZeroizeOnDrop)]
pub struct TransportKey([u8; Self::LEN]);

impl TransportKey {
    /// The length of a transport key in bytes.
    pub const LEN: usize = 32;

    /// A new random transport key.
    ///
    /// # Panics
    /// If the operating system's random generator fails: there is nothing safe to do instead.
    pub fn generate() -> Self {
        let mut key = Self([0; Self::LEN]);
        #[expect(clippy::expect_used)]
        rand::fill(&mut key.0).expect("the system's random generator must work");
        key
    }

    /// A transport key that was received or stored. The caller zeroes its own copy.
    pub fn from_bytes(bytes: [u8; Self::LEN]) -> Self {
        Self(bytes)
    }

    /// The key itself, for code that encrypts it.
    pub fn expose(&self) -> &[u8; Self::LEN] {
        &self.0
    }

    /// HKDF-SHA256 with this key as input, `drydock` as salt and `label` as info.
    pub fn derive(&self, label: &str) -> DerivedKey {
        let mut derived = DerivedKey([0; DerivedKey::LEN]);
        let prk = hkdf::Salt::new(hkdf::HKDF_SHA256, HKDF_SALT).extract(&self.0);
        // HKDF-SHA256 can fail only for more than 255 * 32 bytes of output.
        #[expect(clippy::expect_used)]
        prk.expand(&[label.as_bytes()], hkdf::HKDF_SHA256)
            .and_then(|okm| okm.fill(&mut derived.0))
            .expect("32 bytes of HKDF output are always available");
        derived
    }
}

/// A key derived from a [`TransportKey`] for one purpose. Zeroed when dropped.
#[derive(Zeroize, ZeroizeOnDrop)]
pub struct DerivedKey([u8; Self::LEN]);

impl DerivedKey {
    /// The length of a derived key in bytes.
    pub const LEN: usize = 32;

    /// The key itself.
    pub fn expose(&self) -> &[u8; Self::LEN] {
        &self.0
    }

    /// The key as 64 lower-case hexadecimal digits, for consumers that want text, such as a LUKS
    /// passphrase.
    pub fn hex(&self) -> Zeroizing<String> {
        // Reserved in full, so that no half-written copy is left behind by a reallocation.
        let mut text = Zeroizing::new(String::with_capacity(2 * Self::LEN));
        HEXLOWER.encode_append(&self.0, &mut text);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn derivation_is_hkdf_sha256() {
        // Computed with Python's hmac module: extract with salt "drydock", expand with "label".
        let key = TransportKey::from_bytes([7; 32]);
        assert_eq!(*key.derive("label").hex(), "8c0b2f9f82a0f0bb7d2af0ae01c13b6e93b1314988d15681356cdec086b4a818");
        assert_ne!(key.derive("label").expose(), key.derive("labek").expose());
    }

    #[test]
    fn generated_keys_differ() {
        assert_ne!(TransportKey::generate().expose(), TransportKey::generate().expose());
    }
}
