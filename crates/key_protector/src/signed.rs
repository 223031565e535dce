//! Small signed documents, such as a recovery request: a payload, its type, and who signed it.
//!
//! ```text
//! {"type": "...", "version": 1, "payload": base64, "signer": base64 DER, "signature": base64}
//! ```
//!
//! The signature is by the key of `signer` over `drydock-signed-document`, a zero byte, the
//! version (4 bytes, big-endian), the length of the type (4 bytes), the type and the payload.

use base64::prelude::{BASE64_STANDARD, Engine as _};
use serde::{Deserialize, Serialize};

use crate::certificate::{Certificate, Usage};
use crate::error::{Error, Result};
use crate::private_keys::{self, Signer};
use crate::signature::{Signature, algorithm_of};

/// The largest document that is read or written, in bytes.
pub const MAX_DOCUMENT: usize = 4 * 1024 * 1024;
const VERSION: u32 = 1;
const MAX_KIND: usize = 64;
/// Begins neither like a certificate nor like XML, which the same keys sign too.
const DOMAIN: &[u8] = b"drydock-signed-document\0";

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Envelope {
    r#type: String,
    version: u32,
    payload: String,
    signer: String,
    signature: String,
}

/// The content of a signed document whose signature has been verified.
#[derive(Debug)]
pub struct Verified {
    /// What was signed.
    pub payload: Vec<u8>,
    /// Whose key signed it. [`Approval`](crate::Approval) requires a certain signer, and a lifetime.
    pub signer: Certificate,
}

/// Signs `payload` as a document of type `kind`.
///
/// # Errors
/// [`Error::SignedKindName`], [`Error::TooLarge`] or [`Error::KeyOperation`].
pub fn sign(kind: &str, payload: &[u8], by: &dyn Signer) -> Result<Vec<u8>> {
    check_kind(kind)?;
    // Before anything is copied, since base64 only makes it larger.
    check_size(payload.len())?;
    let signature = private_keys::sign(by, &message(kind, VERSION, payload))?;
    let envelope = Envelope {
        r#type: kind.to_owned(),
        version: VERSION,
        payload: BASE64_STANDARD.encode(payload),
        signer: BASE64_STANDARD.encode(by.public().signing().der()),
        signature: BASE64_STANDARD.encode(signature.value),
    };
    let document = serde_json::to_vec(&envelope).map_err(|source| Error::SignedEncoding { source })?;
    check_size(document.len())?;
    Ok(document)
}

