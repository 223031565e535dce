//! Key protection (MS-KPS): its messages, and the layers in which transport keys travel. No I/O, no clock.
//!
//! * [`RollRequest`], [`RollResponse`] and [`ErrorDocument`] are the XML that goes over the network.
//! * [`WrappedKeys`] are the transport keys in a response, encrypted to the attested host and [bound](Binding) to both
//!   protectors.
//! * [`Document`] reads any of them and writes it again, for fuzzing.
//!
//! # Place
//!
//! ```text
//! hgs (the service), hgs_client (the host) ──▶ kps ──▶ attestation   (the identity key that keys are encrypted to)
//!                                                  └─▶ key_protector (transport keys)
//! ```
//!
//! Protectors and health certificates are bytes here; the reader of a message judges them.
//!
//! # What MS-KPS leaves open
//!
//! | MS-KPS leaves open | Drydock |
//! |---|---|
//! | EncryptedTransferKey | RSA-OAEP, SHA-256 for digest and mask, of 32 random bytes |
//! | EncryptedWrappingKey | AES-256-GCM under the transfer key: nonce (12), ciphertext, tag (16) |
//! | EncryptedTransportKeys | AES-256-GCM under the wrapping key, same layout, of Payload_V1 or Payload_V2; the digests of both protectors are authenticated with it |

#![warn(missing_docs)]

mod document;
mod payload;
mod release;
mod version;
mod wire;

pub use document::Document;
pub use release::{Binding, WrappedKeys};
pub use version::ApiVersion;
pub use wire::{ErrorCode, ErrorDocument, Malformed, RollRequest, RollResponse};
