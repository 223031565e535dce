//! The service's keys in one encrypted file: for a further node, and as a backup.
//!
//! ```text
//! "DDHGSEX1"  salt (16)  nonce (12)  AES-256-GCM of the JSON {"version": 1, "files": {name: text}}, tag (16)
//! ```
//!
//! The key is Argon2id of the passphrase, with the parameters below; magic and salt are authenticated.

use std::collections::BTreeMap;
use std::path::Path;

use argon2::{Algorithm, Argon2, Params, Version};
use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use aws_lc_rs::rand;
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, Zeroizing};

use crate::error::{Error, Result};
use crate::files;
use crate::keys::{self, Keys};
use crate::store::StoreUrl;

const MAGIC: &[u8; 8] = b"DDHGSEX1";
const SALT: usize = 16;
const HEADER: usize = MAGIC.len() + SALT;
/// About half a second on a small machine, and too much memory for many guesses in parallel.
const MEMORY_KIB: u32 = 128 * 1024;
const PASSES: u32 = 4;
/// In bytes; a service with dozens of guardians stays below it.
const MAX_EXPORT: usize = 1 << 20;
/// In characters: the file holds the keys of a whole fabric.
const LEAST_PASSPHRASE: usize = 12;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Contents {
    version: u32,
    files: BTreeMap<String, String>,
}

impl Drop for Contents {
    fn drop(&mut self) {
        self.files.values_mut().for_each(Zeroize::zeroize);
    }
}

/// Takes about a second.
pub(crate) fn export(dir: &Path, keys: &Keys, passphrase: &str) -> Result<Vec<u8>> {
    if passphrase.chars().count() < LEAST_PASSPHRASE {
        return Err(Error::ShortPassphrase { least: LEAST_PASSPHRASE });
    }
    let mut contents = Contents { version: 1, files: BTreeMap::new() };
    for name in keys.files() {
        let path = dir.join(&name);
        let text = match name.as_str() {
            keys::SETTINGS => String::from_utf8(files::read(&path)?).map_err(|_| Error::Damaged { path })?,
            _ => files::read_secret(&path)?.to_string(),
        };
        contents.files.insert(name, text);
    }
    // Room for all of it and for the tag: the plaintext is never moved.
    let size = contents.files.iter().map(|(name, text)| name.len() + text.len() * 2 + 16).sum::<usize>();
    let mut plain = Zeroizing::new(Vec::with_capacity(size + 1024));
    // Writing strings into memory cannot fail.
    serde_json::to_writer(&mut *plain, &contents).map_err(|_| Error::NotAnExport)?;
    let mut header = MAGIC.to_vec();
    let mut salt = [0; SALT];
    rand::fill(&mut salt).map_err(|_| attestation::Error::Crypto)?;
    header.extend_from_slice(&salt);
    let nonce = key(passphrase, &salt)?
        .seal_in_place_append_tag(Aad::from(&header), &mut *plain)
        .map_err(|_| attestation::Error::Crypto)?;
    Ok([&header, nonce.as_ref().as_slice(), &plain].concat())
}

/// Writes the files of an export into `dir`, which is empty. `store` replaces the one in the export.
pub(crate) fn import(dir: &Path, exported: &[u8], passphrase: &str, store: Option<&StoreUrl>) -> Result<()> {
    let mut contents = open(exported, passphrase)?;
    if store.is_some() {
        contents.files.remove(keys::STORE_URL);
        keys::save_store(dir, store)?;
    }
    for (name, text) in &contents.files {
        // The author of an export can choose the files in the directory, but reach no place outside of it.
        let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-.".contains(&b));
        if !plain || name.starts_with('.') || name.len() > 64 {
            return Err(Error::NotAnExport);
        }
        let mode = if name == keys::SETTINGS { keys::PUBLIC } else { keys::SECRET };
        files::write_new(&dir.join(name), text.as_bytes(), mode)?;
    }
    let keys = Keys::load(dir)?;
    files::write_new(&dir.join(keys::PUBLIC_CA), keys.tls_ca.certificate_pem().as_bytes(), keys::PUBLIC)
}

fn open(exported: &[u8], passphrase: &str) -> Result<Contents> {
    if exported.len() > MAX_EXPORT {
        return Err(Error::NotAnExport);
    }
    let (header, rest) = exported.split_at_checked(HEADER).ok_or(Error::NotAnExport)?;
    let salt = header.strip_prefix(MAGIC).ok_or(Error::NotAnExport)?;
    let (nonce, ciphertext) = rest.split_at_checked(NONCE_LEN).ok_or(Error::NotAnExport)?;
    let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| Error::NotAnExport)?;
    let mut buffer = Zeroizing::new(ciphertext.to_vec());
    let plain =
        key(passphrase, salt)?.open_in_place(nonce, Aad::from(header), &mut buffer).map_err(|_| Error::ExportSealed)?;
    match serde_json::from_slice::<Contents>(plain) {
        Ok(contents) if contents.version == 1 => Ok(contents),
        _ => Err(Error::NotAnExport),
    }
}

fn key(passphrase: &str, salt: &[u8]) -> Result<RandomizedNonceKey> {
    let mut key = Zeroizing::new([0; 32]);
    let params = Params::new(MEMORY_KIB, PASSES, 1, Some(key.len())).map_err(|_| attestation::Error::Crypto)?;
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
        .hash_password_into(passphrase.as_bytes(), salt, &mut *key)
        .map_err(|_| attestation::Error::Crypto)?;
    Ok(RandomizedNonceKey::new(&AES_256_GCM, &*key).map_err(|_| attestation::Error::Crypto)?)
}
