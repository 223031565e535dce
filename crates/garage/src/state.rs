//! The sealed state of the VM, packed into `dd-state`.
//!
//! A *bundle* is the files of a sealed state slot (`record.sealed`, `vars.luks`, `vtpm/…`) in one run of
//! bytes, little-endian: magic `DDBUNDL1`, u32 count, then for each file, sorted by name: u16 length of the
//! name, name, u32 length, contents. Nothing follows the last file.
//!
//! The partition holds two slots, A at 0 and B at 16 MiB: magic `DDRGSTA1`, u32 length of the bundle, u32
//! reserved 0, bundle. The active slot is the one whose bundle has the SHA-256 that the manifest names.
//! New state goes to the other slot and is made durable before the manifest flips to it.

mod files;

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;

use image::Digest;
use image::blocks::Blocks;

/// Most files in a bundle.
pub const MAX_FILES: usize = 16;
/// Most bytes in all files of a bundle together.
pub const MAX_CONTENTS: usize = 15 << 20;
/// Longest name of a file or directory in bytes.
pub const MAX_COMPONENT: usize = 64;

const BUNDLE_MAGIC: &[u8; 8] = b"DDBUNDL1";
const SLOT_MAGIC: &[u8; 8] = b"DDRGSTA1";
const SLOTS: [u64; 2] = [0, 16 << 20];
const SLOT_HEADER: usize = 16;
/// Contents, and room for the names: 16 files of 2 components, with lengths.
const MAX_BUNDLE: usize = MAX_CONTENTS + (16 << 10);

/// Why sealed state is refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StateError {
    /// A field reaches past the end.
    #[error("the bundle is cut off or has an impossible length in `{field}`")]
    Truncated {
        /// The field.
        field: &'static str,
    },
    /// It does not begin with `DDBUNDL1`.
    #[error("the bundle's magic is wrong")]
    Magic,
    /// No file, or more than [`MAX_FILES`].
    #[error("{count} files: a bundle has 1 to {MAX_FILES}")]
    FileCount {
        /// Files that it has.
        count: usize,
    },
    /// More than [`MAX_CONTENTS`].
    #[error("the files have more than {MAX_CONTENTS} bytes together")]
    TooLarge,
    /// A name that could lead elsewhere, or is longer than [`MAX_COMPONENT`].
    #[error("a file's name is not allowed: one directory at most, letters, digits, `.`, `_` and `-`")]
    Name,
    /// Names that do not ascend.
    #[error("the files are not sorted, or one comes twice")]
    Order,
    /// Bytes after the end.
    #[error("{} bytes follow the last file", count)]
    Trailing {
        /// How many.
        count: usize,
    },
    /// The active bundle is damaged or missing.
    #[error("no slot holds the bundle with SHA-256 {expected} that the manifest names")]
    NotFound {
        /// Its digest, by the manifest.
        expected: Digest,
    },
    /// Manifest and bundle of a new RG disk do not belong together.
    #[error("the new manifest names the bundle {named}, but {found} was given")]
    Mismatch {
        /// The digest in the manifest.
        named: Digest,
        /// The digest of the bundle.
        found: Digest,
    },
    /// A slot's directory holds something else than files, one level deep.
    #[error("{}: neither a regular file nor a directory of such files", path.display())]
    FileType {
        /// What is neither.
        path: PathBuf,
    },
    /// The system refused something while packing or unpacking.
    #[error("{}: cannot {op}", path.display())]
    File {
        /// The file or directory.
        path: PathBuf,
        /// What was tried: completes the sentence "cannot …".
        op: &'static str,
        /// What the system answered.
        #[source]
        source: io::Error,
    },
    /// The device failed.
    #[error("the state partition cannot be read or written")]
    Io(#[source] io::Error),
}

/// The files of a sealed state slot. Everything in them is encrypted under keys that are not here.
#[derive(Clone, PartialEq, Eq)]
pub struct Bundle {
    files: BTreeMap<String, Vec<u8>>,
}

impl Bundle {
    /// Builds a bundle from contents with names like `record.sealed` or `vtpm/tpm2-00.permall`.
    ///
    /// # Errors
    /// [`StateError::Name`], [`StateError::Order`] for a name that comes twice, and those of the limits.
    pub fn from_files(files: impl IntoIterator<Item = (String, Vec<u8>)>) -> Result<Self, StateError> {
        let mut bundle = Self { files: BTreeMap::new() };
        for (name, contents) in files {
            bundle.insert(name, contents)?;
        }
        bundle.check_total()?;
        Ok(bundle)
    }

    /// Names and contents, sorted by name.
    pub fn files(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.files.iter().map(|(name, contents)| (name.as_str(), contents.as_slice()))
    }

    /// SHA-256 of [`Bundle::to_bytes`], as the manifest names it.
    pub fn sha256(&self) -> Digest {
        Digest::of(&self.to_bytes())
    }

