//! Whether KVM can be used on this machine, found out by trying.
//!
//! A device node that opens and answers proves little: some kernels have a /dev/kvm that cannot run an ordinary guest.
//! KVM counts as working only if the processor has hardware virtualization *and* a tiny guest ran within a deadline.

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
    /// The processor, through the kernel.
    Kvm,
    /// QEMU's own emulation.
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

/// Which accelerator is used on this machine, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Verdict {
    /// What VMs run under.
    pub accel: Accel,
    /// For people.
    pub reason: String,
    /// This machine is itself a guest of QEMU's TCG, which restricts nested KVM.
    pub outer_tcg: bool,
}

/// Keeps the current verdict. KVM that was found to work is not probed again; missing KVM is probed at each use, because
/// a module may have been loaded in the meantime.
#[derive(Debug)]
pub struct Chooser {
    choice: Option<Accel>,
    verdict: Mutex<Verdict>,
}

impl Chooser {
    /// Probes once. Blocks like [`probe`]. `choice` is the accelerator that the caller insists on.
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
            tracing::info!(accelerator = %found.accel, reason = found.reason, "the accelerator changed");
        }
        *self.verdict.lock().unwrap_or_else(PoisonError::into_inner) = found.clone();
        found
    }
}

const DEADLINE: Duration = Duration::from_secs(10);
/// isa-debug-exit ends QEMU with `(value << 1) | 1`.
const SEEN: i32 = (0x10 << 1) | 1;

/// Decides between KVM and TCG. A `choice` wins over the finding, but the reason still states it.
/// Blocks for up to ten seconds.
pub fn probe(choice: Option<Accel>) -> Verdict {
    let outer_tcg = outer_is_tcg();
    let (accel, reason) = match choice {
        Some(Accel::Tcg) => (Accel::Tcg, "chosen by the caller".to_owned()),
        Some(Accel::Kvm) => match kvm_works(outer_tcg) {
            Ok(found) => (Accel::Kvm, format!("chosen by the caller; {found}")),
            Err(why) => (Accel::Kvm, format!("chosen by the caller although it does not seem to work: {why}")),
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
        // Even root gets this error, from the device policy of a systemd service.
        let forbidden = Errno::from_io_error(&e) == Some(Errno::PERM);
        let remedy = if forbidden { "; DeviceAllow= in the agent's unit does not list it" } else { "" };
        format!("cannot open /dev/kvm: {e}{remedy}")
    })?;
    if !user::may_use_kvm() {
        return Err("only root may open /dev/kvm, and VMs do not run as root: chgrp kvm, chmod 660".into());
    }
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").map_err(|e| format!("cannot read /proc/cpuinfo: {e}"))?;
    let feature =
        virtualization_feature(&cpuinfo).ok_or("/dev/kvm opens, but the processor has neither vmx nor svm")?;
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
    let bios = memory_file(&tiny_bios()).map_err(|e| format!("cannot make a memory file: {e}"))?;
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
    let mut child = command.spawn().map_err(|e| format!("cannot start {QEMU}: {e}"))?;
    let end = Instant::now() + deadline;
    loop {
        match child.try_wait().map_err(|e| e.to_string())? {
            Some(status) if status.code() == Some(SEEN) => return Ok(()),
            Some(status) => return Err(format!("the trial guest failed ({status})")),
            None if Instant::now() < end => std::thread::sleep(Duration::from_millis(20)),
            None => {
                // That the guest hangs is the finding; a kill that fails changes nothing about it.
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
        // Without a BIOS that ends it, QEMU keeps running; the machine `none` has no processor.
        let error = run_tiny_guest("none,accel=tcg", Duration::from_millis(1)).unwrap_err();
        assert!(error.contains("hung") || error.contains("failed"), "{error}");
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
