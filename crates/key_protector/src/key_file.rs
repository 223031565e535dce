//! Guardians with their private keys in files: PEM and PKCS#12.

use p12_keystore::{KeyStore, KeyStoreEntry, Pkcs12ImportPolicy, PrivateKey, PrivateKeyChain};
use pem_rfc7468::{Decoder, LineEnding};
use zeroize::Zeroizing;

use crate::error::{Error, Result};
use crate::guardian::Guardian;

/// A guardian of the largest accepted keys takes about 20 KiB.
const MAX_FILE: usize = 64 * 1024;
/// Four times the library's default; a second or less on the slowest machine.
const PKCS12_ITERATIONS: u32 = 40_000;

const CERTIFICATE: &str = "CERTIFICATE";
const PRIVATE_KEY: &str = "PRIVATE KEY";
const SIGNING: &str = "signing";
const ENCRYPTION: &str = "encryption";

impl Guardian {
    /// One PEM text: signing certificate, signing key, encryption certificate, encryption key.
    ///
    /// The keys are unencrypted PKCS#8: create the file that takes them with mode 0600 in the open
    /// call itself.
    pub fn to_pem(&self) -> Zeroizing<String> {
        let public = self.public();
        let blocks = [
            (CERTIFICATE, public.signing().der()),
            (PRIVATE_KEY, self.signing_pkcs8()),
            (CERTIFICATE, public.encryption().der()),
            (PRIVATE_KEY, self.encryption_pkcs8()),
        ];
        // Reserved in full, so that the text is never moved and no copy of the keys is left behind.
        let size = blocks.iter().map(|(label, der)| encoded_len(label, der)).sum();
        let mut text = Zeroizing::new(String::with_capacity(size));
        for (label, der) in blocks {
            push_block(&mut text, label, der);
        }
        text
    }

    /// Reads what [`Guardian::to_pem`] writes.
    ///
    /// # Errors
    /// [`Error::Pem`], or whatever is wrong with a key or certificate.
    pub fn from_pem(text: &str) -> Result<Self> {
        if text.len() > MAX_FILE {
            return Err(Error::TooLarge { document: "guardian file", limit: MAX_FILE });
        }
        let mut lines = text.lines().map(str::trim_end);
        let signing_certificate = read_block(&mut lines, CERTIFICATE)?;
        let signing_key = read_block(&mut lines, PRIVATE_KEY)?;
        let encryption_certificate = read_block(&mut lines, CERTIFICATE)?;
        let encryption_key = read_block(&mut lines, PRIVATE_KEY)?;
        if lines.any(|line| !line.is_empty()) {
            return Err(Error::Pem { problem: "something follows the fourth block" });
        }
        Self::from_parts(&signing_certificate, &signing_key, &encryption_certificate, &encryption_key)
    }

    /// A PKCS#12 file, encrypted with `passphrase` (PBES2, AES-256), with the entries `signing`
    /// and `encryption`.
    ///
    /// # Errors
    /// [`Error::Pkcs12`].
    pub fn to_pkcs12(&self, passphrase: &str) -> Result<Zeroizing<Vec<u8>>> {
        let public = self.public();
        let mut store = KeyStore::new();
        for (alias, certificate, key) in [
            (SIGNING, public.signing(), self.signing_pkcs8()),
            (ENCRYPTION, public.encryption(), self.encryption_pkcs8()),
        ] {
            let key = PrivateKey::from_der(key).map_err(pkcs12)?;
            let certificate = p12_keystore::Certificate::from_der(certificate.der()).map_err(pkcs12)?;
            let chain = PrivateKeyChain::new(alias, key, [certificate]);
            store.add_entry(alias, KeyStoreEntry::PrivateKeyChain(chain));
        }
        let file = store
            .writer(passphrase)
            .encryption_iterations(PKCS12_ITERATIONS)
            .mac_iterations(PKCS12_ITERATIONS)
            .write()
            .map_err(pkcs12)?;
        Ok(Zeroizing::new(file))
    }

