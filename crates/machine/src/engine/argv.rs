//! From a typed description to QEMU's command line. Pure: it touches no file and starts nothing.
//!
//! Disks and UEFI variables are descriptors that QEMU inherits: the command line names no path of a store, and QEMU's
//! user can open none.

use std::ffi::OsString;

use serde_json::{Value, json};

use super::blockdev::{blockdev, disk_device, sets};
use super::channels::SESSION_CONTROLLER;
use super::nodes::VARS_SET;
use super::ports::{self, HOT_PORTS, root_port};
use crate::accel::{Accel, Verdict};
use crate::disk::CheckedDisk;
use crate::error::{Error, Result};
use crate::spec::{ConsoleProfile, NicSpec, Policy, VmSpec};

/// The numbers that the inherited descriptors have in QEMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fds {
    /// Socket: QMP.
    pub qmp: i32,
    /// Socket: swtpm's control channel.
    pub tpm: i32,
    /// Pipe: passphrase of the UEFI variables.
    pub vars_key: i32,
    /// Socket: serial port. None for a shielded VM.
    pub console: Option<i32>,
    /// File: the UEFI variables, LUKS.
    pub vars: i32,
    /// Files: the disks' images, numbered from here on.
    pub first_image: i32,
}

/// Everything that the command line is made from.
#[derive(Debug)]
pub struct VmArgs<'a> {
    /// What the VM is made of.
    pub spec: &'a VmSpec,
    /// In the order of `spec.disks`.
    pub disks: &'a [CheckedDisk],
    /// Tap interfaces, in the order of `spec.nics`.
    pub taps: &'a [String],
    /// What executes the guest's instructions.
    pub accel: &'a Verdict,
    /// What QEMU inherits.
    pub fds: Fds,
    /// QEMU waits for another QEMU's state instead of starting the guest.
    pub incoming: bool,
}

/// QEMU's arguments.
///
/// # Errors
/// [`Error::Policy`] for a console on a shielded VM; [`Error::Spec`] for an invalid description.
pub fn argv(vm: &VmArgs<'_>) -> Result<Vec<OsString>> {
    let spec = vm.spec;
    spec.validate()?;
    if spec.policy == Policy::Shielded && vm.fds.console.is_some() {
        return Err(Error::Policy { what: "a console".into() });
    }
    let mut args = Args::default();
    args.add("-name", format!("guest={}", spec.name));
    args.add("-uuid", spec.id.to_string());
    args.flag("-nodefaults");
    args.flag("-no-user-config");
    args.add("-display", "none");
    args.add("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny");
    platform(&mut args, spec, vm.accel);
    firmware(&mut args, vm);
    args.add("-chardev", format!("socket,id=tpm0,fd={}", vm.fds.tpm));
    args.add("-tpmdev", "emulator,id=vtpm,chardev=tpm0");
    args.add("-device", "tpm-crb,tpmdev=vtpm");
    args.add("-object", "rng-random,id=rng0,filename=/dev/urandom");
    args.add("-device", "virtio-rng-pci,rng=rng0,bus=pcie.0,addr=0x1");
    if spec.console_profile == ConsoleProfile::Server2019 {
        // At the end of the bus, so that it changes the address of no other device.
        args.add("-device", format!("virtio-serial-pci,id={SESSION_CONTROLLER},bus=pcie.0,addr=0x1e"));
    }
    for port in 0..vm.disks.len() + vm.taps.len() + HOT_PORTS {
        args.json("-device", &root_port(port));
    }
    let mut image_fds = vm.fds.first_image..;
    for (index, disk) in vm.disks.iter().enumerate() {
        for (set, fd) in sets(disk, index).into_iter().zip(&mut image_fds) {
            args.add("-add-fd", format!("fd={fd},set={set}"));
        }
        args.json("-blockdev", &blockdev(disk, index));
        let mut device = disk_device(disk.spec(), index, index);
        device["bootindex"] = json!(index + 1);
        args.json("-device", &device);
    }
    for (index, (nic, tap)) in spec.nics.iter().zip(vm.taps).enumerate() {
        args.add("-netdev", format!("tap,id=net{index},ifname={tap},script=no,downscript=no"));
        args.json("-device", &nic_device(nic, index, vm.disks.len() + index));
    }
    if let Some(fd) = vm.fds.console {
        args.add("-chardev", format!("socket,id=console0,fd={fd}"));
        args.add("-device", "isa-serial,chardev=console0");
    }
    args.add("-chardev", format!("socket,id=qmp,fd={}", vm.fds.qmp));
    args.add("-mon", "chardev=qmp,mode=control");
    if vm.incoming {
        // Paused even when everything has arrived: the agents settle who runs the VM from then on.
        args.flag("-S");
        args.add("-incoming", "defer");
    }
    Ok(args.0)
}

