//! Differences are planted in real processes, and must be reported.
#![allow(clippy::unwrap_used)]

use std::ffi::OsString;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream as StdStream};
use std::path::PathBuf;

use tokio::net::UnixStream;

use super::{ExposureReport, Statement, Subject, inspect};
use crate::engine::qmp::Qmp;
use crate::error::Error;
use crate::process::{Process, Program, QEMU, Rights};
use crate::spec::{ConsoleProfile, Policy};
use crate::user::Pair;

const QMP: i32 = 3;
const EXTRA: i32 = 4;
const SANDBOX: &str = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";

/// A QEMU without firmware or guest; swtpm's part is played by the same process.
struct Trial {
    qemu: Process,
    qmp: Qmp,
}

impl Trial {
    async fn start(more: &[&str], extra: Option<OwnedFd>, rights: Option<Rights<'_>>) -> Self {
        let (ours, theirs) = StdStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let mut args: Vec<OsString> =
            ["-M", "q35", "-nodefaults", "-no-user-config", "-display", "none", "-S"].map(Into::into).to_vec();
        args.extend(["-chardev", "socket,id=qmp,fd=3", "-mon", "chardev=qmp,mode=control"].map(OsString::from));
        args.extend(more.iter().map(OsString::from));
        let mut fds: Vec<(OwnedFd, i32)> = vec![(theirs.into(), QMP)];
        fds.extend(extra.map(|descriptor| (descriptor, EXTRA)));
        let qemu = Program { name: QEMU, rights, args, fds, log: None }.spawn().unwrap();
        let qmp = Qmp::connect(UnixStream::from_std(ours).unwrap()).await.unwrap();
        Self { qemu, qmp }
    }

    async fn report(&self) -> ExposureReport {
        self.report_with(ConsoleProfile::Server2016).await
    }

    async fn report_with(&self, console_profile: ConsoleProfile) -> ExposureReport {
        let pid = self.qemu.child.id().unwrap();
        let subject = Subject {
            qemu: pid,
            swtpm: pid,
            policy: Policy::Shielded,
            console: false,
            console_profile,
            written: Vec::new(),
            hidden: confine::view::HIDDEN.map(PathBuf::from).to_vec(),
        };
        inspect(&self.qmp, &subject, true).await.unwrap()
    }

    /// The required statements that do not hold, without those that two roles of one process break.
    async fn broken(&self) -> Vec<String> {
        self.broken_with(ConsoleProfile::Server2016).await
    }

    async fn broken_with(&self, console_profile: ConsoleProfile) -> Vec<String> {
        let report = self.report_with(console_profile).await;
        let broken = |s: &&Statement| s.required && !s.holds && s.subject != "swtpm";
        report.holds.iter().filter(broken).map(ToString::to_string).collect()
    }
}

fn confined() -> Rights<'static> {
    Rights { user: Pair::of(uuid::Uuid::new_v4()).unwrap().qemu, kvm: false, hidden: &[], directory: None }
}

#[tokio::test]
async fn what_is_as_it_should_be_is_said_to_be_so() {
    let trial = Trial::start(&["-sandbox", SANDBOX], None, Some(confined())).await;
    assert_eq!(trial.broken().await, Vec::<String>::new());
    let report = trial.report().await;
    report.require().unwrap();
    assert_eq!(report.qemu.program_sha256.map(|digest| digest.len()), Some(64));
    assert_eq!(report.accelerator, "tcg");
}

