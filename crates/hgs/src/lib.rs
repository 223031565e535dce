//! The Host Guardian Service: attestation (MS-HGSA v2.0, host-key and TPM mode) and key protection (MS-KPS).
//!
//! * [`Hgs`] is one service: its keys, its store, and what an admin does with them.
//! * [`server::serve`] puts it on the network.
//!
//! The service believes nothing a host sends until it is attested, and nothing a protector says until every
//! signature chains to its owner. It answers with keys encrypted to the attested host's identity key, and writes
//! down every release and refusal *before* it answers.
//!
//! | MS-HGSA, MS-KPS leave open | Drydock |
//! |---|---|
//! | EncryptedTransferKey | RSA-OAEP, SHA-256 for digest and mask, of 32 random bytes |
//! | EncryptedWrappingKey | AES-256-GCM under the transfer key: nonce (12), ciphertext, tag (16) |
//! | EncryptedTransportKeys | AES-256-GCM under the wrapping key, same layout, of Payload_V1 or Payload_V2; the digests of both protectors are authenticated with it |
//! | signingCertificates | the certificates-only PKCS#7 in DER, as the whole body |
//! | status of refusals | 400 for a request nobody could serve, 403 for a host that is not entitled |

mod admin;
mod attest;
mod audit;
mod backup;
mod challenge;
mod error;
mod files;
mod hex;
mod keys;
mod permit;
mod pkcs7;
mod roll;
pub mod server;
mod store;
mod throttle;
mod tls;
mod tpm_attest;

pub use attestation::HostKind;
pub use attestation::tpm::Check;

pub use admin::{Hgs, InitOptions};
pub use audit::{Entry, Event};
pub use error::{Error, Result};
pub use permit::Permit;
pub use store::{HostEntry, InUse, StoreUrl};
