//! Protectors that somebody has touched, and bytes that are no protector.
#![allow(clippy::unwrap_used)]

use std::sync::atomic::{AtomicUsize, Ordering};

use proptest::prelude::*;

use super::made::{fabric, protector, recovery};
use crate::certificate::Certificate;
use crate::error::Result;
use crate::guardian::Guardian;
use crate::guardian_public::GuardianPublic;
use crate::protector::document::Protector;
use crate::protector::parts::MAX_DOCUMENT;
use crate::strict_xml;
use crate::test_support::{NOW, assert_refused, is};
use crate::transport_key::TransportKey;

fn text() -> String {
    let (protector, _) = protector(&[fabric()]);
    String::from_utf8(protector.to_xml()).unwrap()
}

fn open(xml: &[u8]) -> Result<TransportKey> {
    Protector::parse(xml)?.open(fabric(), NOW)
}

#[test]
fn every_changed_byte_is_noticed() {
    let xml = text().into_bytes();
    assert!(open(&xml).is_ok());
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut changed = xml.clone();
                loop {
                    let place = next.fetch_add(1, Ordering::Relaxed);
                    let Some(original) = xml.get(place).copied() else {
                        break;
                    };
                    // The next character, the other case, and no character at all.
                    for mask in [0x01, 0x20, 0x80] {
                        changed[place] = original ^ mask;
                        assert!(open(&changed).is_err(), "byte {place} ^ {mask:#x}");
                    }
                    changed[place] = original;
                }
            });
        }
    });
}

#[test]
fn every_missing_byte_is_noticed() {
    let xml = text().into_bytes();
    for length in 0..xml.len() {
        assert!(Protector::parse(&xml[..length]).is_err(), "{length} bytes");
        let without = [&xml[..length], &xml[length + 1..]].concat();
        assert!(open(&without).is_err(), "without byte {length}");
    }
}

/// The same content to an XML parser, or hidden content next to it.
#[test]
fn there_is_one_spelling() {
    let edits = [
        (is!(NotCanonical), "<Protector", "<?xml version=\"1.0\" encoding=\"utf-8\"?><Protector"),
        (is!(NotCanonical), "</Protector>", "</Protector>\n"),
        (is!(NotCanonical), "<Protector", "<!-- hidden --><Protector"),
        (is!(Structure), "<Wrappings>", "<Wrappings><!-- hidden -->"),
        (is!(Structure), "<Wrappings>", "<Wrappings> "),
        (is!(Structure), "<Id>1</Id>", "<Id><!-- hidden -->1</Id>"),
        (is!(Structure), "<Id>1</Id>", "<Id a=\"b\">1</Id>"),
        (is!(Structure), "<Id>1</Id>", "<Id/>"),
        (is!(Structure), "<Id>1</Id>", ""),
        (is!(Structure), "<Id>1</Id>", "<Id>1</Id><Id>1</Id>"),
        (is!(Structure), "<Id>1</Id>", "<Id xmlns=\"urn:x\">1</Id>"),
        (is!(Number), "<Id>1</Id>", "<Id>01</Id>"),
        (is!(Number), "<Id>1</Id>", "<Id>+1</Id>"),
        (is!(Number), "<Id>1</Id>", "<Id> 1</Id>"),
        (is!(Number), "<Id>1</Id>", "<Id>4294967296</Id>"),
        (is!(NotCanonical), "<Id>1</Id>", "<Id>&#49;</Id>"),
        (is!(NotCanonical), "<Id>1</Id>", "<Id><![CDATA[1]]></Id>"),
        (is!(NotCanonical), "<Id>1</Id>", "<Id >1</Id>"),
        (is!(NotCanonical), "<Id>1</Id>", "<Id xmlns:a=\"urn:x\">1</Id>"),
        (is!(NotCanonical), "WrappingId=\"1\"", "WrappingId='1'"),
        (is!(Structure), "WrappingId=\"1\"", "WrappingId=\"1\" Extra=\"1\""),
        (is!(Structure), "ParentWrappingId=\"1\"", "WrappingId=\"1\""),
        (is!(Structure), " MaxOfflineUnwraps=\"0\"", ""),
        (is!(Structure), "kps/2014/07", "kps/2014/08"),
        (is!(Structure), "<Parameters>", "<Parameters><Extra/>"),
        (is!(NotCanonical), "></PRF>", "/>"),
        (is!(NotCanonical), "<Info>", "<Info><Extra/>"),
        (is!(NotCanonical), "<HKDFParams ", "<Unknown/><HKDFParams "),
        (is!(Algorithm), "ecdsa-sha256", "ecdsa-sha1"),
        (is!(Algorithm), "rsa-oaep", "rsa-1_5"),
        (is!(Algorithm), "mgf1sha256", "mgf1sha1"),
        (is!(Algorithm), "hkdf", "pbkdf2"),
        (is!(Base64), "<SignatureValue>", "<SignatureValue>*"),
        (is!(Base64), "<CipherValue>", "<CipherValue>\n"),
        (is!(Xml), "<Protector", "<!DOCTYPE Protector [<!ENTITY a \"b\">]><Protector"),
    ];
    let xml = text();
    for (refusal, old, new) in edits {
        assert!(xml.contains(old), "{old}");
        let edited = xml.replacen(old, new, 1);
        let refused = open(edited.as_bytes()).err().unwrap();
        assert!(refusal(&refused), "{old} -> {new}: {refused}");
    }
}

