//! The three layers in which transport keys travel (MS-KPS 2.2.3.7 to 2.2.3.9): a transfer key for the attested
//! identity key, a wrapping key under it, the payload under that.

use attestation::{IdentityKey, IdentityPublic};
use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use aws_lc_rs::rand;
use key_protector::TransportKey;
use zeroize::{Zeroize, Zeroizing};

use crate::payload;
use crate::version::ApiVersion;

const KEY: usize = 32;
const TRANSFER_DOMAIN: &[u8] = b"drydock/kps/wrapping-key/1";
const KEYS_DOMAIN: &str = "drydock/kps/transport-keys/1";

/// Two transport keys as they are in a response; nothing here is secret.
#[derive(Debug)]
pub struct WrappedKeys {
    /// EncryptedTransferKey.
    pub transfer_key: Vec<u8>,
    /// EncryptedWrappingKey.
    pub wrapping_key: Vec<u8>,
    /// EncryptedTransportKeys.
    pub transport_keys: Vec<u8>,
}

/// What the keys are bound to: they cannot be paired with another protector than the one they belong to.
pub struct Binding<'a> {
    /// The form of `rolltransportkey` that was called.
    pub version: ApiVersion,
    /// `Protector::digest` of the protector that was sent.
    pub ingress: &'a str,
    /// `Protector::digest` of the protector that comes back.
    pub egress: &'a str,
}

impl Binding<'_> {
    fn bytes(&self) -> Vec<u8> {
        // Digests are hexadecimal: the separator cannot occur in them.
        format!("{KEYS_DOMAIN}|{}|{}|{}", self.version.number(), self.ingress, self.egress).into_bytes()
    }
}

impl WrappedKeys {
    /// Encrypts both keys to an attested host.
    ///
    /// # Errors
    /// `Crypto` when the library fails.
    pub fn seal(
        to: &IdentityPublic,
        ingress: &TransportKey,
        egress: &TransportKey,
        binding: &Binding<'_>,
    ) -> Result<Self, attestation::Error> {
        let transfer_key = fresh_key()?;
        let wrapping_key = fresh_key()?;
        let mut keys = payload::write(binding.version, ingress, egress);
        Ok(WrappedKeys {
            transfer_key: to.encrypt(&*transfer_key)?,
            wrapping_key: encrypt(&transfer_key, TRANSFER_DOMAIN, &mut Zeroizing::new(spacious(&*wrapping_key)))?,
            transport_keys: encrypt(&wrapping_key, &binding.bytes(), &mut keys)?,
        })
    }

    /// Ingress and egress key; `None` when any layer does not open.
    #[must_use]
    pub fn open(&self, by: &IdentityKey, binding: &Binding<'_>) -> Option<(TransportKey, TransportKey)> {
        let transfer_key = by.decrypt(&self.transfer_key).ok()?;
        let wrapping_key = decrypt(&transfer_key, TRANSFER_DOMAIN, &self.wrapping_key)?;
        let keys = decrypt(&wrapping_key, &binding.bytes(), &self.transport_keys)?;
        payload::read(binding.version, &keys)
    }
}

fn fresh_key() -> Result<Zeroizing<[u8; KEY]>, attestation::Error> {
    let mut key = Zeroizing::new([0; KEY]);
    rand::fill(&mut *key).map_err(|_| attestation::Error::Crypto)?;
    Ok(key)
}

/// A copy with room for the tag.
fn spacious(bytes: &[u8]) -> Vec<u8> {
    let mut copy = Vec::with_capacity(bytes.len() + AES_256_GCM.tag_len());
    copy.extend_from_slice(bytes);
    copy
}

/// Nonce, ciphertext, tag. `plaintext` is overwritten with ciphertext.
fn encrypt(key: &[u8; KEY], aad: &[u8], plaintext: &mut Vec<u8>) -> Result<Vec<u8>, attestation::Error> {
    let cipher = RandomizedNonceKey::new(&AES_256_GCM, key).map_err(|_| attestation::Error::Crypto)?;
    let nonce = cipher.seal_in_place_append_tag(Aad::from(aad), plaintext).map_err(|_| attestation::Error::Crypto)?;
    Ok([nonce.as_ref().as_slice(), plaintext].concat())
}

fn decrypt(key: &[u8], aad: &[u8], sealed: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let cipher = RandomizedNonceKey::new(&AES_256_GCM, key).ok()?;
    let (nonce, ciphertext) = sealed.split_at_checked(NONCE_LEN)?;
    let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
    let mut buffer = Zeroizing::new(ciphertext.to_vec());
    let length = cipher.open_in_place(nonce, Aad::from(aad), &mut buffer).ok()?.len();
    // Truncating only hides the tag's bytes; the whole buffer is wiped.
    buffer[length..].zeroize();
    buffer.truncate(length);
    Some(buffer)
}
