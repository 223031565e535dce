//! TPM mode: what a TPM says of itself and of how its machine was started, and how that is judged.
//!
//! 1. The host names its TPM by the *endorsement key* (EK) that the fabric admin registered, and shows an
//!    *attestation key* (AK).
//! 2. The service makes a [`credential`](make_credential) that only a TPM with that EK opens, and only while that
//!    AK is loaded in it. Who returns the secret has proven that AK and EK are in one TPM.
//! 3. The host returns a [`Quote`] by the AK over the PCRs, in which the service's nonce and the host's identity
//!    key are bound, and the firmware's [`EventLog`], which must lead to the quoted PCRs.
//! 4. The [`Policy`] judges the log.
//!
//! Only what every PC client TPM 2.0 has is spoken: an RSA-2048 EK of the default template (TCG EK Credential
//! Profile, template L-1), an AK on P-256 with ECDSA and SHA-256, and the SHA-256 bank.

mod claim;
mod context;
mod credential;
mod event_log;
mod keys;
mod policy;
mod quote;
mod reader;

pub use claim::{EvidenceError, TpmClaim, attestation_key, measured_boot};
pub use context::{Blob, Context};
pub use credential::{Credential, make_credential};
pub use event_log::{Event, EventLog, LogError, MAX_LOG};
pub use keys::{AkPublic, EkPublic, KeyError};
pub use policy::{Baseline, Check, Evaluation, Policy};
pub use quote::{Quote, QuoteError, qualifying_data};

/// A PCR of the SHA-256 bank.
pub type Pcr = [u8; 32];

/// The PCRs that are quoted: those that firmware, shim and boot loader measure into and log. An operating system
/// goes on extending the others (10 by IMA, 11 and 15 by systemd), outside of the firmware's log.
pub const QUOTED: [u32; 11] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 14];
