//! The two keys of a TPM that attestation is about.

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::rsa::{OAEP_SHA256_MGF1SHA256, OaepPublicEncryptingKey, PublicEncryptingKey};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, ParsedPublicKey};
use data_encoding::HEXLOWER;

use super::reader::Reader;
use crate::error::{Error, Result};
use crate::pem;

const PUBLIC_LABEL: &str = "PUBLIC KEY";
const EK_BITS: usize = 2048;
/// SubjectPublicKeyInfo of RSA-2048 is 294 bytes with the exponent 65537.
const MAX_DER: usize = 320;

// TPM 2.0 part 2, 6.3 and 6.4.
pub(super) const ALG_SHA256: u16 = 0x000b;
const ALG_NULL: u16 = 0x0010;
pub(super) const ALG_ECDSA: u16 = 0x0018;
const ALG_ECC: u16 = 0x0023;
const CURVE_P256: u16 = 0x0003;

// TPM 2.0 part 2, 8.3.2, TPMA_OBJECT.
const FIXED_TPM: u32 = 1 << 1;
const FIXED_PARENT: u32 = 1 << 4;
const SENSITIVE_DATA_ORIGIN: u32 = 1 << 5;
const RESTRICTED: u32 = 1 << 16;
const DECRYPT: u32 = 1 << 17;
const SIGN: u32 = 1 << 18;
/// A key that was made in this TPM, cannot leave it, and signs nothing but what the TPM itself says.
const REQUIRED: u32 = FIXED_TPM | FIXED_PARENT | SENSITIVE_DATA_ORIGIN | RESTRICTED | SIGN;
/// Also stClear, userWithAuth, adminWithPolicy and noDA, which decide who may use the key.
const ALLOWED: u32 = REQUIRED | 1 << 2 | 1 << 6 | 1 << 7 | 1 << 10;

/// Why a key is not accepted as an attestation key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// It cannot be read.
    #[error("the attestation key is not a TPMT_PUBLIC")]
    Malformed,
    /// Another algorithm or another curve.
    #[error("the attestation key is not ECDSA P-256 with SHA-256")]
    Algorithm,
    /// These TPMA_OBJECT attributes.
    #[error("the attestation key is not a restricted signing key that never leaves its TPM (attributes {0:#010x})")]
    Attributes(u32),
    /// The public point is not on the curve.
    #[error("the attestation key is not a point of P-256")]
    Point,
}

/// A TPM's endorsement key: RSA-2048, AES-128-CFB for its children, SHA-256 for its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EkPublic {
    der: Vec<u8>,
}

impl EkPublic {
    /// Reads a DER SubjectPublicKeyInfo.
    ///
    /// # Errors
    /// `NotEndorsementKey` for anything but the one DER encoding of an RSA-2048 SubjectPublicKeyInfo.
    pub fn from_der(der: &[u8]) -> Result<Self> {
        if der.len() > MAX_DER {
            return Err(Error::NotEndorsementKey);
        }
        rcgen::SubjectPublicKeyInfo::from_der(der).map_err(|_| Error::NotEndorsementKey)?;
        let key = PublicEncryptingKey::from_der(der).map_err(|_| Error::NotEndorsementKey)?;
        let canonical: PublicKeyX509Der<'_> = key.as_der().map_err(|_| Error::NotEndorsementKey)?;
        // Equal keys have equal bytes and one fingerprint.
        if key.key_size_bits() != EK_BITS || canonical.as_ref() != der {
            return Err(Error::NotEndorsementKey);
        }
        Ok(EkPublic { der: der.to_vec() })
    }

    /// Reads PEM or DER: what `tpm2_createek --public` writes with `--format pem`.
    ///
    /// # Errors
    /// `NotEndorsementKey`.
    pub fn from_file(bytes: &[u8]) -> Result<Self> {
        if bytes.first() == Some(&0x30) {
            return Self::from_der(bytes);
        }
        let text = std::str::from_utf8(bytes).map_err(|_| Error::NotEndorsementKey)?;
        Self::from_der(&pem::decode(PUBLIC_LABEL, text).map_err(|_| Error::NotEndorsementKey)?)
    }

