//! The certificates-only PKCS#7 (RFC 2315, section 9.1, without content and signers) of `signingCertificates`.

const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
/// `[0]`, constructed.
const CONTEXT_0: u8 = 0xa0;
/// 1.2.840.113549.1.7.2, signedData.
const SIGNED_DATA: [u8; 11] = [0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x07, 0x02];
/// 1.2.840.113549.1.7.1, data.
const DATA: [u8; 11] = [0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x07, 0x01];
const VERSION_1: [u8; 3] = [0x02, 0x01, 0x01];

/// A bag of one DER certificate.
pub(crate) fn certificates_only(certificate: &[u8]) -> Vec<u8> {
    let signed_data = element(
        SEQUENCE,
        &[
            &VERSION_1,
            &element(SET, &[]),
            &element(SEQUENCE, &[&DATA]),
            &element(CONTEXT_0, &[certificate]),
            &element(SET, &[]),
        ],
    );
    element(SEQUENCE, &[&SIGNED_DATA, &element(CONTEXT_0, &[&signed_data])])
}

fn element(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let mut der = vec![tag];
    let bytes = length.to_be_bytes();
    let significant = &bytes[bytes.iter().take_while(|byte| **byte == 0).count()..];
    match significant {
        [] => der.push(0),
        [short] if *short < 0x80 => der.push(*short),
        // At most eight bytes of length: the count fits the seven bits.
        long => {
            der.push(0x80 | long.len() as u8);
            der.extend_from_slice(long);
        }
    }
    for part in parts {
        der.extend_from_slice(part);
    }
    der
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_der() {
        assert_eq!(element(SET, &[]), [SET, 0]);
        assert_eq!(element(SET, &[&[7; 127]])[..2], [SET, 127]);
        assert_eq!(element(SET, &[&[7; 128]])[..3], [SET, 0x81, 128]);
        assert_eq!(element(SET, &[&[7; 300]])[..4], [SET, 0x82, 1, 44]);
    }
}