    /// Reads what [`Guardian::to_pkcs12`] writes.
    ///
    /// # Errors
    /// [`Error::Pkcs12`], also for a wrong passphrase; [`Error::Pkcs12Entry`]; or whatever is
    /// wrong with a key or certificate.
    pub fn from_pkcs12(file: &[u8], passphrase: &str) -> Result<Self> {
        if file.len() > MAX_FILE {
            return Err(Error::TooLarge { document: "PKCS#12 file", limit: MAX_FILE });
        }
        let store = KeyStore::from_pkcs12(file, passphrase, Pkcs12ImportPolicy::Strict).map_err(pkcs12)?;
        let (signing_certificate, signing_key) = entry(&store, SIGNING)?;
        let (encryption_certificate, encryption_key) = entry(&store, ENCRYPTION)?;
        Self::from_parts(signing_certificate, signing_key, encryption_certificate, encryption_key)
    }
}

fn pkcs12(source: p12_keystore::error::Error) -> Error {
    Error::Pkcs12 { source }
}

/// The certificate and the private key of one entry.
fn entry<'a>(store: &'a KeyStore, alias: &'static str) -> Result<(&'a [u8], &'a [u8])> {
    match store.entry(alias) {
        Some(KeyStoreEntry::PrivateKeyChain(chain)) => match chain.certs() {
            [certificate] => Ok((certificate.as_der(), chain.key().as_der())),
            _ => Err(Error::Pkcs12Entry { alias }),
        },
        _ => Err(Error::Pkcs12Entry { alias }),
    }
}

fn encoded_len(label: &str, der: &[u8]) -> usize {
    // It fails only beyond the range of usize, and an estimate is all that is needed.
    pem_rfc7468::encoded_len(label, LineEnding::LF, der).unwrap_or(0)
}

fn push_block(text: &mut String, label: &str, der: &[u8]) {
    let mut block = Zeroizing::new(vec![0; encoded_len(label, der)]);
    // The label is one of ours and the block has the size that the encoder asks for.
    #[expect(clippy::expect_used)]
    text.push_str(pem_rfc7468::encode(label, LineEnding::LF, der, &mut block).expect("a certificate or key fits PEM"));
}