    /// DER SubjectPublicKeyInfo.
    #[must_use]
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// Lower-case hexadecimal SHA-256 of [`der`](Self::der).
    #[must_use]
    pub fn fingerprint(&self) -> String {
        HEXLOWER.encode(digest(&SHA256, &self.der).as_ref())
    }

    /// RSA-OAEP with the name's digest and the label `IDENTITY` (TPM 2.0 part 1, B.10.4).
    pub(super) fn encrypt_seed(&self, seed: &[u8]) -> Result<Vec<u8>> {
        let key = PublicEncryptingKey::from_der(&self.der).map_err(|_| Error::Crypto)?;
        let key = OaepPublicEncryptingKey::new(key).map_err(|_| Error::Crypto)?;
        let mut ciphertext = vec![0; key.ciphertext_size()];
        let length = key
            .encrypt(&OAEP_SHA256_MGF1SHA256, seed, &mut ciphertext, Some(b"IDENTITY\0"))
            .map_err(|_| Error::Crypto)?
            .len();
        ciphertext.truncate(length);
        Ok(ciphertext)
    }
}

/// A restricted signing key of a TPM, as the TPM describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AkPublic {
    name: [u8; 34],
    /// Uncompressed.
    point: [u8; 65],
}

impl AkPublic {
    /// Reads a TPM2B_PUBLIC, as `tpm2_createak --public` writes it with `--format tss`.
    ///
    /// # Errors
    /// The rule that is broken.
    pub fn parse(bytes: &[u8]) -> std::result::Result<Self, KeyError> {
        let mut outer = Reader::new(bytes);
        let public = outer.sized(512).ok_or(KeyError::Malformed)?;
        outer.end().ok_or(KeyError::Malformed)?;
        let (attributes, point) = parse_public(public)?;
        if attributes & REQUIRED != REQUIRED || attributes & DECRYPT != 0 || attributes & !ALLOWED != 0 {
            return Err(KeyError::Attributes(attributes));
        }
        ParsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point).map_err(|_| KeyError::Point)?;
        // TPM 2.0 part 1, 16: the name is the algorithm and the digest of the public area.
        let mut name = [0; 34];
        name[..2].copy_from_slice(&ALG_SHA256.to_be_bytes());
        name[2..].copy_from_slice(digest(&SHA256, public).as_ref());
        Ok(AkPublic { name, point })
    }

    /// What credentials are bound to: a key with other attributes, or another key, has another name.
    #[must_use]
    pub fn name(&self) -> &[u8; 34] {
        &self.name
    }

    /// `signature` is r and s, 32 bytes each.
    pub(super) fn verify(&self, message: &[u8], signature: &[u8; 64]) -> bool {
        ParsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, self.point)
            .is_ok_and(|key| key.verify_sig(message, signature).is_ok())
    }
}

/// TPMT_PUBLIC (TPM 2.0 part 2, 12.2.4) of an ECC signing key: its attributes and its point.
fn parse_public(public: &[u8]) -> std::result::Result<(u32, [u8; 65]), KeyError> {
    let mut reader = Reader::new(public);
    let mut read = || {
        let (kind, name) = (reader.be16()?, reader.be16()?);
        let attributes = reader.be32()?;
        reader.sized(32)?;
        if kind != ALG_ECC {
            return Some(Err(KeyError::Algorithm));
        }
        let symmetric = reader.be16()?;
        if symmetric != ALG_NULL {
            return Some(Err(KeyError::Algorithm));
        }
        let scheme = (reader.be16()?, reader.be16()?);
        let (curve, kdf) = (reader.be16()?, reader.be16()?);
        if name != ALG_SHA256 || scheme != (ALG_ECDSA, ALG_SHA256) || curve != CURVE_P256 || kdf != ALG_NULL {
            return Some(Err(KeyError::Algorithm));
        }
        let mut point = [0; 65];
        point[0] = 4;
        left_padded(reader.sized(32)?, &mut point[1..33]);
        left_padded(reader.sized(32)?, &mut point[33..]);
        reader.end()?;
        Some(Ok((attributes, point)))
    };
    read().unwrap_or(Err(KeyError::Malformed))
}

/// A TPM may leave out a number's leading zeros. `number` is not longer than `target`.
pub(super) fn left_padded(number: &[u8], target: &mut [u8]) {
    let start = target.len().saturating_sub(number.len());
    target[start..].copy_from_slice(number);
}
