//! How the SHA-256 fingerprint of a certificate or a key is shown, and how one that somebody types is read.
//!
//! A person who compares two fingerprints sees all 64 digits: 16 of them can be made to agree by trying keys. JSON has
//! the plain digits.

/// How many digits stand together.
const GROUP: usize = 4;
/// How many digits are a hint.
const HINT: usize = 16;

/// All of it in groups of four, for people to compare: `0123 4567 89ab …`.
pub(crate) fn grouped(fingerprint: &str) -> String {
    let digits: Vec<char> = fingerprint.chars().collect();
    digits.chunks(GROUP).map(String::from_iter).collect::<Vec<_>>().join(" ")
}

/// The first quarter: enough to tell the rows of a table apart, too little to trust.
pub(crate) fn hint(fingerprint: &str) -> &str {
    fingerprint.get(..HINT).unwrap_or(fingerprint)
}

/// What somebody typed or pasted, without the spaces of the groups.
pub(crate) fn plain(typed: &str) -> String {
    typed.split_whitespace().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGITS: &str = "00112233445566778899aabbccddeeff0123456789abcdef0123456789abcdef";

    #[test]
    fn every_digit_is_shown_to_whoever_compares() {
        let shown = grouped(DIGITS);
        assert!(shown.starts_with("0011 2233 4455 ") && shown.ends_with(" 89ab cdef"), "{shown}");
        assert_eq!(shown.split(' ').count(), 16);
        assert_eq!(plain(&shown), DIGITS);
        assert_eq!(grouped(""), "");
    }

    #[test]
    fn a_hint_is_the_beginning() {
        assert_eq!(hint(DIGITS), "0011223344556677");
        assert_eq!(hint("abc"), "abc");
    }
}
