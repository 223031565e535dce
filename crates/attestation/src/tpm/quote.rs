//! TPM2_Quote: TPMS_ATTEST and TPMT_SIGNATURE (TPM 2.0 part 2, 10.12.8 and 11.3.4).

use aws_lc_rs::digest::{Context, SHA256};

use super::keys::{ALG_ECDSA, ALG_SHA256, AkPublic, left_padded};
use super::pcr::{Pcr, QUOTED};
use super::reader::Reader;
use crate::identity::IdentityPublic;

const GENERATED: u32 = 0xff54_4347;
const ST_ATTEST_QUOTE: u16 = 0x8018;
const DOMAIN: &[u8] = b"drydock/tpm-attest/quote/1";

/// The qualifying data that a quote of this host must carry: they bind it to the service's nonce and to the key that
/// will be certified.
#[must_use]
pub fn qualifying_data(nonce: &[u8; 32], identity: &IdentityPublic) -> [u8; 32] {
    let mut context = Context::new(&SHA256);
    // The first two have fixed lengths.
    for part in [DOMAIN, nonce, identity.der()] {
        context.update(part);
    }
    let mut data = [0; 32];
    data.copy_from_slice(context.finish().as_ref());
    data
}

/// Why a quote proves nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum QuoteError {
    /// It cannot be read, or it is another statement of a TPM.
    #[error("the quote is not a TPMS_ATTEST of a quote")]
    Malformed,
    /// The signature is of another scheme.
    #[error("the quote's signature is not an ECDSA signature with SHA-256")]
    SignatureFormat,
    /// The signature is wrong.
    #[error("the quote was not signed by the attestation key")]
    Signature,
    /// The qualifying data are others.
    #[error("the quote does not answer this challenge, or was made for another identity key")]
    Nonce,
    /// Other PCRs, or another bank.
    #[error("the quote is not over the PCRs that were asked for, in the SHA-256 bank")]
    Selection,
}

/// A quote whose signature, freshness and selection have been checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quote {
    pcr_digest: [u8; 32],
}

struct Attest<'a> {
    extra: &'a [u8],
    selects: bool,
    digest: &'a [u8],
}

impl Quote {
    /// Checks a TPMS_ATTEST and its TPMT_SIGNATURE.
    ///
    /// # Errors
    /// The rule that is broken.
    pub fn verify(attest: &[u8], signature: &[u8], ak: &AkPublic, qualifying: &[u8; 32]) -> Result<Self, QuoteError> {
        let signature = parse_signature(signature).ok_or(QuoteError::SignatureFormat)?;
        if !ak.verify(attest, &signature) {
            return Err(QuoteError::Signature);
        }
        // The key is restricted: it signs what starts with this magic only when the TPM itself made it.
        let parsed = parse_attest(attest).ok_or(QuoteError::Malformed)?;
        if parsed.extra != qualifying {
            return Err(QuoteError::Nonce);
        }
        if !parsed.selects {
            return Err(QuoteError::Selection);
        }
        let pcr_digest = parsed.digest.try_into().map_err(|_| QuoteError::Malformed)?;
        Ok(Quote { pcr_digest })
    }

    /// Whether the quoted PCRs have these values; `pcrs` are all of them, by number.
    #[must_use]
    pub fn is_over(&self, pcrs: &[Pcr; 24]) -> bool {
        let mut context = Context::new(&SHA256);
        for index in QUOTED {
            context.update(&pcrs[index as usize]);
        }
        context.finish().as_ref() == self.pcr_digest
    }
}

fn parse_attest(bytes: &[u8]) -> Option<Attest<'_>> {
    let mut reader = Reader::new(bytes);
    if reader.be32()? != GENERATED || reader.be16()? != ST_ATTEST_QUOTE {
        return None;
    }
    // qualifiedSigner: the signature identifies the AK.
    reader.sized(68)?;
    let extra = reader.sized(64)?;
    // clockInfo (17), firmwareVersion (8).
    reader.bytes(25)?;
    let selects = reader.be32()? == 1 && reader.be16()? == ALG_SHA256 && {
        let length = reader.u8()?;
        let bitmap = reader.bytes(usize::from(length))?;
        length >= 3 && selected(bitmap).eq(QUOTED)
    };
    if !selects {
        return Some(Attest { extra, selects, digest: &[] });
    }
    let digest = reader.sized(64)?;
    reader.end()?;
    Some(Attest { extra, selects, digest })
}

/// The numbers of the bits that are set, ascending.
fn selected(bitmap: &[u8]) -> impl Iterator<Item = u32> {
    bitmap.iter().zip(0_u32..).flat_map(|(byte, at)| {
        let byte = *byte;
        (0..8).filter(move |bit| byte & (1 << bit) != 0).map(move |bit| at * 8 + bit)
    })
}

fn parse_signature(bytes: &[u8]) -> Option<[u8; 64]> {
    let mut reader = Reader::new(bytes);
    if reader.be16()? != ALG_ECDSA || reader.be16()? != ALG_SHA256 {
        return None;
    }
    let mut signature = [0; 64];
    left_padded(reader.sized(32)?, &mut signature[..32]);
    left_padded(reader.sized(32)?, &mut signature[32..]);
    reader.end()?;
    Some(signature)
}
