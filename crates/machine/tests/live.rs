//! A real VM: QEMU, swtpm and OVMF with Secure Boot, under TCG, with an empty disk.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::{Path, PathBuf};
use std::time::Duration;

use common::{Sandbox, contains, verdict};
use image::{Format, Source};
use key_protector::TransportKey;
use machine::accel::Accel;
use machine::record::SealedRecord;
use machine::{
    ConsoleProfile, Error, Policy, RecordField, RunningVm, StartOptions, VmSpec, find_qemu, find_qemu_with,
    slot as state,
};
use tokio::io::AsyncReadExt;

struct Vm {
    sandbox: Sandbox,
    spec: VmSpec,
    key: TransportKey,
    record: SealedRecord,
}

impl Vm {
    async fn new(policy: Policy) -> Self {
        Self::with(policy, ConsoleProfile::Server2016).await
    }

    async fn with(policy: Policy, console_profile: ConsoleProfile) -> Self {
        let sandbox = Sandbox::new();
        let spec = VmSpec { console_profile, ..sandbox.spec(policy) };
        let key = TransportKey::generate();
        let record = SealedRecord::new(&spec, 1);
        let digest = "c".repeat(64);
        state::create(&sandbox.path("slot"), &key, &record, &digest, &spec.firmware).await.unwrap();
        Self { sandbox, spec, key, record }
    }

    async fn start(&self, console: bool) -> machine::Result<RunningVm> {
        let slot = self.sandbox.path("slot");
        RunningVm::start(&self.spec, &slot, &self.key, &self.record, self.options(console)).await
    }

    fn options(&self, console: bool) -> StartOptions {
        StartOptions { accel: verdict(Accel::Tcg), log_dir: self.sandbox.path("log"), console, hidden: Vec::new() }
    }

    /// Processes that work in this VM's vTPM directory.
    fn swtpm(&self) -> Vec<PathBuf> {
        let vtpm = self.sandbox.path("slot").join("vtpm");
        std::fs::read_dir("/proc")
            .unwrap()
            .flatten()
            .map(|e| e.path())
            .filter(|p| std::fs::read_link(p.join("cwd")).is_ok_and(|cwd| cwd == vtpm))
            .collect()
    }

    fn nothing_runs(&self) {
        assert_eq!(find_qemu(self.spec.id), None);
        assert_eq!(self.swtpm(), Vec::<PathBuf>::new());
    }
}

#[tokio::test]
async fn a_shielded_vm_runs_takes_a_disk_gives_it_back_and_ends() {
    let vm = Vm::new(Policy::Shielded).await;
    let mut running = vm.start(false).await.unwrap();
    assert!(running.is_alive());
    assert!(running.take_console().is_none());
    assert_eq!(find_qemu(vm.spec.id), Some(running.pid()));
    let swtpm = vm.swtpm();
    assert_eq!(swtpm.len(), 1);
    no_secret_in(&vm, &Path::new("/proc").join(running.pid().to_string()));
    no_secret_in(&vm, &swtpm[0]);

    let disk = vm.sandbox.disk("garage");
    running.attach_disk(&disk).await.unwrap();
    assert!(running.has_disk("garage"));
    let again = running.attach_disk(&disk).await.unwrap_err();
    assert!(matches!(again, Error::DiskAttachment { .. }));
    running.detach_disk("garage").await.unwrap();
    assert!(!running.has_disk("garage"));
    // The image is closed: another QEMU may open it.
    common::qemu_img(&["check", "-q", disk.source.path().to_str().unwrap()]);
    running.attach_disk(&disk).await.unwrap();
    running.detach_disk("garage").await.unwrap();

    let own = running.detach_disk("root").await.unwrap_err();
    assert!(own.to_string().contains("part of the VM"));
    running.kill().await;
    assert!(!running.is_alive());
    assert!(!running.wait().await.clean);
    assert!(matches!(running.attach_disk(&disk).await, Err(Error::QmpClosed)));
    vm.nothing_runs();
}

