//! The challenges of TPM mode. The service stores none of them: its state travels with the host, sealed under a key
//! that all nodes have, so that the answer may reach another node than the one that made the challenge. The store only
//! knows which ones have been answered, so that none is answered twice.

use attestation::IdentityPublic;
use attestation::tpm::{AkPublic, EkPublic};
use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{Context, SHA256};
use aws_lc_rs::rand;
use time::{Duration, OffsetDateTime};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::error::Result;

/// How long a host's TPM may take. A slow one needs half a minute to make its keys.
const LIFETIME: Duration = Duration::minutes(5);
const AAD: &[u8] = b"drydock/tpm-attest/state/1";
const SEALED: usize = 8 + 32 * 3;

/// What a host has to do.
#[derive(Zeroize, ZeroizeOnDrop)]
pub(crate) struct Challenge {
    pub(crate) nonce: [u8; 32],
    /// Goes into the credential.
    pub(crate) secret: [u8; 32],
}

/// Why an answer is not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unanswered {
    #[error("the challenge was not made by this service for these keys")]
    NotOurs,
    #[error("the challenge is too old")]
    Expired,
    #[error("the secret is not the one in the credential: the attestation key is not in the registered TPM")]
    Secret,
    #[error("the challenge has been answered already")]
    Answered,
}

impl Unanswered {
    /// Whether starting again can help.
    pub(crate) fn retryable(self) -> bool {
        !matches!(self, Unanswered::Secret)
    }
}

/// An answer that is right, if it is the first one.
pub(crate) struct Answer {
    /// What the quote has to cover.
    pub(crate) nonce: [u8; 32],
    pub(crate) expires: OffsetDateTime,
}

pub(crate) struct Challenges {
    key: RandomizedNonceKey,
}

impl Challenges {
    pub(crate) fn new(key: &[u8; 32]) -> Result<Self> {
        let key = RandomizedNonceKey::new(&AES_256_GCM, key).map_err(|_| attestation::Error::Crypto)?;
        Ok(Challenges { key })
    }

    /// A new challenge, and the state that has to come back with its answer.
    pub(crate) fn make(
        &self,
        ek: &EkPublic,
        ak: &AkPublic,
        identity: &IdentityPublic,
        now: OffsetDateTime,
    ) -> Result<(Challenge, Vec<u8>)> {
        let mut challenge = Challenge { nonce: [0; 32], secret: [0; 32] };
        for part in [&mut challenge.nonce, &mut challenge.secret] {
            rand::fill(part).map_err(|_| attestation::Error::Crypto)?;
        }
        let mut state = Zeroizing::new(Vec::with_capacity(SEALED + 16));
        state.extend_from_slice(&(now + LIFETIME).unix_timestamp().to_le_bytes());
        state.extend_from_slice(&challenge.nonce);
        state.extend_from_slice(&challenge.secret);
        state.extend_from_slice(&keys_digest(ek, ak, identity));
        let nonce =
            self.key.seal_in_place_append_tag(Aad::from(AAD), &mut *state).map_err(|_| attestation::Error::Crypto)?;
        let sealed = [nonce.as_ref().as_slice(), &state].concat();
        Ok((challenge, sealed))
    }

    /// Checks the answer to a challenge. Whether it is the first one, the store knows.
    pub(crate) fn answer(
        &self,
        sealed: &[u8],
        secret: &[u8],
        (ek, ak, identity): (&EkPublic, &AkPublic, &IdentityPublic),
        now: OffsetDateTime,
    ) -> std::result::Result<Answer, Unanswered> {
        let state = self.open(sealed).ok_or(Unanswered::NotOurs)?;
        let (expires, rest) = state.split_first_chunk::<8>().ok_or(Unanswered::NotOurs)?;
        let (nonce, rest) = rest.split_first_chunk::<32>().ok_or(Unanswered::NotOurs)?;
        let (expected, keys) = rest.split_first_chunk::<32>().ok_or(Unanswered::NotOurs)?;
        if keys != keys_digest(ek, ak, identity) {
            return Err(Unanswered::NotOurs);
        }
        let expires =
            OffsetDateTime::from_unix_timestamp(i64::from_le_bytes(*expires)).map_err(|_| Unanswered::NotOurs)?;
        if now > expires {
            return Err(Unanswered::Expired);
        }
        verify_slices_are_equal(secret, expected).map_err(|_| Unanswered::Secret)?;
        Ok(Answer { nonce: *nonce, expires })
    }

    fn open(&self, sealed: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        let (nonce, ciphertext) = sealed.split_at_checked(NONCE_LEN)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let mut state = Zeroizing::new(ciphertext.to_vec());
        let length = self.key.open_in_place(nonce, Aad::from(AAD), &mut state).ok()?.len();
        state.truncate(length);
        (length == SEALED).then_some(state)
    }
}

/// The three keys that a challenge is for. All but the last have a fixed length.
fn keys_digest(ek: &EkPublic, ak: &AkPublic, identity: &IdentityPublic) -> [u8; 32] {
    let mut context = Context::new(&SHA256);
    for part in [ek.der(), ak.name(), identity.der()] {
        context.update(part);
    }
    let mut digest = [0; 32];
    digest.copy_from_slice(context.finish().as_ref());
    digest
}
