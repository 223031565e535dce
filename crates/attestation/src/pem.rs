//! PEM of one known label, in memory that is wiped.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use crate::error::{Error, Result};

/// Longest PEM text taken: far above any key or certificate here.
const MAX_TEXT: usize = 64 << 10;
const LINE: usize = 64;

pub(crate) fn encode(label: &str, der: &[u8]) -> Zeroizing<String> {
    let body = Zeroizing::new(STANDARD.encode(der));
    // The capacity is exact or larger: growing would leave unwiped copies of a private key behind.
    let mut text = Zeroizing::new(String::with_capacity(body.len() + body.len() / LINE + 2 * label.len() + 64));
    text.push_str("-----BEGIN ");
    text.push_str(label);
    text.push_str("-----\n");
    let mut rest: &str = &body;
    while !rest.is_empty() {
        let (line, tail) = rest.split_at(rest.len().min(LINE));
        text.push_str(line);
        text.push('\n');
        rest = tail;
    }
    text.push_str("-----END ");
    text.push_str(label);
    text.push_str("-----\n");
    text
}

/// The first block with this label.
pub(crate) fn decode(label: &str, text: &str) -> Result<Zeroizing<Vec<u8>>> {
    if text.len() > MAX_TEXT {
        return Err(Error::NotPem);
    }
    let begin = format!("-----BEGIN {label}-----");
    let end = format!("-----END {label}-----");
    let (_, after) = text.split_once(&begin).ok_or(Error::NotPem)?;
    let (body, _) = after.split_once(&end).ok_or(Error::NotPem)?;
    let mut compact = Zeroizing::new(String::with_capacity(body.len()));
    compact.extend(body.chars().filter(|c| !c.is_ascii_whitespace()));
    STANDARD.decode(compact.as_bytes()).map(Zeroizing::new).map_err(|_| Error::NotPem)
}
