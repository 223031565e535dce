//! Coverage-guided fuzzing of everything that Drydock reads from a tenant, a host or the network.
//!
//! A target takes bytes as their enemy would send them, and where a signature or a seal would stop nearly all of them,
//! it signs or seals them first: what lies behind is read, too. Each asserts what must hold of whatever is accepted.
//!
//! The binary is libFuzzer with all targets in it; `fuzz/run` runs them. See docs/testing.md.

// An unwrap that fails here is a finding.
#![allow(clippy::unwrap_used)]

mod agent;
mod attestation_messages;
mod blocks;
mod documents;
mod luks_header;
mod measured_boot;
mod nbd;
mod papers;
mod qmp;
mod rg_disk;
mod service;
mod vm;
mod world;

use std::path::Path;

pub use world::World;

/// One reader and what must hold of it.
pub struct Target {
    pub name: &'static str,
    /// Inputs that are accepted, where there is one made by the code that writes it for others.
    pub seeds: fn(&World) -> Vec<Vec<u8>>,
    /// Whether the bytes were accepted; panics where something does not hold of them.
    pub run: fn(&World, &[u8]) -> bool,
}

/// All targets.
pub const TARGETS: [&[Target]; 11] = [
    documents::TARGETS,
    papers::TARGETS,
    attestation_messages::TARGETS,
    measured_boot::TARGETS,
    service::TARGETS,
    rg_disk::TARGETS,
    nbd::TARGETS,
    vm::TARGETS,
    agent::TARGETS,
    luks_header::TARGETS,
    qmp::TARGETS,
];

/// The target of this name.
#[must_use]
pub fn target(name: &str) -> Option<&'static Target> {
    TARGETS.into_iter().flatten().find(|target| target.name == name)
}

/// Writes every target's seeds into a folder of its name, and gives the names.
///
/// # Errors
/// When the file system refuses.
pub fn write_seeds(world: &World, corpus: &Path) -> std::io::Result<Vec<&'static str>> {
    let mut names = Vec::new();
    for target in TARGETS.into_iter().flatten() {
        let folder = corpus.join(target.name);
        std::fs::create_dir_all(&folder)?;
        for (number, seed) in (target.seeds)(world).iter().enumerate() {
            std::fs::write(folder.join(format!("seed-{number}")), seed)?;
        }
        names.push(target.name);
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A seed that is refused at the door leaves a fuzzer in front of it.
    #[test]
    fn every_seed_is_accepted_and_names_are_used_once() {
        let folder = std::env::temp_dir().join(format!("drydock-fuzz-{}", std::process::id()));
        let world = World::open(&folder).unwrap();
        // What was kept is what is read again.
        let again = World::open(&folder).unwrap();
        std::fs::remove_dir_all(&folder).unwrap();
        let mut names = std::collections::BTreeSet::new();
        for target in TARGETS.into_iter().flatten() {
            assert!(names.insert(target.name), "{}", target.name);
            let seeds = (target.seeds)(&world);
            assert!(!seeds.is_empty(), "{}", target.name);
            for seed in &seeds {
                assert!((target.run)(&world, seed) && (target.run)(&again, seed), "{}", target.name);
            }
        }
    }
}
