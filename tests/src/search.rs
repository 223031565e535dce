//! Looking for bytes where they must not be.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use base64::prelude::{BASE64_STANDARD, Engine as _};
use key_protector::{Protector, TransportKey};
use time::OffsetDateTime;

use crate::host::Host;
use crate::tenant::owner;

pub fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    memchr::memmem::find(haystack, needle).is_some()
}

/// Every file below a folder.
pub fn files(root: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(root).with_context(|| format!("cannot list {}", root.display()))? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.extend(files(&entry.path())?);
        } else if entry.file_type()?.is_file() {
            found.push(entry.path());
        }
    }
    Ok(found)
}

/// The transport keys of a VM in every spelling. The owner can open every protector; so the test knows what to look for.
#[derive(Default)]
pub struct Needles(Vec<Vec<u8>>);

impl Needles {
    /// Those of all slots that a VM has on a host now.
    pub fn add_vm(&mut self, host: &Host, vm: &str) -> Result<()> {
        for slot in fs::read_dir(host.store().join("vms").join(vm).join("slots"))? {
            let file = slot?.path().join("protector.xml");
            // A start that was killed leaves a slot without one.
            if file.exists() {
                self.add(&Protector::parse(&fs::read(file)?)?.open(&owner(host)?, OffsetDateTime::now_utc())?);
            }
        }
        Ok(())
    }

    /// The key and those made from it, raw and as text.
    fn add(&mut self, key: &TransportKey) {
        let derived = [
            machine::record::LABEL,
            machine::slot::VARS_LABEL,
            "drydock/vtpm/v1",
            "drydock/migration/v1",
            "transport-key-signature",
        ];
        let mut raw = vec![key.expose().to_vec()];
        raw.extend(derived.iter().map(|label| key.derive(label).expose().to_vec()));
        for bytes in raw {
            let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            let list = format!("{bytes:?}").trim_matches(['[', ']']).to_owned();
            self.0.push(hex.clone().into_bytes());
            self.0.push(hex.to_uppercase().into_bytes());
            self.0.push(BASE64_STANDARD.encode(&bytes).into_bytes());
            self.0.push(list.into_bytes());
            self.0.push(bytes);
        }
    }

    /// How many keys there are, derived ones included.
    pub fn keys(&self) -> usize {
        self.0.len() / 5
    }

    /// Fails if one of them is in `bytes`.
    pub fn absent(&self, place: &str, bytes: &[u8]) -> Result<()> {
        ensure!(!self.0.iter().any(|needle| contains(bytes, needle)), "a key lies open in {place}");
        Ok(())
    }

    /// The same for every file below a folder; returns how many there were.
    pub fn absent_below(&self, root: &Path) -> Result<usize> {
        let all = files(root)?;
        for file in &all {
            self.absent(&file.display().to_string(), &fs::read(file)?)?;
        }
        Ok(all.len())
    }

    /// The control: what is searched for is found where it is.
    pub fn control(&self) -> Result<()> {
        let planted = self.0.last().context("no key")?;
        let found = self.absent("the control", &[b"xx", planted.as_slice(), b"yy"].concat());
        ensure!(found.is_err(), "nothing is ever found");
        Ok(())
    }
}
