//! VMs without an operating system: they start, they stop by force, and everything that is checked around a VM can be
//! checked with them in seconds.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use image::Digest;
use machine::VmSpec;
use serde_json::Value;

use crate::host::Host;
use crate::process::run;
use crate::world::SWITCH;

pub const DISK: u64 = 8 << 20;
const CONVERT: Duration = Duration::from_secs(60);

impl Host {
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

    /// A VM whose disk takes time to copy: it has `mib` MiB of data, of which none is zero or a hole.
    pub fn create_large(&self, name: &str, mib: usize) -> Result<Value> {
        const BLOCK: usize = 64;
        let disk = self.fabric(&format!("{name}.large.raw"));
        // A block of random bytes, over and over: no image format and no tool of QEMU's notices.
        let mut block = vec![0; BLOCK << 20];
        fs::File::open("/dev/urandom")?.read_exact(&mut block)?;
        let mut file = fs::File::create(&disk)?;
        for written in (0..mib).step_by(BLOCK) {
            file.write_all(&block[..BLOCK.min(mib - written) << 20])?;
        }
        drop(file);
        let vm = self.create_with(name, &disk, SWITCH, &["--memory", "256"])?;
        fs::remove_file(&disk)?;
        Ok(vm)
    }

    /// The contents of the first disk of a VM that is off.
    pub fn disk(&self, vm: &str) -> Result<Vec<u8>> {
        let raw = self.fabric(&format!("{vm}.disk.raw"));
        let spec: VmSpec = serde_json::from_slice(&fs::read(self.store().join("vms").join(vm).join("vm.json"))?)?;
        let disk = spec.disks.first().context("no disk")?;
        let mut command = Command::new("qemu-img");
        command.args(["convert", "-f", disk.source.format().driver(), "-O", "raw"]).arg(disk.source.path()).arg(&raw);
        run(&mut command, b"", CONVERT)?.ok()?;
        let bytes = fs::read(&raw)?;
        fs::remove_file(&raw)?;
        Ok(bytes)
    }

    /// Whether a stretch of that disk holds one byte only.
    pub fn disk_holds(&self, vm: &str, offset: u64, length: u64, byte: u8) -> Result<bool> {
        let (from, to) = (usize::try_from(offset)?, usize::try_from(offset + length)?);
        Ok(self.disk(vm)?.get(from..to).context("past the end")?.iter().all(|b| *b == byte))
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