    /// The one encoding of this bundle.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = BUNDLE_MAGIC.to_vec();
        // Counts and lengths fit: check_total, check_name and insert bound them.
        out.extend_from_slice(&(self.files.len() as u32).to_le_bytes());
        for (name, contents) in &self.files {
            out.extend_from_slice(&(name.len() as u16).to_le_bytes());
            out.extend_from_slice(name.as_bytes());
            out.extend_from_slice(&(contents.len() as u32).to_le_bytes());
            out.extend_from_slice(contents);
        }
        out
    }

    /// Reads a bundle that somebody else may have written.
    ///
    /// # Errors
    /// Any of the format's: there is one encoding of a bundle.
    pub fn parse(bytes: &[u8]) -> Result<Self, StateError> {
        let mut rest = bytes;
        if take(&mut rest, 8, "magic")? != BUNDLE_MAGIC {
            return Err(StateError::Magic);
        }
        let count = take_u32(&mut rest, "count")?;
        if !(1..=MAX_FILES).contains(&count) {
            return Err(StateError::FileCount { count });
        }
        let mut bundle = Self { files: BTreeMap::new() };
        for _ in 0..count {
            let length = take(&mut rest, 2, "name length")?;
            let length = usize::from(u16::from_le_bytes([length[0], length[1]]));
            let name = take(&mut rest, length, "name")?;
            let name = std::str::from_utf8(name).map_err(|_| StateError::Name)?;
            let length = take_u32(&mut rest, "length")?;
            let contents = take(&mut rest, length, "contents")?;
            let last = bundle.files.last_key_value().map(|(name, _)| name.as_str());
            if last.is_some_and(|last| last >= name) {
                return Err(StateError::Order);
            }
            bundle.insert(name.to_owned(), contents.to_vec())?;
        }
        if !rest.is_empty() {
            return Err(StateError::Trailing { count: rest.len() });
        }
        bundle.check_total()?;
        Ok(bundle)
    }

    fn insert(&mut self, name: String, contents: Vec<u8>) -> Result<(), StateError> {
        check_name(&name)?;
        if self.files.insert(name, contents).is_some() {
            return Err(StateError::Order);
        }
        // Checked with every file, so that an endless source is stopped early.
        self.check_limits()
    }

    fn check_limits(&self) -> Result<(), StateError> {
        if self.files.len() > MAX_FILES {
            return Err(StateError::FileCount { count: self.files.len() });
        }
        // At most 17 lengths of vectors in memory: no overflow.
        let total: usize = self.files.values().map(Vec::len).sum();
        if total > MAX_CONTENTS {
            return Err(StateError::TooLarge);
        }
        Ok(())
    }

    fn check_total(&self) -> Result<(), StateError> {
        if self.files.is_empty() {
            return Err(StateError::FileCount { count: 0 });
        }
        // A name cannot be a file and a directory at once.
        let directories = self.files.keys().filter_map(|name| name.split_once('/'));
        for (directory, _) in directories {
            if self.files.contains_key(directory) {
                return Err(StateError::Name);
            }
        }
        self.check_limits()
    }
}

fn check_name(name: &str) -> Result<(), StateError> {
    let plain = |part: &str| {
        !part.is_empty()
            && part != "."
            && part != ".."
            && part.len() <= MAX_COMPONENT
            && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
    };
    if name.split('/').count() > 2 || !name.split('/').all(plain) {
        return Err(StateError::Name);
    }
    Ok(())
}

fn take<'a>(rest: &mut &'a [u8], count: usize, field: &'static str) -> Result<&'a [u8], StateError> {
    let (head, tail) = rest.split_at_checked(count).ok_or(StateError::Truncated { field })?;
    *rest = tail;
    Ok(head)
}

fn take_u32(rest: &mut &[u8], field: &'static str) -> Result<usize, StateError> {
    let bytes = take(rest, 4, field)?;
    let value = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    usize::try_from(value).map_err(|_| StateError::Truncated { field })
}

/// Reads the bundle with this digest from a `dd-state` partition.
///
/// # Errors
/// [`StateError::NotFound`], [`StateError::Io`], those of [`Bundle::parse`].
pub fn read(partition: &mut dyn Blocks, expected: Digest) -> Result<Bundle, StateError> {
    match find_slot(partition, expected)? {
        Some((_, bytes)) => Bundle::parse(&bytes),
        None => Err(StateError::NotFound { expected }),
    }
}

/// Writes a bundle beside the one with the digest `active` (if any), and returns its digest when it is durable.
///
/// # Errors
/// [`StateError::Io`].
pub fn write(partition: &mut dyn Blocks, bundle: &Bundle, active: Option<Digest>) -> Result<Digest, StateError> {
    let bytes = bundle.to_bytes();
    let used = match active {
        Some(digest) => find_slot(partition, digest)?.map(|(slot, _)| slot),
        None => None,
    };
    let slot = if used == Some(SLOTS[0]) { SLOTS[1] } else { SLOTS[0] };
    let mut out = Vec::with_capacity(SLOT_HEADER + bytes.len());
    out.extend_from_slice(SLOT_MAGIC);
    // A bundle has at most MAX_BUNDLE bytes.
    out.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&bytes);
    partition.write_at(slot, &out).and_then(|()| partition.flush()).map_err(StateError::Io)?;
    Ok(Digest::of(&bytes))
}

fn find_slot(partition: &mut dyn Blocks, expected: Digest) -> Result<Option<(u64, Vec<u8>)>, StateError> {
    for slot in SLOTS {
        let mut header = [0u8; SLOT_HEADER];
        partition.read_at(slot, &mut header).map_err(StateError::Io)?;
        let length = u32::from_le_bytes([header[8], header[9], header[10], header[11]]);
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        if &header[..8] != SLOT_MAGIC || header[12..] != [0; 4] || length > MAX_BUNDLE {
            continue;
        }
        let mut bytes = vec![0u8; length];
        partition.read_at(slot + SLOT_HEADER as u64, &mut bytes).map_err(StateError::Io)?;
        if Digest::of(&bytes) == expected {
            return Ok(Some((slot, bytes)));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests;
