//! PEM (RFC 7468) of one known label, in memory that is wiped.

use pem_rfc7468::{Decoder, LineEnding};
use zeroize::Zeroizing;

use crate::error::{Error, Result};

/// Longest PEM text accepted, in bytes: far above any key or certificate here.
const MAX_TEXT: usize = 64 << 10;

/// One block, in lines of 64 columns.
pub(crate) fn encode(label: &str, der: &[u8]) -> Zeroizing<String> {
    // Only a malformed label, or one of gigabytes, fails: ours are constants. The buffer is made in its final size, so
    // that no copy of a private key is left behind.
    Zeroizing::new(pem_rfc7468::encode_string(label, LineEnding::LF, der).unwrap_or_default())
}

/// The first block with this label. The text may hold others, such as a certificate beside its key.
pub(crate) fn decode(label: &str, text: &str) -> Result<Zeroizing<Vec<u8>>> {
    if text.len() > MAX_TEXT {
        return Err(Error::NotPem);
    }
    // The library reads a text of one block.
    let begin = text.find(&format!("-----BEGIN {label}-----")).ok_or(Error::NotPem)?;
    let end = format!("-----END {label}-----");
    let block = &text[begin..];
    let block = &block[..block.find(&end).ok_or(Error::NotPem)? + end.len()];
    let mut decoder = Decoder::new_detect_wrap(block.as_bytes()).map_err(|_| Error::NotPem)?;
    let mut der = Zeroizing::new(vec![0; decoder.remaining_len()]);
    decoder.decode(&mut der).map_err(|_| Error::NotPem)?;
    if decoder.is_finished() { Ok(der) } else { Err(Error::NotPem) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const LABEL: &str = "PUBLIC KEY";

    #[test]
    fn blocks_come_back_as_they_were_written() {
        for length in [1, 2, 3, 47, 48, 49, 91, 96, 1000] {
            let der: Vec<u8> = (0..length).map(|at| (at % 251) as u8).collect();
            let text = encode(LABEL, &der);
            assert!(text.lines().all(|line| line.len() <= 64) && text.ends_with("-----END PUBLIC KEY-----\n"));
            assert_eq!(*decode(LABEL, &text).unwrap(), der);
            assert_eq!(*decode(LABEL, &text.replace('\n', "\r\n")).unwrap(), der);
            let beside = format!("a note\n{}{}{}", *encode("CERTIFICATE", b"other"), *text, *encode(LABEL, b"later"));
            assert_eq!(*decode(LABEL, &beside).unwrap(), der);
        }
    }

    /// Other tools wrap at other widths, or not at all.
    #[test]
    fn lines_of_another_width_are_read() {
        let der = vec![7; 91];
        let text = encode(LABEL, &der);
        let body: String = text.lines().filter(|line| !line.starts_with('-')).collect();
        for width in [76, 4096] {
            let lines: Vec<&str> =
                body.as_bytes().chunks(width).map(|line| std::str::from_utf8(line).unwrap()).collect();
            let wrapped = format!("-----BEGIN {LABEL}-----\n{}\n-----END {LABEL}-----\n", lines.join("\n"));
            assert_eq!(*decode(LABEL, &wrapped).unwrap(), der, "{width} columns");
        }
    }

    #[test]
    fn everything_else_is_refused() {
        let block = |body: &str| format!("-----BEGIN {LABEL}-----\n{body}\n-----END {LABEL}-----\n");
        assert_eq!(*decode(LABEL, &block("AA==")).unwrap(), [0], "the control");
        for body in ["", "A", "AB==", "AA=", "AA", "A A=", "AA==AA==", "AAAA=", "!AAA", "Proc-Type: 4\n\nAAAA"] {
            assert_eq!(decode(LABEL, &block(body)).err(), Some(Error::NotPem), "{body:?}");
        }
        let text = block("AAAA");
        for bad in [&text[1..], &text[..text.len() - 3], &text.replace(LABEL, "KEY"), &text.replacen(LABEL, "KEY", 1)] {
            assert_eq!(decode(LABEL, bad).err(), Some(Error::NotPem), "{bad}");
        }
        assert_eq!(decode(LABEL, &(" ".repeat(MAX_TEXT) + &text)).err(), Some(Error::NotPem));
    }
}
