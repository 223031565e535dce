//! TPM mode: what a TPM states about itself and about how its machine was started, and how that is judged.
//!
//! 1. The host names its TPM by the *endorsement key* (EK) that the fabric admin registered, and shows an
//!    *attestation key* (AK).
//! 2. The service makes a [`credential`](make_credential) that only a TPM with that EK opens, and only while that
//!    AK is loaded in it. Returning the secret proves that AK and EK are in one TPM.
//! 3. The host returns a [`Quote`] by the AK over the PCRs, in which the service's nonce and the host's identity
//!    key are bound, and the firmware's [`EventLog`], which must lead to the quoted PCRs.
//! 4. The [`Policy`] judges the log. This step and the one before it are the [`TpmVerifier`].
//!
//! Only what every PC client TPM 2.0 supports is used: an RSA-2048 EK of the default template (TCG EK Credential
//! Profile, template L-1), an AK on P-256 with ECDSA and SHA-256, and the SHA-256 bank.

mod claim;
mod context;
mod credential;
mod event_log;
pub(crate) mod keys;
mod pcr;
mod policy;
mod quote;
mod reader;

pub use claim::{EvidenceError, TpmClaim, TpmFailure, TpmVerifier, attestation_key, measured_boot};
pub use context::{Blob, Context};
pub use credential::{Credential, make_credential};
pub use event_log::{Event, EventLog, LogError, MAX_LOG};
pub use keys::{AkPublic, EkPublic, KeyError};
pub use pcr::{Pcr, QUOTED};
pub use policy::{Baseline, Check, Evaluation, Policy};
pub use quote::{Quote, QuoteError, qualifying_data};
