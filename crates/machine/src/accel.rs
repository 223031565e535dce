//! Whether KVM can be used on this machine, found out by trying.
//!
//! A device node that opens and answers proves little: some kernels offer a /dev/kvm that cannot
//! run an ordinary guest. So KVM counts as working only where the processor has hardware
//! virtualization *and* a tiny guest was seen to run before a deadline.

use std::fs::{File, OpenOptions};
use std::io::{Seek, Write};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use command_fds::{CommandFdExt, FdMapping};
use confine::PATH;
use raw_cpuid::{CpuId, Hypervisor};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::process::QEMU;
use crate::user;

/// What executes the guest's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accel {
    Kvm,
    Tcg,
}

impl std::fmt::Display for Accel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        })
    }
}

impl std::str::FromStr for Accel {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "kvm" => Ok(Self::Kvm),
            "tcg" => Ok(Self::Tcg),
            _ => Err(format!("{s:?} is neither kvm nor tcg")),
        }
    }
}

/// What is used here, and why; the reason is for printing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Verdict {
    pub accel: Accel,
    pub reason: String,
    /// This machine is itself a guest of QEMU's TCG, which needs care under nested KVM.
    pub outer_tcg: bool,
}

/// The verdict in force. KVM found working stays so; where it was missing it is looked for again at each use, because
/// a module may have been loaded meanwhile.
#[derive(Debug)]
pub struct Chooser {
    choice: Option<Accel>,
    verdict: Mutex<Verdict>,
}

impl Chooser {
    /// Probes once. Blocks like [`probe`].
    pub fn new(choice: Option<Accel>) -> Self {
        Self { choice, verdict: Mutex::new(probe(choice)) }
    }

    /// What was found last.
    pub fn last(&self) -> Verdict {
        self.verdict.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What to use now. May block like [`probe`].
    pub fn now(&self) -> Verdict {
        let last = self.last();
        if self.choice.is_some() || last.accel == Accel::Kvm {
            return last;
        }
        let found = probe(None);
        if found != last {
            tracing::info!(accelerator = %found.accel, reason = found.reason, "found");
        }
        *self.verdict.lock().unwrap_or_else(PoisonError::into_inner) = found.clone();
        found
    }
}

const DEADLINE: Duration = Duration::from_secs(10);
/// isa-debug-exit ends QEMU with `(value << 1) | 1`.
const SEEN: i32 = (0x10 << 1) | 1;

/// Decides between KVM and TCG. A `choice` wins over what was found, but the finding is still told.
/// Blocks for up to ten seconds.
pub fn probe(choice: Option<Accel>) -> Verdict {
    let outer_tcg = outer_is_tcg();
    let (accel, reason) = match choice {
        Some(Accel::Tcg) => (Accel::Tcg, "chosen by the caller".to_owned()),
        Some(Accel::Kvm) => match kvm_works(outer_tcg) {
            Ok(found) => (Accel::Kvm, format!("chosen by the caller; {found}")),
            Err(why) => (Accel::Kvm, format!("chosen by the caller although it seems not to work: {why}")),
        },
        None => match kvm_works(outer_tcg) {
            Ok(found) => (Accel::Kvm, found),
            Err(why) => (Accel::Tcg, why),
        },
    };
    Verdict { accel, reason, outer_tcg }
}

/// QEMU's TCG signs itself in CPUID leaf 0x40000000.
fn outer_is_tcg() -> bool {
    CpuId::new().get_hypervisor_info().is_some_and(|info| info.identify() == Hypervisor::QEMU)
}

fn kvm_works(outer_tcg: bool) -> Result<String, String> {
    OpenOptions::new().read(true).write(true).open("/dev/kvm").map_err(|e| {
        // Root gets that too, from the device policy of a service.
        let forbidden = Errno::from_io_error(&e) == Some(Errno::PERM);
        let remedy = if forbidden { "; DeviceAllow= in the agent's unit does not name it" } else { "" };
        format!("/dev/kvm does not open: {e}{remedy}")
    })?;
    if !user::may_use_kvm() {
        return Err("/dev/kvm is open to root only, and VMs do not run as root: chgrp kvm, chmod 660".into());
    }
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").map_err(|e| format!("/proc/cpuinfo cannot be read: {e}"))?;
    let feature =
        virtualization_feature(&cpuinfo).ok_or("/dev/kvm opens, but the processor shows neither vmx nor svm")?;
    let machine = if outer_tcg { "q35,accel=kvm,kernel-irqchip=off" } else { "q35,accel=kvm" };
    run_tiny_guest(machine, DEADLINE)?;
    Ok(format!("/dev/kvm opens, the processor has {feature}, and a guest ran"))
}

fn virtualization_feature(cpuinfo: &str) -> Option<&'static str> {
    let flags = cpuinfo.lines().find_map(|line| line.strip_prefix("flags"))?.split_whitespace();
    let mut found = None;
    for flag in flags {
        match flag {
            "vmx" => found = Some("vmx"),
            "svm" => found = Some("svm"),
            _ => {}
        }
    }
    found
}

