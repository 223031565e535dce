//! One process as the kernel sees it, in /proc.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, Metadata};
use std::io::Read;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use aws_lc_rs::digest::{Context, SHA256};
use serde::{Deserialize, Serialize};

use crate::{Error, Result};
use confine::view;

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProcessProof {
    pub pid: u32,
    pub program: PathBuf,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub program_sha256: Option<String>,
    /// All four user ids: real, effective, saved, of the file system.
    pub uids: Vec<u32>,
    pub gids: Vec<u32>,
    pub groups: Vec<u32>,
    /// The weakest of all threads: 0 none, 1 strict, 2 filter.
    pub seccomp: u32,
    /// Filters beyond those that the agent has itself, and so its children, for example from its systemd unit.
    pub own_seccomp_filters: u32,
    /// Of every thread.
    pub no_new_privs: bool,
    /// Of all threads together.
    pub capabilities: Capabilities,
    /// The larger of soft and hard limit in bytes; None is without limit.
    pub core_limit: Option<u64>,
    /// What of its memory a core dump would hold; see core(5).
    pub core_filter: u64,
    /// Bytes of it that are in swap now.
    pub swapped: u64,
    /// Whether it has a mount namespace of its own, beside the agent's.
    pub private_view: bool,
    /// Folders that should be empty in its view and are not.
    pub sees: Vec<PathBuf>,
    /// Other processes with its user id.
    pub same_user: Vec<u32>,
    pub descriptors: Vec<Descriptor>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Capabilities {
    pub inheritable: u64,
    pub permitted: u64,
    pub effective: u64,
    pub bounding: u64,
    pub ambient: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Descriptor {
    pub number: u32,
    pub kind: Kind,
    /// A path, an interface, or the kernel's word for it.
    pub target: String,
    pub writable: bool,
    #[serde(skip)]
    pub(crate) file: Option<FileId>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    File,
    BlockDevice,
    CharacterDevice,
    Directory,
    Pipe,
    /// A port on a virtual switch; `target` is its interface.
    Tap,
    /// A connected socket without a name in any file system.
    UnnamedSocket,
    NamedSocket,
    ListeningSocket,
    /// Of a network, or of a family that is not known here.
    NetworkSocket,
    /// Memory and events of the kernel's: memfd, eventfd, epoll, KVM.
    Anonymous,
}

/// Device and inode.
pub(crate) type FileId = (u64, u64);

pub(crate) fn file_id(metadata: &Metadata) -> FileId {
    (metadata.dev(), metadata.ino())
}

impl ProcessProof {
    pub(crate) fn of(pid: u32, hidden: &[PathBuf], digest: bool) -> Result<Self> {
        let process = Path::new("/proc").join(pid.to_string());
        let exe = process.join("exe");
        let status = Status::read(&process.join("status"))?;
        let mut threads = Vec::new();
        for thread in entries(&process.join("task"))? {
            // One that ended meanwhile exposes nothing.
            if let Ok(status) = Status::read(&thread.join("status")) {
                threads.push(status);
            }
        }
        if threads.is_empty() {
            return Err(Error::Ended { reason: format!("process {pid} has no threads") });
        }
        let bits = |name| threads.iter().map(|t| t.hex(name)).fold(0, |all, one| all | one);
        let uids = status.numbers("Uid");
        let agent = Status::read(Path::new("/proc/self/status"))?;
        Ok(Self {
            pid,
            program: fs::read_link(&exe).map_err(Error::io("read", &exe))?,
            program_sha256: if digest { Some(sha256(&exe)?) } else { None },
            gids: status.numbers("Gid"),
            groups: status.numbers("Groups"),
            seccomp: threads.iter().map(|t| t.number("Seccomp")).min().unwrap_or_default(),
            own_seccomp_filters: {
                let filters = threads.iter().map(|t| t.number("Seccomp_filters")).min().unwrap_or_default();
                filters.saturating_sub(agent.number("Seccomp_filters"))
            },
            no_new_privs: threads.iter().all(|t| t.number("NoNewPrivs") == 1),
            capabilities: Capabilities {
                inheritable: bits("CapInh"),
                permitted: bits("CapPrm"),
                effective: bits("CapEff"),
                bounding: bits("CapBnd"),
                ambient: bits("CapAmb"),
            },
            core_limit: core_limit(&process.join("limits"))?,
            core_filter: core_filter(&process.join("coredump_filter"))?,
            swapped: u64::from(status.number("VmSwap")) << 10,
            private_view: view::is_private(&process),
            sees: hidden.iter().filter(|folder| !is_empty(&process, folder)).cloned().collect(),
            same_user: same_user(pid, &uids)?,
            descriptors: descriptors(&process)?,
            uids,
        })
    }
}

/// `Name:\tvalue` lines of a status file.
struct Status(BTreeMap<String, String>);

impl Status {
    fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).map_err(Error::io("read", path))?;
        let pair = |line: &str| line.split_once(':').map(|(name, value)| (name.to_owned(), value.trim().to_owned()));
        Ok(Self(text.lines().filter_map(pair).collect()))
    }

    fn field(&self, name: &str) -> &str {
        self.0.get(name).map_or("", String::as_str)
    }

    fn numbers(&self, name: &str) -> Vec<u32> {
        self.field(name).split_whitespace().filter_map(|word| word.parse().ok()).collect()
    }

    fn number(&self, name: &str) -> u32 {
        self.numbers(name).first().copied().unwrap_or_default()
    }

    /// What cannot be read counts as everything.
    fn hex(&self, name: &str) -> u64 {
        u64::from_str_radix(self.field(name), 16).unwrap_or(u64::MAX)
    }
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).map_err(Error::io("list", folder))?;
    Ok(entries.flatten().map(|entry| entry.path()).collect())
}

