//! The tests of the service once more, on PostgreSQL: `support` gives the services of this program a database there.

// Each file of tests brings its own `support`.
#![allow(clippy::unwrap_used, clippy::duplicate_mod)]

#[path = "audit_log.rs"]
mod audit_log;
#[path = "generations.rs"]
mod generations;
#[path = "hgsa_wire.rs"]
mod hgsa_wire;
#[path = "kps_rules.rs"]
mod kps_rules;
#[path = "kps_wire.rs"]
mod kps_wire;
#[path = "refusals.rs"]
mod refusals;
#[path = "release.rs"]
mod release;
#[path = "rotation.rs"]
mod rotation;
#[path = "service.rs"]
mod service;
#[path = "tpm_boot.rs"]
mod tpm_boot;
#[path = "tpm_evidence.rs"]
mod tpm_evidence;
#[path = "tpm_mode.rs"]
mod tpm_mode;