#[tokio::test]
async fn planted_descriptors_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let unix = UnixListener::bind(dir.path().join("socket")).unwrap();
    let named = StdStream::connect(dir.path().join("socket")).unwrap();
    let (accepted, _) = unix.accept().unwrap();
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let path = dir.path().join("file");
    let file = std::fs::File::create(&path).unwrap();
    let read_only = std::fs::File::open(&path).unwrap();
    let plants: [(OwnedFd, &str); 5] = [
        (unix.into(), "no listening socket"),
        (accepted.into(), "no socket with a name"),
        (tcp.into(), "no network socket"),
        (file.into(), "no file open for writing"),
        (read_only.into(), ""),
    ];
    for (plant, expected) in plants {
        let trial = Trial::start(&["-sandbox", SANDBOX], Some(plant), Some(confined())).await;
        let broken = trial.broken().await;
        // The last one is the control: a descriptor that is harmless.
        assert_eq!(broken.len(), usize::from(!expected.is_empty()), "{expected}: {broken:?}");
        assert!(broken.iter().all(|b| b.contains(expected)), "{expected}: {broken:?}");
        assert!(trial.report().await.qemu.descriptors.iter().any(|d| d.number == EXTRA as u32));
    }
    drop(named);
}

#[tokio::test]
async fn planted_devices_and_channels_are_told() {
    let plants = [
        (["-chardev", "null,id=debug"], "no channels except tpm0, qmp, but debug"),
        (["-device", "isa-debug-exit,id=way-out"], "isa-debug-exit way-out"),
        (["-device", "VGA,id=screen"], "VGA screen"),
        (["-device", "virtio-rng-pci"], ""),
    ];
    for (plant, expected) in plants {
        let args = [&["-sandbox", SANDBOX][..], &plant].concat();
        let broken = Trial::start(&args, None, Some(confined())).await.broken().await;
        assert_eq!(broken.len(), usize::from(!expected.is_empty()), "{expected}: {broken:?}");
        assert!(broken.iter().all(|b| b.contains(expected)), "{expected}: {broken:?}");
    }
}

#[tokio::test]
async fn a_session_is_told_where_the_profile_has_none() {
    let sandbox = ["-sandbox", SANDBOX];
    let session = [
        "-device",
        "virtio-serial-pci,id=sessions",
        "-chardev",
        "null,id=session0",
        "-device",
        "virtserialport,bus=sessions.0,chardev=session0,id=session-port",
    ];
    let trial = Trial::start(&[&sandbox[..], &session].concat(), None, Some(confined())).await;
    assert_eq!(trial.broken_with(ConsoleProfile::Server2019).await, Vec::<String>::new());
    let broken = trial.broken().await;
    assert_eq!(broken.len(), 2, "{broken:?}");
    assert!(broken[0].ends_with("no channels except tpm0, qmp, but session0"), "{broken:?}");
    assert!(broken[1].contains("virtio-serial-pci sessions, virtserialport session-port"), "{broken:?}");
    // A second channel, or another device on the same controller, is not a session.
    let more = ["-chardev", "null,id=session1", "-device", "virtconsole,bus=sessions.0,chardev=session1,id=hvc"];
    let trial = Trial::start(&[&sandbox[..], &session, &more].concat(), None, Some(confined())).await;
    let broken = trial.broken_with(ConsoleProfile::Server2019).await;
    assert_eq!(broken.len(), 2, "{broken:?}");
    assert!(broken[0].ends_with("but session1") && broken[1].ends_with("but virtconsole hvc"), "{broken:?}");
}

#[tokio::test]
async fn a_qemu_that_is_not_confined_is_refused() {
    let trial = Trial::start(&[], None, None).await;
    let broken = trial.broken().await.join("\n");
    for missing in
        ["seccomp", "new privileges", "no capability", "a user of its own", "root's group", "its own mount namespace"]
    {
        assert!(broken.contains(missing), "{missing} not in {broken}");
    }
    let refused = trial.report().await.require().unwrap_err();
    assert!(matches!(refused, Error::Exposed { .. }));
    // Two VMs must not share a user: each can read the other's memory then.
    let rights = confined();
    let first = Trial::start(&["-sandbox", SANDBOX], None, Some(rights)).await;
    assert_eq!(first.broken().await, Vec::<String>::new());
    let second = Trial::start(&["-sandbox", SANDBOX], None, Some(rights)).await;
    let shared = first.broken().await;
    assert!(shared.len() == 1 && shared[0].contains(&second.qemu.child.id().unwrap().to_string()), "{shared:?}");
}
