//! The evidence a host gives of what it is, and how the Host Guardian Service judges it. No I/O, no clock.
//!
//! The protocol is MS-HGSA v2.0. In host-key mode (section 3.1.5.3) a host proves that it holds the private half
//! of a key the fabric admin registered; in TPM mode (section 3.1.5.1, see [`tpm`]) that it is the machine with a
//! registered TPM, and how it was started. Either way it asks for a *health certificate* over another key, made
//! afresh for this run of the agent. Transport keys are later encrypted to that second key, so an old recording of
//! the network and a stolen host key together still open nothing.
//!
//! | MS-HGSA leaves open | Drydock |
//! |---|---|
//! | encoding of HostKeyPublicKey | DER SubjectPublicKeyInfo, ECDSA P-256 |
//! | HostKeySignature | ECDSA with SHA-256, ASN.1 |
//! | encoding of VirtualSecureModeIdentityKey | DER SubjectPublicKeyInfo, RSA 2048 to 4096 |
//! | health certificate | X.509, issued by the attestation CA; a URI in its subjectAltName names the host key or the TPM's endorsement key |

mod error;
mod health;
mod host_identity;
mod host_key;
mod identity;
mod judge;
pub mod messages;
mod p256;
mod pem;
pub mod tpm;

pub use error::{Error, Result};
pub use health::{Health, HealthCa};
pub use host_identity::{HostIdentity, HostKind};
pub use host_key::{HostKey, HostPublicKey};
pub use identity::{IdentityKey, IdentityPublic};
pub use judge::{Claim, Evidence, Refusal, judge};
pub use p256::P256Key;