/// A 64 KiB BIOS whose reset vector ends QEMU through isa-debug-exit.
fn tiny_bios() -> Vec<u8> {
    const CODE: [u8; 7] = [
        0xb0, 0x10, // mov al, 0x10
        0xe6, 0xf4, // out 0xf4, al
        0xf4, // hlt
        0xeb, 0xfd, // jmp to the hlt
    ];
    let mut image = vec![0xf4; 64 * 1024];
    let reset = image.len() - 16;
    image[reset..reset + CODE.len()].copy_from_slice(&CODE);
    image
}

fn run_tiny_guest(machine: &str, deadline: Duration) -> Result<(), String> {
    let bios = memory_file(&tiny_bios()).map_err(|e| format!("no memory file: {e}"))?;
    let mut command = Command::new(QEMU);
    command
        .env_clear()
        .env("PATH", PATH)
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-m", "16"])
        .args(["-machine", machine, "-bios", "/dev/fd/3"])
        .args(["-device", "isa-debug-exit,iobase=0xf4,iosize=0x4"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command.fd_mappings(vec![FdMapping { parent_fd: bios.into(), child_fd: 3 }]).map_err(|e| e.to_string())?;
    let mut child = command.spawn().map_err(|e| format!("{QEMU} does not start: {e}"))?;
    let end = Instant::now() + deadline;
    loop {
        match child.try_wait().map_err(|e| e.to_string())? {
            Some(status) if status.code() == Some(SEEN) => return Ok(()),
            Some(status) => return Err(format!("the trial guest ended wrongly ({status})")),
            None if Instant::now() < end => std::thread::sleep(Duration::from_millis(20)),
            None => {
                // a guest that hangs is the finding; nothing more to do about a failing kill
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("the trial guest hung for {} s", deadline.as_secs()));
            }
        }
    }
}

fn memory_file(bytes: &[u8]) -> std::io::Result<File> {
    let fd = rustix::fs::memfd_create("drydock-probe", rustix::fs::MemfdFlags::CLOEXEC)?;
    let mut file = File::from(fd);
    file.write_all(bytes)?;
    file.rewind()?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_trial_guest_runs_under_tcg() {
        run_tiny_guest("q35,accel=tcg", Duration::from_secs(60)).unwrap();
    }

    #[test]
    fn a_guest_that_never_ends_is_given_up() {
        // without a BIOS that ends, QEMU runs on; `none` has no processor at work
        let error = run_tiny_guest("none,accel=tcg", Duration::from_millis(1)).unwrap_err();
        assert!(error.contains("hung") || error.contains("wrongly"), "{error}");
    }

    #[test]
    fn a_choice_wins_and_says_so() {
        let verdict = probe(Some(Accel::Tcg));
        assert_eq!(verdict.accel, Accel::Tcg);
        assert!(verdict.reason.contains("chosen"));
        assert!(!probe(None).reason.is_empty());
    }

    #[test]
    fn cpu_flags_are_whole_words() {
        assert_eq!(virtualization_feature("flags : fpu vmx de"), Some("vmx"));
        assert_eq!(virtualization_feature("flags : fpu svm_lock de"), None);
        assert_eq!(virtualization_feature(""), None);
    }
}
