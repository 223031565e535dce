//! The open descriptors of a process, and where each of them leads.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, Metadata};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::procfs::{entries, number_of};
use crate::engine::file_id::{FileId, file_id};
use crate::error::{Error, Result};

/// An open descriptor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Descriptor {
    /// Its number in the process.
    pub number: u32,
    /// What it is.
    pub kind: ChannelKind,
    /// A path, an interface, or the kernel's name for it.
    pub target: String,
    /// The process may write to it.
    pub writable: bool,
    #[serde(skip)]
    pub(crate) file: Option<FileId>,
}

/// What a descriptor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ChannelKind {
    /// A regular file, or anything that could not be inspected.
    File,
    /// A block device.
    BlockDevice,
    /// A character device.
    CharacterDevice,
    /// A directory.
    Directory,
    /// A pipe.
    Pipe,
    /// A port on a bridge; `target` is its interface.
    Tap,
    /// A connected socket without a name in any file system.
    UnnamedSocket,
    /// A connected Unix socket with a name.
    NamedSocket,
    /// A Unix socket that accepts connections.
    ListeningSocket,
    /// A socket of a network, or of an unknown family.
    NetworkSocket,
    /// Memory and events of the kernel: memfd, eventfd, epoll, KVM.
    Anonymous,
}

pub(super) fn descriptors(process: &Path) -> Result<Vec<Descriptor>> {
    let sockets = Sockets::read(process)?;
    let mut found = Vec::new();
    for link in entries(&process.join("fd"))? {
        // One that was closed in the meantime is not open.
        let (Some(number), Ok(target)) = (number_of(&link), fs::read_link(&link)) else { continue };
        let info = fs::read_to_string(process.join("fdinfo").join(number.to_string())).unwrap_or_default();
        let metadata = fs::metadata(&link).ok();
        let target = target.to_string_lossy().into_owned();
        let (kind, target) = kind(target, metadata.as_ref(), &info, &sockets);
        let file = metadata.as_ref().map(file_id);
        found.push(Descriptor { number, kind, target, writable: is_writable(&info), file });
    }
    found.sort_by_key(|descriptor| descriptor.number);
    Ok(found)
}

fn kind(target: String, metadata: Option<&Metadata>, info: &str, sockets: &Sockets) -> (ChannelKind, String) {
    if let Some(interface) = info.lines().find_map(|line| line.strip_prefix("iff:")) {
        return (ChannelKind::Tap, interface.trim().to_owned());
    }
    if target.starts_with("socket:[") {
        return sockets.kind(target);
    }
    if target.starts_with("anon_inode:") || target.starts_with("/memfd:") {
        return (ChannelKind::Anonymous, target);
    }
    let kind = match metadata.map(Metadata::file_type) {
        Some(kind) if kind.is_block_device() => ChannelKind::BlockDevice,
        Some(kind) if kind.is_char_device() => ChannelKind::CharacterDevice,
        Some(kind) if kind.is_dir() => ChannelKind::Directory,
        Some(kind) if kind.is_fifo() => ChannelKind::Pipe,
        // What cannot be inspected counts as a file.
        _ => ChannelKind::File,
    };
    (kind, target)
}

/// The flags in `fdinfo` are octal; the lowest two bits say read, write, or both. Without them it may be anything.
fn is_writable(info: &str) -> bool {
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
    flags.and_then(|flags| u32::from_str_radix(flags.trim(), 8).ok()).is_none_or(|flags| flags & 0o3 != 0)
}

/// The Unix sockets in a process's network namespace, by inode.
struct Sockets {
    listening: BTreeSet<String>,
    named: BTreeMap<String, String>,
    unnamed: BTreeSet<String>,
}

impl Sockets {
    /// `Num: RefCount Protocol Flags Type St Inode Path`; the flag 0x10000 is for listeners.
    fn read(process: &Path) -> Result<Self> {
        const LISTENS: u64 = 0x10000;
        let path = process.join("net/unix");
        let table = fs::read(&path).map_err(Error::io("read", &path))?;
        let mut all = Self { listening: BTreeSet::new(), named: BTreeMap::new(), unnamed: BTreeSet::new() };
        for line in String::from_utf8_lossy(&table).lines().skip(1) {
            let mut words = line.split_whitespace();
            let flags = words.nth(3).and_then(|word| u64::from_str_radix(word, 16).ok()).unwrap_or(LISTENS);
            let Some(inode) = words.nth(2) else { continue };
            let inode = format!("socket:[{inode}]");
            if flags & LISTENS != 0 {
                all.listening.insert(inode);
            } else if let Some(name) = words.next() {
                all.named.insert(inode, name.to_owned());
            } else {
                all.unnamed.insert(inode);
            }
        }
        Ok(all)
    }

    fn kind(&self, target: String) -> (ChannelKind, String) {
        if self.listening.contains(&target) {
            (ChannelKind::ListeningSocket, target)
        } else if let Some(name) = self.named.get(&target) {
            (ChannelKind::NamedSocket, name.clone())
        } else if self.unnamed.contains(&target) {
            (ChannelKind::UnnamedSocket, target)
        } else {
            (ChannelKind::NetworkSocket, target)
        }
    }
}
