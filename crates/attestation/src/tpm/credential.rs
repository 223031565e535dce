//! TPM2_MakeCredential (TPM 2.0 part 1, section 24), computed without a TPM.

use aws_lc_rs::cipher::{AES_128, EncryptingKey, EncryptionContext, UnboundCipherKey};
use aws_lc_rs::iv::FixedLength;
use aws_lc_rs::{hmac, rand};
use zeroize::Zeroizing;

use super::keys::{AkPublic, EkPublic};
use crate::error::{Error, Result};

const SECRET: usize = 32;
/// The digest size of the EK's name algorithm.
const SEED: usize = 32;
const AES_KEY: usize = 16;

/// What the TPM needs to release the secret.
pub struct Credential {
    /// TPM2B_ID_OBJECT.
    pub id_object: Vec<u8>,
    /// TPM2B_ENCRYPTED_SECRET.
    pub encrypted_seed: Vec<u8>,
}

/// Encrypts `secret` so that only the TPM with this EK can open it, and only while the object that `ak` names is loaded
/// in it.
///
/// # Errors
/// `Crypto` when the library fails.
pub fn make_credential(ek: &EkPublic, ak: &AkPublic, secret: &[u8; SECRET]) -> Result<Credential> {
    let mut seed = Zeroizing::new([0; SEED]);
    rand::fill(&mut *seed).map_err(|_| Error::Crypto)?;
    let mut identity = Zeroizing::new(Vec::with_capacity(2 + SECRET));
    identity.extend_from_slice(&(SECRET as u16).to_be_bytes());
    identity.extend_from_slice(secret);
    let key = kdfa(&*seed, b"STORAGE\0", ak.name(), 128);
    encrypt(&key[..AES_KEY], &mut identity)?;

    let key = hmac::Key::new(hmac::HMAC_SHA256, &*kdfa(&*seed, b"INTEGRITY\0", &[], 256));
    let mut integrity = hmac::Context::with_key(&key);
    integrity.update(&identity);
    integrity.update(ak.name());
    let integrity = integrity.sign();

    let id_object = sized(&[&sized(&[integrity.as_ref()]), &identity]);
    let encrypted_seed = sized(&[&ek.encrypt_seed(&*seed)?]);
    Ok(Credential { id_object, encrypted_seed })
}

/// KDFa with SHA-256 (TPM 2.0 part 1, 11.4.10.2) for at most one block of output. `label` ends with its zero.
fn kdfa(key: &[u8], label: &[u8], context: &[u8], bits: u32) -> Zeroizing<[u8; 32]> {
    let key = hmac::Key::new(hmac::HMAC_SHA256, key);
    let mut block = hmac::Context::with_key(&key);
    for part in [&1_u32.to_be_bytes(), label, context, &bits.to_be_bytes()] {
        block.update(part);
    }
    let mut output = Zeroizing::new([0; 32]);
    output.copy_from_slice(block.sign().as_ref());
    output
}

/// AES-128-CFB with an IV of zeros: the key is used for this one message.
fn encrypt(key: &[u8], in_out: &mut [u8]) -> Result<()> {
    let key = UnboundCipherKey::new(&AES_128, key).map_err(|_| Error::Crypto)?;
    EncryptingKey::cfb128(key)
        .and_then(|key| key.less_safe_encrypt(in_out, EncryptionContext::Iv128(FixedLength::from([0; 16]))))
        .map(drop)
        .map_err(|_| Error::Crypto)
}

/// A TPM2B of these parts, which are a few hundred bytes together.
fn sized(parts: &[&[u8]]) -> Vec<u8> {
    let body = parts.concat();
    let mut whole = (body.len() as u16).to_be_bytes().to_vec();
    whole.extend_from_slice(&body);
    whole
}
