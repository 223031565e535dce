//! Key protectors: a VM's transport key, wrapped for its owner and for guardians (MS-KPS 2.2.2.3).
//!
//! Every guardian has one *wrapping*. The owner's is its own parent; every other guardian's
//! signing certificate is signed by its parent's, up to the owner. One of the guardians has signed
//! the list of wrappings (`GuardianSignature`), and a key derived from the transport key
//! authenticates the same list (`TransportKeySignature`).
//!
//! What MS-KPS leaves open is settled as follows:
//!
//! | Where | Algorithm |
//! |---|---|
//! | `TransportKey` | `xmlenc11#rsa-oaep`, SHA-256, `mgf1sha256`, no label; the plaintext is the 32 bytes of the key |
//! | certificate signatures | ECDSA P-256 with SHA-256 (`xmldsig-more#ecdsa-sha256`) over the DER bytes; RSA-PSS is accepted |
//! | `GuardianSignature` | the same, over the exclusive canonical form of `Wrappings` |
//! | `TransportKeySignature` | HMAC-SHA256 over the same bytes, keyed by HKDF-SHA256 (salt `drydock`, info `transport-key-signature`, 32 bytes) |
//!
//! `MaxOfflineUnwraps` is an attribute of the document's root, where no signature covers it.
//! The owner's wrapping repeats it in the parameters of its `EncryptedData`, and both must agree.
//!
//! Beyond MS-KPS: a protector has exactly one accepted serialisation, so nothing unsigned can hide
//! in it; the owner's role and the owner's wrapping go together; and a recovery guardian cannot
//! certify anyone, or its short life would mean nothing.

mod document;
mod issue;
mod parts;
#[cfg(test)]
mod tests;
mod verify;
mod xml;

pub use document::Protector;
pub use issue::Rolled;
pub use parts::{MAX_DOCUMENT, MAX_OFFLINE_UNWRAPS, MAX_WRAPPINGS, Wrapping};
