//! QEMU processes that outlived the agent which started them.

use std::path::Path;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use uuid::Uuid;

use super::file_id::file_id;
use crate::error::{Error, Result};
use crate::process::QEMU;

const DEADLINE: Duration = Duration::from_secs(10);

/// The process id of a QEMU that runs the VM `id`, whichever program started it. Anyone can start a process that looks
/// like one: good enough to refuse a start, not to trust a VM.
pub fn find_qemu(id: Uuid) -> Option<u32> {
    find(id, |_| true)
}

/// The same for a QEMU that has these UEFI variables open, and so is not another agent's on the same machine.
pub fn find_qemu_with(id: Uuid, vars: &Path) -> Option<u32> {
    let vars = file_id(&std::fs::metadata(vars).ok()?);
    find(id, |pid| {
        let open = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        open.filter_map(|descriptor| std::fs::metadata(descriptor.path()).ok()).any(|file| file_id(&file) == vars)
    })
}

fn find(id: Uuid, is_wanted: impl Fn(u32) -> bool) -> Option<u32> {
    let id = id.to_string();
    std::fs::read_dir("/proc")
        .ok()?
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .find(|pid| uuid_of(*pid).is_some_and(|found| found == id) && is_wanted(*pid))
}

/// Cuts the power of such a VM. Its swtpm exits by itself when its control channel closes.
///
/// # Errors
/// When the process cannot be signalled, or does not end.
pub async fn end_orphan(pid: u32) -> Result<()> {
    let Some(raw) = i32::try_from(pid).ok().and_then(Pid::from_raw) else {
        return Ok(());
    };
    let Ok(handle) = pidfd_open(raw, PidfdFlags::empty()) else {
        return Ok(());
    };
    // The handle pins the process: the one that is checked now is the one that gets the signal.
    if uuid_of(pid).is_none() {
        return Ok(());
    }
    pidfd_send_signal(&handle, Signal::KILL).map_err(Error::system("end a QEMU process"))?;
    let end = tokio::time::Instant::now() + DEADLINE;
    while uuid_of(pid).is_some() {
        if tokio::time::Instant::now() >= end {
            return Err(Error::Deadline { what: "ending a QEMU process", seconds: DEADLINE.as_secs() });
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// The `-uuid` of a process that is QEMU. A zombie has no command line and so no VM.
fn uuid_of(pid: u32) -> Option<String> {
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let mut words = line.split(|b| *b == 0);
    let program = std::str::from_utf8(words.next()?).ok()?;
    if program.rsplit('/').next() != Some(QEMU) {
        return None;
    }
    words.find(|w| *w == b"-uuid")?;
    String::from_utf8(words.next()?.to_vec()).ok()
}
