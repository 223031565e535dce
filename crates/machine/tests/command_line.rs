//! QEMU's command line, for each policy and accelerator.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Sandbox, verdict};
use machine::accel::{Accel, Verdict};
use machine::engine::argv::{self, Fds, VmArgs};
use machine::engine::chardevs;
use machine::{ConsoleProfile, Error, HOT_PORTS, NicSpec, Policy, VmSpec, disk};

const FDS: Fds = Fds { qmp: 3, tpm: 4, vars_key: 5, console: None, vars: 7, first_image: 8 };

fn argv(spec: &VmSpec, accel: &Verdict, fds: Fds) -> machine::Result<Vec<String>> {
    let disks: Vec<_> = spec.disks.iter().map(|d| disk::check(d).unwrap()).collect();
    let taps: Vec<String> = (0..spec.nics.len()).map(|n| format!("tap{n}")).collect();
    let vm = VmArgs { spec, disks: &disks, taps: &taps, accel, fds, incoming: false };
    let args = argv::argv(&vm)?;
    Ok(args.into_iter().map(|a| a.into_string().unwrap()).collect())
}

fn value<'a>(args: &'a [String], option: &str) -> &'a str {
    let at = args.iter().position(|a| a == option).unwrap();
    &args[at + 1]
}

#[test]
fn a_shielded_vm_has_no_way_in() {
    let sandbox = Sandbox::new();
    let args = argv(&sandbox.spec(Policy::Shielded), &verdict(Accel::Tcg), FDS).unwrap();
    let line = args.join(" ");
    for forbidden in [
        "serial0",
        "isa-serial",
        "-serial",
        "-vnc",
        "spice",
        "vga",
        "usb",
        "-gdb",
        "-s ",
        "-monitor",
        "hmp",
        "debug",
        "qemu-ga",
        "virtserial",
        "virtio-serial",
        "isa-debugcon",
        "-d ",
        "-trace",
        "mode=readline",
        "password",
    ] {
        assert!(!line.contains(forbidden), "{forbidden} in {line}");
    }
    assert_eq!(args.iter().filter(|a| *a == "-mon").count(), 1);
    assert_eq!(args.iter().filter(|a| *a == "-chardev").count(), 2);
    assert!(!line.contains("server=on") && !line.contains("path="));
    for needed in [
        "-nodefaults",
        "-no-user-config",
        "driver=cfi.pflash01,property=secure,value=on",
        "ICH9-LPC.disable_s3=1",
        "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
        "secret,id=vars-key,file=/dev/fd/5",
    ] {
        assert!(args.iter().any(|a| a == needed), "{needed} not in {line}");
    }
    assert!(value(&args, "-machine").contains("smm=on"));
    assert!(value(&args, "-machine").contains("dump-guest-core=off"));
    assert_eq!(value(&args, "-display"), "none");
}

#[test]
fn a_console_needs_the_lower_policy() {
    let sandbox = Sandbox::new();
    let fds = Fds { console: Some(6), ..FDS };
    let refused = argv(&sandbox.spec(Policy::Shielded), &verdict(Accel::Tcg), fds);
    assert!(matches!(refused, Err(Error::Policy { .. })));
    let spec = sandbox.spec(Policy::EncryptionSupported);
    let args = argv(&spec, &verdict(Accel::Tcg), fds).unwrap();
    assert!(args.contains(&"isa-serial,chardev=console0".to_owned()));
    assert!(args.contains(&"socket,id=console0,fd=6".to_owned()));
    let without = argv(&spec, &verdict(Accel::Tcg), FDS).unwrap();
    assert!(!without.join(" ").contains("isa-serial"));
}

#[test]
fn sessions_need_their_profile_and_move_no_other_device() {
    let sandbox = Sandbox::new();
    for policy in [Policy::Shielded, Policy::EncryptionSupported] {
        let mut spec = sandbox.spec(policy);
        let before = argv(&spec, &verdict(Accel::Tcg), FDS).unwrap();
        assert!(!before.join(" ").contains("virtio-serial"));
        spec.console_profile = ConsoleProfile::Server2019;
        let mut with = argv(&spec, &verdict(Accel::Tcg), FDS).unwrap();
        let at = with.iter().position(|arg| arg.starts_with("virtio-serial-pci")).unwrap();
        assert_eq!(with[at], "virtio-serial-pci,id=sessions,bus=pcie.0,addr=0x1e");
        with.drain(at - 1..=at);
        assert_eq!(with, before, "everything else is the same without it");
    }
    assert_eq!(chardevs(false, ConsoleProfile::Server2016), ["tpm0", "qmp"]);
    assert_eq!(chardevs(false, ConsoleProfile::Server2019), ["tpm0", "qmp", "session0"]);
}