#[test]
fn sizes_and_encodings_are_bounded() {
    let large = vec![b' '; MAX_DOCUMENT + 1];
    assert_refused!(open(&large), TooLarge);
    assert_refused!(open(b"<Protector>\xff</Protector>"), NotUtf8);
    assert_refused!(open(b""), Xml);
    // Nested more deeply than any parser's stack would like.
    let depth = MAX_DOCUMENT / 8;
    let nested = "<a>".repeat(depth) + &"</a>".repeat(depth);
    assert_refused!(open(nested.as_bytes()), Xml);
    let wide = format!("<Protector>{}</Protector>", "<a/>".repeat(200_000));
    assert_refused!(open(wide.as_bytes()), Xml);
}

#[test]
fn what_is_written_is_its_own_canonical_form() {
    let (protector, _) = protector(&[fabric(), recovery()]);
    let xml = text();
    assert_eq!(strict_xml::canonicalize(&xml).unwrap(), xml.as_bytes());
    let signed = protector.parts.signed_bytes().unwrap();
    let signed = String::from_utf8(signed).unwrap();
    // Only the inherited name space is added to what stands in the document.
    let whole = String::from_utf8(protector.to_xml()).unwrap();
    let namespace = format!("<Wrappings xmlns=\"{}\">", crate::signature::KPS);
    assert!(whole.contains(&signed.replacen(&namespace, "<Wrappings>", 1)));
}

proptest! {
    #[test]
    fn hostile_bytes_do_not_panic(bytes: Vec<u8>) {
        prop_assert!(Protector::parse(&bytes).is_err());
        prop_assert!(GuardianPublic::parse(&bytes).is_err());
        prop_assert!(Certificate::from_der(&bytes).is_err());
        prop_assert!(Guardian::from_pkcs12(&bytes, "").is_err());
    }

    #[test]
    fn hostile_text_does_not_panic(
        part in "[<>/\"'=&;#a-zA-Z \\-!\\[\\]]{0,40}",
        at in any::<prop::sample::Index>(),
        cut in 0usize..200,
    ) {
        let xml = text();
        let at = at.index(xml.len());
        let end = xml.len().min(at + cut);
        let spliced = format!("{}{part}{}", &xml[..at], &xml[end..]);
        prop_assert!(spliced == xml || open(spliced.as_bytes()).is_err());
        prop_assert!(Guardian::from_pem(&spliced).is_err());
    }
}