/// Neither the transport key nor a key derived from it is in the arguments or the environment, and the process has no
/// rights.
fn no_secret_in(vm: &Vm, process: &Path) {
    for file in ["cmdline", "environ"] {
        let bytes = std::fs::read(process.join(file)).unwrap();
        for label in [state::VARS_LABEL, "drydock/vtpm/v1"] {
            let key = vm.key.derive(label);
            assert!(!contains(&bytes, key.hex().as_bytes()));
            assert!(!contains(&bytes, key.expose()));
        }
        assert!(!contains(&bytes, vm.key.expose()));
    }
    let status = std::fs::read_to_string(process.join("status")).unwrap();
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().to_owned()
    };
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        assert_eq!(field(set), "0000000000000000", "{set}");
    }
    assert_eq!(field("NoNewPrivs:"), "1");
    assert_eq!(field("Seccomp:"), "2", "a filter is active");
    let limits = std::fs::read_to_string(process.join("limits")).unwrap();
    let core = limits.lines().find(|l| l.contains("core file")).unwrap();
    assert_eq!(core.split_whitespace().nth(4), Some("1"), "{core}");
}

#[tokio::test]
async fn the_firmware_speaks_on_a_console_where_there_is_one() {
    let vm = Vm::new(Policy::EncryptionSupported).await;
    let mut running = vm.start(true).await.unwrap();
    let mut console = running.take_console().unwrap();
    let mut said = Vec::new();
    let heard = async {
        let mut buffer = [0; 4096];
        while !contains(&said, b"BdsDxe") {
            let n = console.read(&mut buffer).await.unwrap();
            assert!(n > 0);
            said.extend_from_slice(&buffer[..n]);
        }
    };
    tokio::time::timeout(Duration::from_secs(180), heard).await.unwrap();
    drop(running);
    for _ in 0..200 {
        if find_qemu(vm.spec.id).is_none() && vm.swtpm().is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    vm.nothing_runs();
}

#[tokio::test]
async fn sessions_come_and_go_one_at_a_time() {
    let vm = Vm::with(Policy::Shielded, ConsoleProfile::Server2019).await;
    let running = vm.start(false).await.unwrap();
    let exposed = async || {
        let report = running.exposure().await.unwrap();
        assert!(report.holds.iter().all(|s| s.holds || !s.required), "{:?}", report.holds);
        let mut channels: Vec<_> = report.chardevs.into_iter().map(|c| c.label).collect();
        channels.sort();
        let ports: Vec<_> = report.devices.into_iter().filter(|d| d.driver == "virtserialport").map(|d| d.id).collect();
        (channels.join(" "), ports.join(" "))
    };
    assert_eq!(exposed().await, ("qmp tpm0".into(), String::new()));
    let mut first = running.open_session().await.unwrap();
    assert_eq!(exposed().await, ("qmp session0 tpm0".into(), "session-port1".into()));
    let mut second = running.open_session().await.unwrap();
    assert_eq!(first.stream.read(&mut [0]).await.unwrap(), 0, "the first one ended");
    assert_eq!(exposed().await, ("qmp session0 tpm0".into(), "session-port2".into()));
    running.close_session().await.unwrap();
    assert_eq!(second.stream.read(&mut [0]).await.unwrap(), 0);
    assert_eq!(exposed().await, ("qmp tpm0".into(), String::new()));
    running.close_session().await.unwrap();
    // More than there are port numbers; the host's end is closed before the next session.
    for n in 0..32 {
        drop(running.open_session().await.unwrap());
        assert_eq!(exposed().await.1, format!("session-port{}", (n + 2) % 30 + 1));
    }
    running.kill().await;
    vm.nothing_runs();

    let vm = Vm::new(Policy::Shielded).await;
    let running = vm.start(false).await.unwrap();
    assert!(matches!(running.open_session().await, Err(Error::Policy { .. })));
    assert!(!running.exposure().await.unwrap().devices.iter().any(|d| d.driver.contains("serial")));
    running.kill().await;
}

#[tokio::test]
async fn without_its_vtpm_a_vm_does_not_go_on() {
    let vm = Vm::new(Policy::Shielded).await;
    let running = vm.start(false).await.unwrap();
    let swtpm = vm.swtpm();
    let pid: i32 = swtpm[0].file_name().unwrap().to_str().unwrap().parse().unwrap();
    rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), rustix::process::Signal::KILL).unwrap();
    let exit = tokio::time::timeout(Duration::from_secs(30), running.wait()).await.unwrap();
    assert!(!exit.clean);
    assert!(exit.reason.contains("swtpm"), "{}", exit.reason);
    vm.nothing_runs();
}

