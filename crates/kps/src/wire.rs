//! The XML of `RollTransportKey` (MS-KPS 2.2.2.1, 2.2.2.2) and of errors (2.2.2.5).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use quick_xml::escape::escape;
use roxmltree::{Document, Node, ParsingOptions};

use crate::release::WrappedKeys;

const NAMESPACE: &str = "http://schemas.microsoft.com/kps/2014/07/service";
/// xmlenc 1.1; SHA-256 for digest and mask, see the table in the crate's documentation.
const RSA_OAEP: &str = "http://www.w3.org/2009/xmlenc11#rsa-oaep";
const AES_256_GCM: &str = "http://www.w3.org/2009/xmlenc11#aes256-gcm";
/// Requests have six elements.
const MAX_NODES: u32 = 256;

/// What an error is about, for the program that reads it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorCode {
    /// The host has to attest again (MS-KPS 3.1.5.1.1.3).
    HealthCertificate,
    /// The request or its protector is refused (MS-KPS 3.1.5.1.1.3).
    InvalidProtector,
    /// A wrapping in the protector is refused (MS-KPS 3.1.5.1.1.3).
    InvalidWrapping,
    /// The service failed; it has not decided. Not in the specification.
    Service,
}

impl ErrorCode {
    const ALL: [ErrorCode; 4] =
        [ErrorCode::HealthCertificate, ErrorCode::InvalidProtector, ErrorCode::InvalidWrapping, ErrorCode::Service];

    /// Name in the document.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            ErrorCode::HealthCertificate => "HealthCertificateException",
            ErrorCode::InvalidProtector => "InvalidProtectorException",
            ErrorCode::InvalidWrapping => "InvalidWrappingException",
            ErrorCode::Service => "ServiceException",
        }
    }

    /// The code with this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        ErrorCode::ALL.into_iter().find(|code| code.name() == name)
    }
}

