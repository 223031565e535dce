//! The evidence that a host gives of what it is, and how the Host Guardian Service judges it. No I/O, no clock.
//!
//! The protocol is MS-HGSA v2.0. In host-key mode (section 3.1.5.3) a host proves that it holds the private half of a
//! key that the fabric admin registered; in TPM mode (section 3.1.5.1, see [`tpm`]) that it is the machine with a
//! registered TPM, and how it was started. Each is a [`Claim`] and a [`Verifier`]; see there for how a further kind is
//! added.
//!
//! Either way the host asks for a *health certificate* over another key, which it makes for each run of the agent.
//! Transport keys are later encrypted to that second key, so an old recording of the network and a stolen host key
//! together open nothing.
//!
//! # Place
//!
//! ```text
//! hgs (judges), hgs_client (attests), kps, tpm, host ──▶ attestation ──▶ no other crate of Drydock
//! ```
//!
//! # What MS-HGSA leaves open
//!
//! | MS-HGSA leaves open | Drydock |
//! |---|---|
//! | encoding of HostKeyPublicKey | DER SubjectPublicKeyInfo, ECDSA P-256 |
//! | HostKeySignature | ECDSA with SHA-256, ASN.1 |
//! | encoding of VirtualSecureModeIdentityKey | DER SubjectPublicKeyInfo, RSA 2048 to 4096 |
//! | health certificate | X.509, issued by the attestation CA; a URI in its subjectAltName names the host key or the TPM's endorsement key |

#![warn(missing_docs)]

mod error;
mod health;
mod host_identity;
mod host_key;
mod host_key_claim;
mod identity;
pub mod messages;
mod p256;
mod pem;
mod request;
pub mod tpm;
mod verifier;

pub use error::{Error, Result};
pub use health::{Health, HealthCa};
pub use host_identity::{HostIdentity, HostKind};
pub use host_key::{HostKey, HostPublicKey};
pub use host_key_claim::{HostKeyClaim, HostKeyVerifier};
pub use identity::{IdentityKey, IdentityPublic};
pub use p256::P256Key;
pub use request::{Items, Refusal};
pub use verifier::{Claim, Evidence, Registered, Verifier};