fn number_of(path: &Path) -> Option<u32> {
    path.file_name()?.to_str()?.parse().ok()
}

fn sha256(path: &Path) -> Result<String> {
    let mut file = File::open(path).map_err(Error::io("open", path))?;
    let mut context = Context::new(&SHA256);
    let mut buffer = [0; 64 << 10];
    loop {
        match file.read(&mut buffer).map_err(Error::io("read", path))? {
            0 => break,
            n => context.update(&buffer[..n]),
        }
    }
    Ok(context.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect())
}

fn core_limit(path: &Path) -> Result<Option<u64>> {
    let text = fs::read_to_string(path).map_err(Error::io("read", path))?;
    let line = text.lines().find_map(|line| line.strip_prefix("Max core file size")).unwrap_or_default();
    let limits: Vec<Option<u64>> = line.split_whitespace().take(2).map(|word| word.parse().ok()).collect();
    Ok(limits.into_iter().collect::<Option<Vec<u64>>>().and_then(|limits| limits.into_iter().max()))
}

/// What cannot be read counts as everything.
fn core_filter(path: &Path) -> Result<u64> {
    let text = fs::read_to_string(path).map_err(Error::io("read", path))?;
    Ok(u64::from_str_radix(text.trim(), 16).unwrap_or(u64::MAX))
}

/// Whether a folder has nothing in it, or is not there, as the process sees it.
fn is_empty(process: &Path, folder: &Path) -> bool {
    let Ok(below) = folder.strip_prefix("/") else { return false };
    match fs::read_dir(process.join("root").join(below)) {
        Ok(mut entries) => entries.next().is_none(),
        Err(error) => error.kind() == std::io::ErrorKind::NotFound,
    }
}

fn same_user(pid: u32, uids: &[u32]) -> Result<Vec<u32>> {
    let mut found = Vec::new();
    for process in entries(Path::new("/proc"))? {
        let Some(other) = number_of(&process).filter(|other| *other != pid) else { continue };
        let Ok(status) = Status::read(&process.join("status")) else { continue };
        if status.numbers("Uid").iter().any(|uid| uids.contains(uid)) {
            found.push(other);
        }
    }
    Ok(found)
}

fn descriptors(process: &Path) -> Result<Vec<Descriptor>> {
    let sockets = Sockets::read(process)?;
    let mut found = Vec::new();
    for link in entries(&process.join("fd"))? {
        // One that was closed meanwhile is not open.
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

fn kind(target: String, metadata: Option<&Metadata>, info: &str, sockets: &Sockets) -> (Kind, String) {
    if let Some(interface) = info.lines().find_map(|line| line.strip_prefix("iff:")) {
        return (Kind::Tap, interface.trim().to_owned());
    }
    if target.starts_with("socket:[") {
        return sockets.kind(target);
    }
    if target.starts_with("anon_inode:") || target.starts_with("/memfd:") {
        return (Kind::Anonymous, target);
    }
    let kind = match metadata.map(Metadata::file_type) {
        Some(kind) if kind.is_block_device() => Kind::BlockDevice,
        Some(kind) if kind.is_char_device() => Kind::CharacterDevice,
        Some(kind) if kind.is_dir() => Kind::Directory,
        Some(kind) if kind.is_fifo() => Kind::Pipe,
        // What cannot be looked at counts as a file.
        _ => Kind::File,
    };
    (kind, target)
}

/// The flags in `fdinfo` are octal; the lowest two bits say read, write, or both. Without them it may be anything.
fn is_writable(info: &str) -> bool {
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
    flags.and_then(|flags| u32::from_str_radix(flags.trim(), 8).ok()).is_none_or(|flags| flags & 0o3 != 0)
}

/// Unix sockets of a process's network, by inode.
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

    fn kind(&self, target: String) -> (Kind, String) {
        if self.listening.contains(&target) {
            (Kind::ListeningSocket, target)
        } else if let Some(name) = self.named.get(&target) {
            (Kind::NamedSocket, name.clone())
        } else if self.unnamed.contains(&target) {
            (Kind::UnnamedSocket, target)
        } else {
            (Kind::NetworkSocket, target)
        }
    }
}
