//! One process as the kernel sees it, in /proc.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use aws_lc_rs::digest::{Context, SHA256};
use confine::view;
use serde::{Deserialize, Serialize};

use super::descriptors::{Descriptor, descriptors};
use super::procfs::{Status, entries, number_of};
use crate::error::{Error, Result};

/// What a process exposes, and how it is confined.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProcessExposure {
    /// Its process id.
    pub pid: u32,
    /// What it executes.
    pub program: PathBuf,
    /// The program's digest in hex, if it was requested.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub program_sha256: Option<String>,
    /// All four user ids: real, effective, saved, file system.
    pub uids: Vec<u32>,
    /// All four group ids.
    pub gids: Vec<u32>,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// The weakest seccomp mode of all threads: 0 none, 1 strict, 2 filter.
    pub seccomp: u32,
    /// Filters beyond those that the agent, and so each of its children, already has, for example from its systemd unit.
    pub own_seccomp_filters: u32,
    /// Set on every thread.
    pub no_new_privs: bool,
    /// Of all threads together.
    pub capabilities: Capabilities,
    /// The larger of soft and hard limit in bytes; None: unlimited.
    pub core_limit: Option<u64>,
    /// Which parts of its memory a core dump would hold; see core(5).
    pub core_filter: u64,
    /// Bytes of its memory that are in swap now.
    pub swapped: u64,
    /// Whether it has a mount namespace of its own, other than the agent's.
    pub private_view: bool,
    /// Directories that should be empty in its mount namespace and are not.
    pub sees: Vec<PathBuf>,
    /// Other processes with its user id.
    pub same_user: Vec<u32>,
    /// Its open descriptors.
    pub descriptors: Vec<Descriptor>,
}

/// The five sets of capabilities(7), as masks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Capabilities {
    /// Kept across execve(2), if the program has them too.
    pub inheritable: u64,
    /// What can be made effective.
    pub permitted: u64,
    /// What the kernel checks.
    pub effective: u64,
    /// What can ever be gained.
    pub bounding: u64,
    /// Kept across execve(2) of an unprivileged program.
    pub ambient: u64,
}

impl ProcessExposure {
    pub(crate) fn of(pid: u32, hidden: &[PathBuf], digest: bool) -> Result<Self> {
        let process = Path::new("/proc").join(pid.to_string());
        let exe = process.join("exe");
        let status = Status::read(&process.join("status"))?;
        let mut threads = Vec::new();
        for thread in entries(&process.join("task"))? {
            // One that has ended in the meantime exposes nothing.
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
            sees: hidden.iter().filter(|directory| !is_empty(&process, directory)).cloned().collect(),
            same_user: same_user(pid, &uids)?,
            descriptors: descriptors(&process)?,
            uids,
        })
    }
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

/// A filter that cannot be read counts as everything.
fn core_filter(path: &Path) -> Result<u64> {
    let text = fs::read_to_string(path).map_err(Error::io("read", path))?;
    Ok(u64::from_str_radix(text.trim(), 16).unwrap_or(u64::MAX))
}

/// Whether a directory is empty, or missing, in the process's mount namespace.
fn is_empty(process: &Path, directory: &Path) -> bool {
    let Ok(below) = directory.strip_prefix("/") else { return false };
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
