//! What the tests share: a directory, and a VM with an empty disk.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, reason = "each test binary uses a part")]

use std::path::{Path, PathBuf};
use std::process::Command;

use image::{Format, Source};
use machine::accel::{Accel, Verdict};
use machine::{ConsoleProfile, DiskSpec, Firmware, Policy, VmSpec};
use tempfile::TempDir;
use uuid::Uuid;

pub const MIB: u64 = 1 << 20;

pub struct Sandbox {
    dir: TempDir,
    id: Uuid,
}

impl Sandbox {
    pub fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), id: Uuid::new_v4() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn spec(&self, policy: Policy) -> VmSpec {
        VmSpec {
            id: self.id,
            name: "test".into(),
            memory_mib: 256,
            vcpus: 1,
            nested: false,
            policy,
            console_profile: ConsoleProfile::default(),
            disks: vec![self.disk("root")],
            nics: Vec::new(),
            firmware: Firmware::find().expect("the Debian package ovmf must be installed"),
        }
    }

    pub fn disk(&self, serial: &str) -> DiskSpec {
        let path = self.path(&format!("{serial}.qcow2"));
        let size = 64 * MIB;
        qemu_img(&["create", "-q", "-f", "qcow2", path.to_str().unwrap(), "64M"]);
        DiskSpec::new(Source::new(path, Format::Qcow2), serial, size)
    }
}

pub fn qemu_img(args: &[&str]) -> String {
    let output = Command::new("qemu-img").args(args).output().expect("the Debian package qemu-utils must be installed");
    assert!(output.status.success(), "qemu-img {args:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

pub fn verdict(accel: Accel) -> Verdict {
    Verdict { accel, reason: "a test".into(), outer_tcg: false }
}

/// Every byte of every file under `dir`.
pub fn all_bytes(dir: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap().map(Result::unwrap) {
        if entry.file_type().unwrap().is_dir() {
            bytes.extend(all_bytes(&entry.path()));
        } else {
            bytes.extend(std::fs::read(entry.path()).unwrap());
        }
    }
    bytes
}

pub fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|w| w == needle)
}

/// A directory on a file system of its own, which is full after some MiB.
pub struct SmallFileSystem(PathBuf);

impl SmallFileSystem {
    /// Needs root, like every test that creates taps.
    pub fn new(path: &Path, mib: u64) -> Self {
        std::fs::create_dir(path).unwrap();
        let options = format!("size={mib}m,mode=700");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(path).status().unwrap();
        assert!(mounted.success(), "cannot mount a tmpfs; run the tests as root");
        Self(path.to_owned())
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for SmallFileSystem {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}
