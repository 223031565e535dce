//! A transport key inside a wrapping: RSA-OAEP with SHA-256 throughout and an empty label.

use aws_lc_rs::rsa::{OAEP_SHA256_MGF1SHA256, OaepPublicEncryptingKey, PublicEncryptingKey};
use zeroize::Zeroizing;

use crate::certificate::{Certificate, PublicKey};
use crate::error::{Error, KeyError, Result};
use crate::private_keys::Opener;
use crate::transport_key::TransportKey;

/// Encrypts `key` for `certificate`.
pub(crate) fn wrap(key: &TransportKey, certificate: &Certificate) -> Result<Vec<u8>> {
    let failed = |_| Error::Crypto { operation: "wrap a transport key" };
    let PublicKey::Rsa { spki, .. } = certificate.public_key() else {
        return Err(Error::PublicKey {
            subject: certificate.common_name().to_owned(),
            problem: "an encryption key must be RSA",
        });
    };
    let public = PublicEncryptingKey::from_der(spki).map_err(|_| Error::Crypto { operation: "read a public key" })?;
    let public = OaepPublicEncryptingKey::new(public).map_err(failed)?;
    let mut cipher = vec![0; public.ciphertext_size()];
    let length = public.encrypt(&OAEP_SHA256_MGF1SHA256, key.expose(), &mut cipher, None).map_err(failed)?.len();
    cipher.truncate(length);
    Ok(cipher)
}

/// Decrypts the transport key of the wrapping `id`.
pub(crate) fn unwrap(by: &dyn Opener, cipher: &[u8], id: u32) -> Result<TransportKey> {
    let plain = by.unwrap_key(cipher).map_err(|source| match source {
        KeyError::NotForThisKey => Error::Unwrap { id },
        source => Error::KeyOperation {
            guardian: by.public().name().to_owned(),
            operation: "unwrap the transport key",
            source,
        },
    })?;
    let mut key = Zeroizing::new([0; TransportKey::LEN]);
    if plain.len() != key.len() {
        return Err(Error::Unwrap { id });
    }
    key.copy_from_slice(&plain);
    Ok(TransportKey::from_bytes(*key))
}