#[tokio::test]
async fn an_orphan_is_found_and_ended() {
    let vm = Vm::new(Policy::Shielded).await;
    let running = vm.start(false).await.unwrap();
    let pid = find_qemu(vm.spec.id).unwrap();
    machine::end_orphan(pid).await.unwrap();
    running.wait().await;
    vm.nothing_runs();
    machine::end_orphan(pid).await.unwrap();
}

/// Started without its guest, a VM is confined like any other; while another host's QEMU writes its disks it exposes them,
/// and does not resume.
#[tokio::test]
async fn a_vm_that_comes_does_not_go_on_while_its_disks_are_served() {
    let vm = Vm::new(Policy::Shielded).await;
    let slot = vm.sandbox.path("incoming");
    state::prepare(&slot, &vm.key, &vm.record, &"c".repeat(64), &vm.spec.firmware).await.unwrap();
    let running = RunningVm::start_incoming(&vm.spec, &slot, &vm.key, &vm.record, vm.options(false)).await.unwrap();
    let broken = async || {
        let holds = running.exposure().await.unwrap().holds;
        holds.iter().filter(|s| s.required && !s.holds).map(ToString::to_string).collect::<Vec<_>>().join("; ")
    };
    assert_eq!(broken().await, "");
    let directory = tempfile::tempdir().unwrap();
    running.receive_disks(&directory.path().join("nbd")).await.unwrap();
    let told = broken().await;
    assert!(told.contains("no listening socket") && told.contains("no disk served to others"), "{told}");
    let error = running.resume().await.unwrap_err();
    assert!(matches!(error, Error::Exposed { .. }), "{error}");
    running.stop_serving().await;
    assert_eq!(broken().await, "");

    assert_eq!(find_qemu_with(vm.spec.id, &slot.join(state::VARS)), Some(running.pid()));
    assert_eq!(find_qemu_with(vm.spec.id, &vm.sandbox.path("slot").join(state::VARS)), None);
    running.kill().await;
    assert!(matches!(state::settle(&slot), Err(Error::NoTpmState { .. })), "a vTPM came from nowhere");
    vm.nothing_runs();
}

#[tokio::test]
async fn what_was_not_sealed_does_not_start() {
    let mut vm = Vm::new(Policy::Shielded).await;
    vm.spec.policy = Policy::EncryptionSupported;
    let error = vm.start(true).await.err().unwrap();
    assert!(matches!(error, Error::RecordMismatch { field: RecordField::Policy, .. }));
    vm.spec.policy = Policy::Shielded;
    vm.spec.console_profile = ConsoleProfile::Server2019;
    let error = vm.start(false).await.err().unwrap();
    assert!(matches!(error, Error::RecordMismatch { field: RecordField::ConsoleProfile, .. }));
    vm.spec.console_profile = ConsoleProfile::Server2016;
    let error = vm.start(true).await.err().unwrap();
    assert!(matches!(error, Error::Policy { .. }));
    let disk = vm.spec.disks[0].clone();
    vm.spec.disks[0] = vm.sandbox.disk("other");
    let error = vm.start(false).await.err().unwrap();
    assert!(matches!(error, Error::RecordMismatch { field: RecordField::Disks, .. }));
    vm.spec.disks[0] = disk;

    vm.key = TransportKey::generate();
    let error = vm.start(false).await.err().unwrap();
    assert!(matches!(error, Error::Ended { .. }), "{error}");
    vm.nothing_runs();
}

#[tokio::test]
async fn an_image_that_names_another_file_is_refused() {
    let mut vm = Vm::new(Policy::Shielded).await;
    let overlay = vm.sandbox.path("overlay.qcow2");
    let below = vm.spec.disks[0].source.path().to_owned();
    common::qemu_img(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        "-F",
        "qcow2",
        "-b",
        below.to_str().unwrap(),
        overlay.to_str().unwrap(),
    ]);
    vm.spec.disks[0].source = Source::new(overlay, Format::Qcow2);
    let error = vm.start(false).await.err().unwrap();
    assert!(matches!(error, Error::DiskImage { .. }), "{error}");
    vm.spec.disks[0].source = Source::new(below, Format::Raw);
    let running = vm.start(false).await.unwrap();
    let exit = running.shutdown(Duration::from_millis(1)).await;
    assert!(matches!(exit, Err(Error::Deadline { .. })));
    assert!(running.is_alive());
    running.kill().await;
    vm.nothing_runs();
}
