//! The Host Guardian Service: attestation (MS-HGSA v2.0, host-key and TPM mode) and key protection (MS-KPS).
//!
//! * [`Hgs`] is one service: its keys, its store, and what an admin does with them.
//! * [`server::serve`] puts it on the network.
//!
//! The service trusts nothing that a host sends until the host is attested, and nothing in a protector until every
//! signature chains to its owner. Keys in its answers are encrypted to the attested host's identity key, and every
//! release and refusal is written down *before* the answer leaves.
//!
//! # Place
//!
//! ```text
//! drydock ──▶ hgs ──▶ attestation (judges evidence), kps (messages), key_protector (rolls protectors)
//! ```
//!
//! Guarded hosts do not use this crate: their side is `hgs_client`.
//!
//! ```text
//! server ─┬▶ attest, tpm_attest ─┬▶ record ─┬▶ store: audit log, hosts, policy, protectors, permits
//!         └▶ roll ───────────────┘  admin ──┘
//! ```
//!
//! Every attestation, release and refusal passes one function, `observe` in `record.rs`: an observer (metrics) hooks in
//! there. A further kind of evidence is an [`attestation::Verifier`] and a route in `server/routes.rs`.
//!
//! # What MS-HGSA and MS-KPS leave open
//!
//! | MS-HGSA, MS-KPS leave open | Drydock |
//! |---|---|
//! | encryption of transport keys | see the crate `kps` |
//! | signingCertificates | the certificates-only PKCS#7 in DER, as the whole body |
//! | status of refusals | 400 for a request that nobody could serve, 403 for a host that is not entitled |

#![warn(missing_docs)]

mod admin;
mod attest;
mod audit;
mod backup;
mod challenge;
mod error;
mod files;
mod keys;
mod permit;
mod pkcs7;
mod record;
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
