//! The tests of the service, on SQLite, in one program: what they share is compiled and linked once.

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
#[path = "openapi.rs"]
mod openapi;
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

/// A file that is in no program would be a test that never runs.
#[test]
fn every_file_is_a_module() {
    let programs = ["sqlite.rs", "postgres.rs", "nodes.rs"];
    for entry in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/tests")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let known = include_str!("sqlite.rs").contains(&format!("#[path = \"{name}\"]"));
        let is_test = name.ends_with(".rs") && !programs.contains(&name.as_str());
        assert!(known || !is_test, "crates/hgs/tests/{name} is not a module of sqlite.rs");
    }
}