/// Reads a document of type `kind` and checks its signature.
///
/// # Errors
/// Whatever is wrong with the document; [`Error::SignedSignature`] if it is the signature.
pub fn verify(kind: &str, document: &[u8]) -> Result<Verified> {
    check_size(document.len())?;
    let envelope: Envelope = serde_json::from_slice(document).map_err(|source| Error::SignedEncoding { source })?;
    if envelope.version != VERSION {
        return Err(Error::SignedVersion { found: envelope.version });
    }
    check_kind(&envelope.r#type)?;
    if envelope.r#type != kind {
        return Err(Error::SignedKind { expected: kind.to_owned(), found: envelope.r#type });
    }
    let payload = decode("payload", &envelope.payload)?;
    let signer = Certificate::from_der(&decode("signer", &envelope.signer)?)?;
    signer.check_usage(Usage::Signing)?;
    let signature = Signature { algorithm: algorithm_of(&signer), value: decode("signature", &envelope.signature)? };
    if !signature.is_by(&signer, &message(kind, VERSION, &payload)) {
        return Err(Error::SignedSignature);
    }
    Ok(Verified { payload, signer })
}

fn message(kind: &str, version: u32, payload: &[u8]) -> Vec<u8> {
    // check_kind() has bounded the type's length.
    let length = u32::try_from(kind.len()).unwrap_or(u32::MAX);
    [DOMAIN, &version.to_be_bytes(), &length.to_be_bytes(), kind.as_bytes(), payload].concat()
}

fn check_kind(kind: &str) -> Result<()> {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-./".contains(&b);
    if !(1..=MAX_KIND).contains(&kind.len()) || !kind.bytes().all(allowed) {
        return Err(Error::SignedKindName);
    }
    Ok(())
}

fn check_size(size: usize) -> Result<()> {
    if size > MAX_DOCUMENT {
        return Err(Error::TooLarge { document: "signed document", limit: MAX_DOCUMENT });
    }
    Ok(())
}

fn decode(field: &'static str, text: &str) -> Result<Vec<u8>> {
    BASE64_STANDARD.decode(text).map_err(|_| Error::SignedBase64 { field })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::certificate::Role;
    use crate::test_support::{assert_refused, guardian, is};

    fn edited(document: &[u8], edit: impl FnOnce(&mut Value)) -> Vec<u8> {
        let mut value: Value = serde_json::from_slice(document).unwrap();
        edit(&mut value);
        serde_json::to_vec(&value).unwrap()
    }

    #[test]
    fn what_was_signed_comes_back() {
        let owner = guardian("tenant", Role::Owner);
        let document = sign("recovery-request", b"payload", owner).unwrap();
        let verified = verify("recovery-request", &document).unwrap();
        assert_eq!(verified.payload, b"payload");
        assert_eq!(&verified.signer, owner.public().signing());
    }

    #[test]
    fn every_edit_is_refused() {
        let owner = guardian("tenant", Role::Owner);
        let other = guardian("other-tenant", Role::Owner);
        let document = sign("grant", b"payload", owner).unwrap();
        let other_signer = BASE64_STANDARD.encode(other.public().signing().der());
        let encryption = BASE64_STANDARD.encode(owner.public().encryption().der());
        let foreign = sign("receipt", b"payload", owner).unwrap();
        let cases = [
            (is!(SignedKind), foreign.clone()),
            // The type is under the signature, so relabelling does not help.
            (is!(SignedSignature), edited(&foreign, |v| v["type"] = json!("grant"))),
            (is!(SignedVersion), edited(&document, |v| v["version"] = json!(2))),
            (is!(SignedSignature), edited(&document, |v| v["payload"] = json!("AAAA"))),
            (is!(SignedBase64), edited(&document, |v| v["payload"] = json!("AAA"))),
            (is!(SignedSignature), edited(&document, |v| v["signer"] = json!(other_signer))),
            (is!(KeyUsage), edited(&document, |v| v["signer"] = json!(encryption))),
            (is!(SignedSignature), edited(&document, |v| v["signature"] = json!(""))),
            (is!(SignedEncoding), edited(&document, |v| v["extra"] = json!(1))),
            (
                is!(SignedEncoding),
                edited(&document, |v| {
                    v.as_object_mut().unwrap().remove("signer");
                }),
            ),
            (is!(SignedEncoding), [&document[..], b" {}"].concat()),
            (is!(TooLarge), vec![b' '; MAX_DOCUMENT + 1]),
        ];
        for (refusal, document) in cases {
            let refused = verify("grant", &document).err().unwrap();
            assert!(refusal(&refused), "{refused}");
        }
    }

    #[test]
    fn kinds_and_sizes_are_bounded() {
        let owner = guardian("tenant", Role::Owner);
        for kind in ["", "Grant", "a b", &"x".repeat(65)] {
            assert_refused!(sign(kind, b"", owner), SignedKindName);
        }
        let large = vec![0; MAX_DOCUMENT - 1000];
        assert_refused!(sign("a", &large, owner), TooLarge);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn round_trip(payload: Vec<u8>, kind in "[a-z0-9./-]{1,64}") {
            let owner = guardian("tenant", Role::Owner);
            let document = sign(&kind, &payload, owner).unwrap();
            prop_assert_eq!(verify(&kind, &document).unwrap().payload, payload);
        }

        #[test]
        fn hostile_bytes_do_not_panic(document: Vec<u8>) {
            prop_assert!(verify("a", &document).is_err());
        }
    }
}
