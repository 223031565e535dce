//! VMs without an operating system: they start, they stop by force, and everything that is checked around a VM can be
//! checked with them in seconds.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use garage::Digest;
use serde_json::Value;

use crate::world::{SWITCH, World};

pub const DISK: u64 = 8 << 20;

impl World {
    /// A VM whose disk holds nothing but a text that can be found again.
    pub fn create_blank(&self, name: &str, extra: &[&str]) -> Result<Value> {
        self.create_blank_on(name, SWITCH, extra)
    }

    /// The same on another switch.
    pub fn create_blank_on(&self, name: &str, switch: &str, extra: &[&str]) -> Result<Value> {
        let disk = self.fabric(&format!("{name}.blank.raw"));
        let mut bytes = vec![0; usize::try_from(DISK)?];
        let text = format!("the disk of {name}");
        bytes[1 << 20..(1 << 20) + text.len()].copy_from_slice(text.as_bytes());
        fs::write(&disk, bytes)?;
        let vm = self.create_with(name, &disk, switch, extra)?;
        fs::remove_file(&disk)?;
        Ok(vm)
    }

    /// Everything below a folder of the store, by digest: to show that nothing changed.
    pub fn fingerprint(&self, below: &str) -> Result<BTreeMap<String, String>> {
        let mut found = BTreeMap::new();
        walk(&self.store().join(below), "", &mut found)?;
        Ok(found)
    }
}

fn walk(dir: &Path, prefix: &str, found: &mut BTreeMap<String, String>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))? {
        let entry = entry?;
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        if entry.file_type()?.is_dir() {
            walk(&entry.path(), &format!("{name}/"), found)?;
        } else {
            found.insert(name, Digest::of(&fs::read(entry.path())?).to_string());
        }
    }
    Ok(())
}