#[test]
fn processors_for_each_accelerator() {
    let sandbox = Sandbox::new();
    let ordinary = sandbox.spec(Policy::Shielded);
    let mut nested = ordinary.clone();
    nested.nested = true;
    let inside_tcg = Verdict { outer_tcg: true, ..verdict(Accel::Kvm) };
    let tcg_in_tcg = Verdict { outer_tcg: true, ..verdict(Accel::Tcg) };
    let cases = [
        (&ordinary, verdict(Accel::Tcg), "max,-svm", false),
        (&ordinary, tcg_in_tcg, "max,-svm", false),
        (&nested, verdict(Accel::Tcg), "EPYC,+svm,+npt", false),
        (&ordinary, verdict(Accel::Kvm), "host,-vmx,-svm", false),
        (&nested, verdict(Accel::Kvm), "host", false),
        (&ordinary, inside_tcg, "host,-x2apic,-kvm-asyncpf,-kvm-asyncpf-int", true),
    ];
    for (spec, accel, cpu, irqchip_off) in cases {
        let args = argv(spec, &accel, FDS).unwrap();
        assert_eq!(value(&args, "-cpu"), cpu);
        let machine = value(&args, "-machine");
        assert_eq!(machine.contains("kernel-irqchip=off"), irqchip_off);
        assert!(value(&args, "-accel").starts_with(&accel.accel.to_string()));
    }
}

#[test]
fn images_are_descriptors_and_no_path_is_told() {
    let sandbox = Sandbox::new();
    let mut spec = sandbox.spec(Policy::Shielded);
    let below = sandbox.disk("below");
    spec.disks[0].backing = Some(below.source);
    spec.disks.push(sandbox.disk("second"));
    let args = argv(&spec, &verdict(Accel::Tcg), FDS).unwrap();
    let sets: Vec<_> = args.iter().zip(&args[1..]).filter(|(a, _)| *a == "-add-fd").map(|(_, v)| v.as_str()).collect();
    assert_eq!(sets, ["fd=7,set=1", "fd=8,set=2", "fd=9,set=3", "fd=10,set=4"]);
    let nodes: Vec<serde_json::Value> = args.iter().filter_map(|a| serde_json::from_str(a).ok()).collect();
    let node = |name: &str| nodes.iter().find(|n| n["node-name"] == name).unwrap();
    assert_eq!(node("vars")["file"]["filename"], "/dev/fdset/1");
    assert_eq!(node("disk0")["file"]["filename"], "/dev/fdset/2");
    assert_eq!(node("disk0")["backing"]["file"]["filename"], "/dev/fdset/3");
    assert_eq!(node("disk0")["backing"]["read-only"], true);
    assert_eq!(node("disk1")["file"]["filename"], "/dev/fdset/4");
    let directory = sandbox.path("");
    assert!(!args.iter().any(|arg| arg.contains(directory.to_str().unwrap())), "{args:?}");
}

#[test]
fn every_device_has_its_port() {
    let sandbox = Sandbox::new();
    let mut spec = sandbox.spec(Policy::Shielded);
    let first = spec.disks[0].clone();
    for n in 1..64 {
        let mut disk = first.clone();
        disk.serial = format!("disk-{n}");
        spec.disks.push(disk);
    }
    spec.nics = (0..8).map(|n| NicSpec { switch: "br0".into(), mac: format!("52:54:00:00:00:{n:02x}") }).collect();
    let args = argv(&spec, &verdict(Accel::Tcg), FDS).unwrap();
    let devices: Vec<serde_json::Value> = args.iter().filter_map(|a| serde_json::from_str(a).ok()).collect();
    let strings = |key: &str| -> Vec<String> {
        let mut all: Vec<String> =
            devices.iter().filter_map(|d| Some(d.get(key)?.as_str()?.to_owned())).filter(|s| s != "pcie.0").collect();
        all.sort();
        all
    };
    for key in ["id", "addr", "bus"] {
        let all = strings(key);
        let mut unique = all.clone();
        unique.dedup();
        assert_eq!(all, unique, "{key}");
    }
    assert_eq!(strings("addr").len(), 64 + 8 + HOT_PORTS);
    assert_eq!(strings("bus").len(), 64 + 8);
}
