//! Payload_V1 and Payload_V2 (MS-KPS 2.2.3.10.1 and .2): the two transport keys in a row, little endian.
//!
//! ```text
//! V1, V2: DataSize | Version | NumberOfKeys | KeyLength | ingress key | egress key
//! V2:     … | NumberOfPolicies | policies: PolicyId | PolicyType | PolicyDataSize | PolicyData
//! ```

use key_protector::TransportKey;
use zeroize::{Zeroize, Zeroizing};

use crate::version::ApiVersion;

const KEY: usize = 32;
const KEYS: usize = 2;
const HEADER: usize = 16;
/// NumberOfPolicies.
const POLICIES: usize = 4;
const V1_SIZE: usize = HEADER + KEYS * KEY;
const V2_SIZE: usize = V1_SIZE + POLICIES;
/// Room for the tag that encryption appends, so that the buffer of keys never moves.
const SPARE: usize = 64;

pub(crate) fn write(version: ApiVersion, ingress: &TransportKey, egress: &TransportKey) -> Zeroizing<Vec<u8>> {
    let size = match version {
        ApiVersion::V1 => V1_SIZE,
        ApiVersion::V2 => V2_SIZE,
    };
    let mut payload = Zeroizing::new(Vec::with_capacity(size + SPARE));
    // The four are small constants.
    for number in [size as u32, version.number(), KEYS as u32, KEY as u32] {
        payload.extend_from_slice(&number.to_le_bytes());
    }
    payload.extend_from_slice(ingress.expose());
    payload.extend_from_slice(egress.expose());
    if version == ApiVersion::V2 {
        // A VM's policy is in its sealed record and does not travel with the key.
        payload.extend_from_slice(&0_u32.to_le_bytes());
    }
    payload
}

/// Ingress and egress key; `None` for anything but exactly two keys of our length, in the requested version. Policies
/// are refused: none is known, and a policy that is ignored is broken.
pub(crate) fn read(version: ApiVersion, payload: &[u8]) -> Option<(TransportKey, TransportKey)> {
    let size = match version {
        ApiVersion::V1 => V1_SIZE,
        ApiVersion::V2 => V2_SIZE,
    };
    if payload.len() != size {
        return None;
    }
    let numbers = [size as u32, version.number(), KEYS as u32, KEY as u32];
    let mut rest = payload;
    for expected in numbers {
        if number(&mut rest)? != expected {
            return None;
        }
    }
    let ingress = key(&mut rest)?;
    let egress = key(&mut rest)?;
    if version == ApiVersion::V2 && number(&mut rest)? != 0 {
        return None;
    }
    Some((ingress, egress))
}

fn number(rest: &mut &[u8]) -> Option<u32> {
    let (number, tail) = rest.split_first_chunk::<4>()?;
    *rest = tail;
    Some(u32::from_le_bytes(*number))
}

fn key(rest: &mut &[u8]) -> Option<TransportKey> {
    let (bytes, tail) = rest.split_first_chunk::<KEY>()?;
    *rest = tail;
    let mut copy = *bytes;
    let key = TransportKey::from_bytes(copy);
    copy.zeroize();
    Some(key)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn both_versions_have_the_published_layout() {
        let (ingress, egress) = (TransportKey::from_bytes([1; 32]), TransportKey::from_bytes([2; 32]));
        let v1 = write(ApiVersion::V1, &ingress, &egress);
        assert_eq!(v1[..16], [80, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 32, 0, 0, 0]);
        assert_eq!(v1[16..48], [1; 32]);
        assert_eq!(v1[48..], [2; 32]);
        let v2 = write(ApiVersion::V2, &ingress, &egress);
        assert_eq!(v2[..8], [84, 0, 0, 0, 2, 0, 0, 0]);
        assert_eq!(v2[80..], [0; 4]);
        for (version, bytes) in [(ApiVersion::V1, &v1), (ApiVersion::V2, &v2)] {
            let (a, b) = read(version, bytes).unwrap();
            assert_eq!((a.expose(), b.expose()), (&[1; 32], &[2; 32]));
        }
    }

    #[test]
    fn every_other_size_number_and_version_is_refused() {
        let good = write(ApiVersion::V2, &TransportKey::from_bytes([1; 32]), &TransportKey::from_bytes([2; 32]));
        assert!(read(ApiVersion::V1, &good).is_none());
        for length in 0..good.len() {
            assert!(read(ApiVersion::V2, &good[..length]).is_none());
        }
        for at in (0..16).chain(80..84) {
            let mut bad = good.to_vec();
            bad[at] ^= 0xff;
            assert!(read(ApiVersion::V2, &bad).is_none(), "byte {at}");
        }
    }
}
