//! Reading /proc.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// The `Name:\tvalue` lines of a status file.
pub(super) struct Status(BTreeMap<String, String>);

impl Status {
    pub(super) fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).map_err(Error::io("read", path))?;
        let pair = |line: &str| line.split_once(':').map(|(name, value)| (name.to_owned(), value.trim().to_owned()));
        Ok(Self(text.lines().filter_map(pair).collect()))
    }

    fn field(&self, name: &str) -> &str {
        self.0.get(name).map_or("", String::as_str)
    }

    pub(super) fn numbers(&self, name: &str) -> Vec<u32> {
        self.field(name).split_whitespace().filter_map(|word| word.parse().ok()).collect()
    }

    pub(super) fn number(&self, name: &str) -> u32 {
        self.numbers(name).first().copied().unwrap_or_default()
    }

    /// A mask. One that cannot be read counts as everything.
    pub(super) fn hex(&self, name: &str) -> u64 {
        u64::from_str_radix(self.field(name), 16).unwrap_or(u64::MAX)
    }
}

pub(super) fn entries(directory: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(directory).map_err(Error::io("list", directory))?;
    Ok(entries.flatten().map(|entry| entry.path()).collect())
}

pub(super) fn number_of(path: &Path) -> Option<u32> {
    path.file_name()?.to_str()?.parse().ok()
}
