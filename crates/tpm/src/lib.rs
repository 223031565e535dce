//! The TPM of this machine, through Debian's tpm2-tools.
//!
//! * [`Tools`] runs one tool, with a deadline and with bounded output. Nothing else in Drydock runs them.
//! * [`HostTpm`] is a guarded host's TPM: the keys and quotes that attestation is about, and [secrets](Sealed) that only
//!   this machine opens, after this boot chain, while a [`Counter`] has not been stepped.
//!
//! # Place
//!
//! ```text
//! host, hgs_client, recovery, drydock ──▶ tpm ──▶ attestation (the TPM's structures, and how they are judged)
//!                                              └▶ confine     (where programs are looked for)
//! ```
//!
//! `hgs_client` attests with a `HostTpm`; `host` keeps keys for starts without the service in one; `recovery` uses
//! `Tools` for the garage's own key. A VM's vTPM is `machine`'s, not this crate's.

#![warn(missing_docs)]

mod host_tpm;
mod seal;
mod tools;

pub use host_tpm::{HostTpm, KERNEL_LOG};
pub use seal::{Counter, Sealed};
pub use tools::{Result, Tools, TpmError};
