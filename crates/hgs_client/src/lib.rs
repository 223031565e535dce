//! A guarded host's side of the Host Guardian Service: it proves what the host is, and gets transport keys for it.
//!
//! * [`HgsClient`] attests (MS-HGSA v2.0, host-key and TPM mode) and rolls transport keys (MS-KPS).
//! * [`Error`] is what went wrong and what to do about it; [`Status`] is its name in the terms of guarded fabrics.
//!
//! # Place
//!
//! ```text
//! host, drydock ──▶ hgs_client ──▶ kps, attestation (the messages), tpm (the evidence), key_protector
//! ```
//!
//! It shares the messages with the service's crate, `hgs`, and nothing else. It believes no answer: the egress
//! protector has to verify and to have the same owner, and its keys have to be encrypted to this host.

#![warn(missing_docs)]

mod client;
mod error;
mod status;

pub use client::{HealthCertificate, HgsClient};
pub use error::{Error, Result};
pub use status::{Status, SubStatus};