#[derive(Default)]
struct Args(Vec<OsString>);

impl Args {
    fn flag(&mut self, name: &str) {
        self.0.push(name.into());
    }

    fn add(&mut self, name: &str, value: impl Into<OsString>) {
        self.0.push(name.into());
        self.0.push(value.into());
    }

    fn json(&mut self, name: &str, value: &Value) {
        self.add(name, value.to_string());
    }
}

fn platform(args: &mut Args, spec: &VmSpec, verdict: &Verdict) {
    // QEMU's TCG aborts when a nested UEFI guest uses the in-kernel interrupt controller; the
    // x2apic and asynchronous page fault features depend on that controller.
    let inside_tcg = verdict.accel == Accel::Kvm && verdict.outer_tcg;
    let irqchip = if inside_tcg { "kernel-irqchip=off," } else { "" };
    args.add("-machine", format!("q35,{irqchip}smm=on,vmport=off,dump-guest-core=off,pflash0=code,pflash1=vars"));
    let (accel, cpu) = match (verdict.accel, spec.nested) {
        (Accel::Tcg, false) => ("tcg,thread=multi", "max,-svm"),
        (Accel::Tcg, true) => ("tcg,thread=multi", "EPYC,+svm,+npt"),
        (Accel::Kvm, _) if inside_tcg => ("kvm", "host,-x2apic,-kvm-asyncpf,-kvm-asyncpf-int"),
        (Accel::Kvm, false) => ("kvm", "host,-vmx,-svm"),
        (Accel::Kvm, true) => ("kvm", "host"),
    };
    args.add("-accel", accel);
    args.add("-cpu", cpu);
    args.add("-smp", spec.vcpus.to_string());
    args.add("-m", format!("{}M", spec.memory_mib));
    args.add("-rtc", "base=utc");
    args.add("-boot", "strict=on");
    // After a suspend the guest would resume without the firmware's lock on the flash.
    args.add("-global", "ICH9-LPC.disable_s3=1");
    // Native PCIe hot-plug: an ACPI unplug needs a booted guest, even for a disk that the guest never used.
    args.add("-global", "ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off");
}

fn firmware(args: &mut Args, vm: &VmArgs<'_>) {
    // Only code in SMM may write the variables: otherwise Secure Boot protects nothing.
    args.add("-global", "driver=cfi.pflash01,property=secure,value=on");
    args.json(
        "-blockdev",
        &json!({
            "node-name": "code", "driver": "raw", "read-only": true,
            "file": {"driver": "file", "filename": vm.spec.firmware.code},
        }),
    );
    args.add("-object", format!("secret,id=vars-key,file=/dev/fd/{}", vm.fds.vars_key));
    args.add("-add-fd", format!("fd={},set={VARS_SET}", vm.fds.vars));
    args.json(
        "-blockdev",
        &json!({
            "node-name": "vars", "driver": "luks", "key-secret": "vars-key",
            "file": {"driver": "file", "filename": format!("/dev/fdset/{VARS_SET}")},
        }),
    );
}

fn nic_device(nic: &NicSpec, index: usize, port: usize) -> Value {
    json!({
        "driver": "virtio-net-pci",
        "id": format!("nic{index}"),
        "netdev": format!("net{index}"),
        "bus": ports::bus(port),
        "mac": nic.mac,
        "romfile": "",
    })
}
