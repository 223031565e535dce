//! A recovery across two hosts, without a guest in either VM: the garage's part is played with its disk.

use std::fs;
use std::path::PathBuf;

use anyhow::Result;
use serde_json::Value;

use crate::host::Host;
use crate::tenant::{Plan, hand_back_disk, repair_copy};
use crate::world::{World, path};

/// Where a repair writes, and how much, in bytes.
pub const REPAIRED: (u64, u64) = (3 << 20, 1 << 20);

/// The VM on the first host, the garage on the second.
pub struct Across {
    pub world: World,
    pub second: Host,
}

impl Across {
    /// `garage`: options for `vm create`.
    pub fn new(garage: &[&str]) -> Result<Self> {
        let world = World::new()?;
        let second = world.second_host()?;
        world.create_blank("dvm", &["--memory", "256"])?;
        second.create_blank("vmre", &[&["--memory", "1024"], garage].concat())?;
        Ok(Across { world, second })
    }

    /// Where the export writes.
    pub fn here(&self) -> PathBuf {
        self.world.fabric("dvm.vhdx")
    }

    /// Where it is carried to.
    pub fn there(&self) -> PathBuf {
        self.second.fabric("carried.vhdx")
    }

    /// To [`Across::here`].
    pub fn export(&self) -> Result<Value> {
        self.world.admin_json(&["recovery", "export", "dvm", "--to-file", &path(&self.here())])
    }

    /// Repaired and handed back, on the second host.
    pub fn handed_back(&self) -> Result<()> {
        repair_copy(&self.there(), REPAIRED.0, REPAIRED.1)?;
        hand_back_disk(&self.world, &self.there(), &Plan::default(), |_| Ok(()))
    }

    /// The RG disks on both hosts.
    pub fn remove_files(&self) -> Result<()> {
        for file in [self.here(), self.there()] {
            if file.exists() {
                fs::remove_file(file)?;
            }
        }
        Ok(())
    }

    /// Ends everything in order and fails if a process is left.
    pub fn close(mut self) -> Result<()> {
        self.second.shut_down()?;
        self.world.close()
    }
}