/// Reads the next block of `lines`, which must have this label.
///
/// Blank lines and blanks at the ends of lines are ignored and lines may have any length, so the
/// block is put together with its base64 on one line before the decoder sees it.
fn read_block<'a>(lines: &mut impl Iterator<Item = &'a str>, label: &str) -> Result<Zeroizing<Vec<u8>>> {
    let pem = |problem| Error::Pem { problem };
    let begin = lines.find(|line| !line.is_empty());
    if begin != Some(&*format!("-----BEGIN {label}-----")) {
        return Err(pem("it must be CERTIFICATE, PRIVATE KEY, CERTIFICATE, PRIVATE KEY"));
    }
    let end = format!("-----END {label}-----");
    // Reserved in full, so that no half-read key is left behind by a reallocation.
    let mut block = Zeroizing::new(String::with_capacity(MAX_FILE + 128));
    block.push_str(begin.unwrap_or_default());
    block.push('\n');
    loop {
        let line = lines.next().ok_or(pem("a block does not end"))?;
        if line == end {
            break;
        }
        block.push_str(line);
    }
    block.push('\n');
    block.push_str(&end);
    // No line is longer than the block.
    let not_base64 = |_| pem("a block is not base64");
    let mut decoder = Decoder::new_wrapped(block.as_bytes(), block.len()).map_err(not_base64)?;
    let mut der = Zeroizing::new(vec![0; decoder.remaining_len()]);
    decoder.decode(&mut der).map_err(not_base64)?;
    if !decoder.is_finished() {
        return Err(pem("a block is not base64"));
    }
    Ok(der)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::certificate::Role;
    use crate::key_wrap::{unwrap, wrap};
    use crate::private_keys::sign;
    use crate::test_support::{assert_refused, guardian, is};
    use crate::transport_key::TransportKey;

    fn same(a: &Guardian, b: &Guardian) {
        assert_eq!(a.public().signing(), b.public().signing());
        assert_eq!(a.public().encryption(), b.public().encryption());
        let key = TransportKey::generate();
        let wrapped = wrap(&key, a.public().encryption()).unwrap();
        assert_eq!(unwrap(b, &wrapped, 1).unwrap().expose(), key.expose());
        let signature = sign(b, b"message").unwrap();
        assert!(signature.is_by(a.public().signing(), b"message"));
    }

    #[test]
    fn pem_round_trip() {
        let owner = guardian("tenant", Role::Owner);
        let pem = owner.to_pem();
        same(owner, &Guardian::from_pem(&pem).unwrap());
        // As an editor on another system might leave it.
        let crlf = pem.replace('\n', "\r\n");
        same(owner, &Guardian::from_pem(&format!("\n{crlf}\n\n")).unwrap());
    }

    /// What is accepted beyond RFC 7468, and what is not although base64 decoders differ in it.
    #[test]
    fn pem_lines_may_be_of_any_length() {
        let owner = guardian("tenant", Role::Owner);
        let pem = owner.to_pem();
        let line = pem.lines().nth(1).unwrap();
        let (first, second) = line.split_at(30);
        for spelling in [format!("{first}\n{second}"), format!("{first} \t\n\n{second}  ")] {
            same(owner, &Guardian::from_pem(&pem.replacen(line, &spelling, 1)).unwrap());
        }
        let one_line = pem.split("-----").map(|part| match part.starts_with("\nM") {
            true => format!("\n{}\n", part.replace('\n', "")),
            false => part.to_owned(),
        });
        same(owner, &Guardian::from_pem(&one_line.collect::<Vec<_>>().join("-----")).unwrap());
        for spelling in [format!("{first}\r{second}"), format!("{first} {second}"), format!("{first}=\n{second}")] {
            assert_refused!(Guardian::from_pem(&pem.replacen(line, &spelling, 1)), Pem, "{spelling:?}");
        }
        assert_refused!(Guardian::from_pem(&format!("a comment\n{}", *pem)), Pem);
    }

    #[test]
    fn damaged_pem_is_refused() {
        let owner = guardian("tenant", Role::Owner).to_pem();
        let other = guardian("fabric", Role::Fabric).to_pem();
        let half = |pem: &str, first: bool| {
            let middle = pem.match_indices("-----BEGIN CERT").nth(1).unwrap().0;
            if first { &pem[..middle] } else { &pem[middle..] }.to_owned()
        };
        let cases = [
            (is!(Pem), String::new()),
            (is!(Pem), owner[1..].to_owned()),
            (is!(Pem), owner[..owner.len() / 2].to_owned()),
            (is!(Pem), format!("{}x", *owner)),
            (is!(Pem), owner.replace("PRIVATE KEY", "EC PRIVATE KEY")),
            (is!(Pem), owner.replacen("\nM", "\n*", 1)),
            (is!(TooLarge), " ".repeat(MAX_FILE + 1)),
            // The wrong order is noticed by the key, which is read first.
            (is!(PrivateKey), half(&owner, false) + &half(&owner, true)),
            (is!(RolesDiffer), half(&owner, true) + &half(&other, false)),
        ];
        for (refusal, text) in cases {
            let refused = Guardian::from_pem(&text).err().unwrap();
            assert!(refusal(&refused), "{refused}");
        }
    }

    #[test]
    fn keys_must_belong_to_their_certificates() {
        let owner = guardian("tenant", Role::Owner);
        let other = guardian("other-tenant", Role::Owner);
        let (a, b) = (owner.public(), other.public());
        let signing = Guardian::from_parts(
            a.signing().der(),
            other.signing_pkcs8(),
            a.encryption().der(),
            owner.encryption_pkcs8(),
        );
        let encryption = Guardian::from_parts(
            a.signing().der(),
            owner.signing_pkcs8(),
            a.encryption().der(),
            other.encryption_pkcs8(),
        );
        let names = Guardian::from_parts(
            a.signing().der(),
            owner.signing_pkcs8(),
            b.encryption().der(),
            other.encryption_pkcs8(),
        );
        assert_refused!(signing, KeyMismatch);
        assert_refused!(encryption, KeyMismatch);
        assert_refused!(names, NamesDiffer);
    }

    #[test]
    fn pkcs12_round_trip() {
        let owner = guardian("tenant", Role::Owner);
        let file = owner.to_pkcs12("correct horse").unwrap();
        same(owner, &Guardian::from_pkcs12(&file, "correct horse").unwrap());
        let wrong = Guardian::from_pkcs12(&file, "correct hoarse");
        assert_refused!(wrong, Pkcs12);
        let short = Guardian::from_pkcs12(&file[..file.len() - 1], "correct horse");
        assert_refused!(short, Pkcs12);
    }
}