/// What is wrong with a document, in words for its sender.
#[derive(Debug, thiserror::Error)]
pub enum Malformed {
    /// The parser's reason.
    #[error("it is not well-formed XML: {0}")]
    NotXml(String),
    /// Another root element, or elements after the last.
    #[error("it is not a {0}")]
    NotThat(&'static str),
    /// This element.
    #[error("element {0} is missing, empty or not where it belongs")]
    Element(&'static str),
    /// The text of this element.
    #[error("element {0} is not base64")]
    NotBase64(&'static str),
    /// Another algorithm than the one that is supported.
    #[error("{element} must be {only}")]
    Algorithm {
        /// The element that names it.
        element: &'static str,
        /// The supported one.
        only: &'static str,
    },
}

/// RollTransportKeyRequest (MS-KPS 2.2.2.1).
#[derive(Debug)]
pub struct RollRequest {
    /// IngressProtector: the key protector's document.
    pub protector: Vec<u8>,
    /// HealthCertificate: X.509 in DER.
    pub health_certificate: Vec<u8>,
}

/// RollTransportKeyResponse (MS-KPS 2.2.2.2).
#[derive(Debug)]
pub struct RollResponse {
    /// EgressProtector: the key protector's document.
    pub egress_protector: Vec<u8>,
    /// The keys of both protectors.
    pub keys: WrappedKeys,
}

/// Error (MS-KPS 2.2.2.5).
#[derive(Debug)]
pub struct ErrorDocument {
    /// [`ErrorCode::name`], or what another service writes.
    pub code: String,
    /// For a person.
    pub message: String,
}

impl RollRequest {
    /// The document.
    #[must_use]
    pub fn write(&self) -> Vec<u8> {
        document(
            "RollTransportKeyRequest",
            &[
                ("IngressProtector", &STANDARD.encode(&self.protector)),
                ("HealthCertificate", &STANDARD.encode(&self.health_certificate)),
                ("TransferKeyEncryptionAlgorithm", RSA_OAEP),
                ("WrappingKeyEncryptionAlgorithm", AES_256_GCM),
                ("TransportKeysEncryptionAlgorithm", AES_256_GCM),
            ],
        )
    }

    /// Reads a document.
    ///
    /// # Errors
    /// The rule that is broken.
    pub fn read(bytes: &[u8]) -> Result<Self, Malformed> {
        let xml = parse(bytes)?;
        let mut elements = root(&xml, "RollTransportKeyRequest")?;
        let protector = elements.base64("IngressProtector")?;
        let health_certificate = elements.base64("HealthCertificate")?;
        for (element, only) in [
            ("TransferKeyEncryptionAlgorithm", RSA_OAEP),
            ("WrappingKeyEncryptionAlgorithm", AES_256_GCM),
            ("TransportKeysEncryptionAlgorithm", AES_256_GCM),
        ] {
            if elements.text(element)? != only {
                return Err(Malformed::Algorithm { element, only });
            }
        }
        elements.end("RollTransportKeyRequest")?;
        Ok(RollRequest { protector, health_certificate })
    }
}

impl RollResponse {
    /// The document.
    #[must_use]
    pub fn write(&self) -> Vec<u8> {
        document(
            "RollTransportKeyResponse",
            &[
                ("EgressProtector", &STANDARD.encode(&self.egress_protector)),
                ("EncryptedTransferKey", &STANDARD.encode(&self.keys.transfer_key)),
                ("EncryptedWrappingKey", &STANDARD.encode(&self.keys.wrapping_key)),
                ("EncryptedTransportKeys", &STANDARD.encode(&self.keys.transport_keys)),
            ],
        )
    }

    /// Reads a document.
    ///
    /// # Errors
    /// The rule that is broken.
    pub fn read(bytes: &[u8]) -> Result<Self, Malformed> {
        let xml = parse(bytes)?;
        let mut elements = root(&xml, "RollTransportKeyResponse")?;
        let egress_protector = elements.base64("EgressProtector")?;
        let keys = WrappedKeys {
            transfer_key: elements.base64("EncryptedTransferKey")?,
            wrapping_key: elements.base64("EncryptedWrappingKey")?,
            transport_keys: elements.base64("EncryptedTransportKeys")?,
        };
        elements.end("RollTransportKeyResponse")?;
        Ok(RollResponse { egress_protector, keys })
    }
}

impl ErrorDocument {
    /// An error of this service.
    #[must_use]
    pub fn new(code: ErrorCode, message: String) -> Self {
        ErrorDocument { code: code.name().to_owned(), message }
    }

    /// What it is about; `None` for a code that is not known here.
    #[must_use]
    pub fn error_code(&self) -> Option<ErrorCode> {
        ErrorCode::from_name(&self.code)
    }

    /// The document.
    #[must_use]
    pub fn write(&self) -> Vec<u8> {
        // XML cannot carry these, or not so that they are read again, and a refused document may have put some here.
        let safe =
            |text: &str| text.replace(|c: char| c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}'), "\u{fffd}");
        document("Error", &[("Code", &escape(safe(&self.code))), ("Message", &escape(safe(&self.message)))])
    }

    /// Reads a document.
    ///
    /// # Errors
    /// The rule that is broken.
    pub fn read(bytes: &[u8]) -> Result<Self, Malformed> {
        let xml = parse(bytes)?;
        let mut elements = root(&xml, "Error")?;
        let code = elements.text("Code")?.to_owned();
        let message = elements.text("Message")?.to_owned();
        elements.end("Error")?;
        Ok(ErrorDocument { code, message })
    }
}

/// `elements` are already safe as XML text.
fn document(name: &str, elements: &[(&str, &str)]) -> Vec<u8> {
    let mut xml = format!("<?xml version=\"1.0\" encoding=\"utf-8\"?><{name} xmlns=\"{NAMESPACE}\">");
    for (element, text) in elements {
        for part in ["<", element, ">", text, "</", element, ">"] {
            xml.push_str(part);
        }
    }
    xml.push_str("</");
    xml.push_str(name);
    xml.push('>');
    xml.into_bytes()
}

fn parse(bytes: &[u8]) -> Result<Document<'_>, Malformed> {
    let text = std::str::from_utf8(bytes).map_err(|error| Malformed::NotXml(error.to_string()))?;
    let options = ParsingOptions { allow_dtd: false, nodes_limit: MAX_NODES, ..ParsingOptions::default() };
    Document::parse_with_options(text, options).map_err(|error| Malformed::NotXml(error.to_string()))
}

fn root<'a>(xml: &'a Document<'_>, name: &'static str) -> Result<Elements<'a, 'a>, Malformed> {
    let root = xml.root_element();
    if root.tag_name().namespace() != Some(NAMESPACE) || root.tag_name().name() != name {
        return Err(Malformed::NotThat(name));
    }
    Ok(Elements { next: root.first_element_child() })
}

/// The children in the order of the schema's sequence.
struct Elements<'a, 'input> {
    next: Option<Node<'a, 'input>>,
}

impl<'a> Elements<'a, '_> {
    fn text(&mut self, name: &'static str) -> Result<&'a str, Malformed> {
        let node = self
            .next
            .filter(|node| node.tag_name().name() == name && node.tag_name().namespace() == Some(NAMESPACE))
            .ok_or(Malformed::Element(name))?;
        self.next = node.next_sibling_element();
        let mut children = node.children();
        match (children.next(), children.next()) {
            (None, None) => Ok(""),
            (Some(only), None) if only.is_text() => {
                Ok(only.text().unwrap_or_default().trim_matches(|c: char| c.is_ascii_whitespace()))
            }
            _ => Err(Malformed::Element(name)),
        }
    }

    /// xs:base64Binary: white space may be anywhere.
    fn base64(&mut self, name: &'static str) -> Result<Vec<u8>, Malformed> {
        let text = self.text(name)?;
        let compact: Vec<u8> = text.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
        match STANDARD.decode(compact) {
            Ok(bytes) if !bytes.is_empty() => Ok(bytes),
            _ => Err(Malformed::NotBase64(name)),
        }
    }

    fn end(&self, whole: &'static str) -> Result<(), Malformed> {
        if self.next.is_some() { Err(Malformed::NotThat(whole)) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn documents_come_back_as_they_were_written() {
        let request = RollRequest { protector: vec![1; 300], health_certificate: vec![2; 300] };
        let back = RollRequest::read(&request.write()).unwrap();
        assert_eq!((back.protector, back.health_certificate), (vec![1; 300], vec![2; 300]));
        let error = ErrorDocument { code: ErrorCode::Service.name().into(), message: "a < b & \"c\" ]]>".into() };
        let back = ErrorDocument::read(&error.write()).unwrap();
        assert_eq!((back.code, back.message), (error.code, error.message));
    }

    #[test]
    fn documents_of_untrusted_peers_are_refused() {
        let good = String::from_utf8(RollRequest { protector: vec![1], health_certificate: vec![2] }.write()).unwrap();
        for (bad, why) in [
            (String::new(), "empty"),
            ("\u{0}".into(), "not XML"),
            (good.replace("/service\"", "/other\""), "namespace"),
            (good.replace("IngressProtector>", "EgressProtector>"), "element"),
            (good.replace("AQ==", ""), "empty element"),
            (good.replace("AQ==", "<x/>"), "element where text belongs"),
            (good.replace("AQ==", "A!"), "base64"),
            (good.replace("aes256-gcm", "aes128-cbc"), "algorithm"),
            (good.replace("</RollTransportKeyRequest>", "<X/></RollTransportKeyRequest>"), "one more element"),
            (good.replace("?><", "?><!DOCTYPE a [<!ENTITY b \"c\">]><"), "DTD"),
        ] {
            assert!(RollRequest::read(bad.as_bytes()).is_err(), "{why}");
        }
    }

    mod hostile {
        use proptest::prelude::*;

        use super::*;

        /// So many cases unless `PROPTEST_CASES` says otherwise.
        fn config(cases: u32) -> ProptestConfig {
            let cases = std::env::var("PROPTEST_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(cases);
            ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
        }

        proptest! {
            #![proptest_config(config(512))]

            #[test]
            fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300), text in ".{0,200}") {
                for bytes in [bytes.as_slice(), text.as_bytes()] {
                    prop_assert!(RollRequest::read(bytes).is_err());
                    prop_assert!(RollResponse::read(bytes).is_err());
                    prop_assert!(ErrorDocument::read(bytes).is_err());
                }
            }

            #[test]
            fn a_changed_request_is_refused_or_still_five_whole_elements(
                protector in proptest::collection::vec(any::<u8>(), 1..60),
                certificate in proptest::collection::vec(any::<u8>(), 1..60),
                at in any::<prop::sample::Index>(),
                put in proptest::collection::vec(any::<u8>(), 0..4),
                take in 0..3_usize,
            ) {
                let good = RollRequest { protector, health_certificate: certificate }.write();
                let at = at.index(good.len());
                let rest = good.get(at + take..).unwrap_or_default();
                let changed = [&good[..at], put.as_slice(), rest].concat();
                if let Ok(request) = RollRequest::read(&changed) {
                    prop_assert!(!request.protector.is_empty() && !request.health_certificate.is_empty());
                    // What was read is what would be read again.
                    let again = RollRequest::read(&request.write()).unwrap();
                    prop_assert_eq!(again.protector, request.protector);
                    prop_assert_eq!(again.health_certificate, request.health_certificate);
                }
            }

            #[test]
            fn errors_carry_any_text(code in "[\\x00-\\x7f]{0,40}", message in ".{0,200}") {
                let once = ErrorDocument::read(&ErrorDocument { code, message }.write()).unwrap();
                // Neither white space around a text nor what XML cannot carry is part of it; the rest stays.
                let twice = ErrorDocument::read(&once.write()).unwrap();
                prop_assert_eq!((twice.code, twice.message), (once.code, once.message));
            }
        }
    }
}
