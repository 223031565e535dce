//! From a typed description to QEMU's command line. Pure: no file is touched, nothing is started.
//!
//! Every disk and card sits behind a PCIe root port of its own, so that each can be unplugged and
//! [`HOT_PORTS`] more disks can be plugged in. Disks and UEFI variables are descriptors that QEMU inherits: no path
//! of a store is told to it, and none is open to its user.

use std::ffi::OsString;

use serde_json::{Value, json};

use crate::accel::{Accel, Verdict};
use crate::disk::CheckedDisk;
use crate::spec::{ConsoleProfile, DiskSpec, NicSpec, Policy, VmSpec};
use crate::{Error, Result};

/// Disks that can be attached to a running VM at the same time: an RG disk, and the overlays of one VM.
pub const HOT_PORTS: usize = 8;
/// Root ports share a PCI slot by eights, from this slot on; slot 1 has the random number device.
const FIRST_SLOT: usize = 2;
const PORTS_PER_SLOT: usize = 8;

/// The numbers that inherited descriptors have in QEMU.
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
    /// Files: the disks' images, one after the other from here on.
    pub first_image: i32,
}

/// Everything that a command line is made from.
#[derive(Debug)]
pub struct Launch<'a> {
    pub spec: &'a VmSpec,
    /// In the order of `spec.disks`.
    pub disks: &'a [CheckedDisk],
    /// Tap interfaces, in the order of `spec.nics`.
    pub taps: &'a [String],
    pub accel: &'a Verdict,
    pub fds: Fds,
    /// Waits for another QEMU's state instead of starting the guest.
    pub incoming: bool,
}

/// QEMU's arguments.
///
/// # Errors
/// [`Error::Policy`] for a console on a shielded VM; [`Error::Spec`] for an invalid description.
pub fn argv(launch: &Launch<'_>) -> Result<Vec<OsString>> {
    let spec = launch.spec;
    spec.validate()?;
    if spec.policy == Policy::Shielded && launch.fds.console.is_some() {
        return Err(Error::Policy { what: "a console".into() });
    }
    let mut args = Args::default();
    args.add("-name", format!("guest={}", spec.name));
    args.add("-uuid", spec.id.to_string());
    args.flag("-nodefaults");
    args.flag("-no-user-config");
    args.add("-display", "none");
    args.add("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny");
    platform(&mut args, spec, launch.accel);
    firmware(&mut args, launch);
    args.add("-chardev", format!("socket,id=tpm0,fd={}", launch.fds.tpm));
    args.add("-tpmdev", "emulator,id=vtpm,chardev=tpm0");
    args.add("-device", "tpm-crb,tpmdev=vtpm");
    args.add("-object", "rng-random,id=rng0,filename=/dev/urandom");
    args.add("-device", "virtio-rng-pci,rng=rng0,bus=pcie.0,addr=0x1");
    if spec.console_profile == ConsoleProfile::Server2019 {
        // Behind everything else: no address of another device is another one for it.
        args.add("-device", format!("virtio-serial-pci,id={SESSIONS},bus=pcie.0,addr=0x1e"));
    }
    for port in 0..launch.disks.len() + launch.taps.len() + HOT_PORTS {
        args.json("-device", &root_port(port));
    }
    let mut image_fds = launch.fds.first_image..;
    for (index, disk) in launch.disks.iter().enumerate() {
        for (set, fd) in disk.sets(index).into_iter().zip(&mut image_fds) {
            args.add("-add-fd", format!("fd={fd},set={set}"));
        }
        args.json("-blockdev", &disk.blockdev(index));
        let mut device = disk_device(disk.spec(), index, index);
        device["bootindex"] = json!(index + 1);
        args.json("-device", &device);
    }
    for (index, (nic, tap)) in spec.nics.iter().zip(launch.taps).enumerate() {
        args.add("-netdev", format!("tap,id=net{index},ifname={tap},script=no,downscript=no"));
        args.json("-device", &nic_device(nic, index, launch.disks.len() + index));
    }
    if let Some(fd) = launch.fds.console {
        args.add("-chardev", format!("socket,id=console0,fd={fd}"));
        args.add("-device", "isa-serial,chardev=console0");
    }
    args.add("-chardev", format!("socket,id=qmp,fd={}", launch.fds.qmp));
    args.add("-mon", "chardev=qmp,mode=control");
    if launch.incoming {
        // Paused even when everything has come: who runs the VM from then on is the agents' to settle.
        args.flag("-S");
        args.add("-incoming", "defer");
    }
    Ok(args.0)
}

/// What session ports are plugged into.
pub(crate) const SESSIONS: &str = "sessions";
/// The character device of the session that is open, if there is one.
pub(crate) const SESSION: &str = "session0";

/// The character devices that a VM of this kind may have, and no others.
pub fn chardevs(console: bool, profile: ConsoleProfile) -> Vec<&'static str> {
    let mut labels = vec!["tpm0", "qmp"];
    if console {
        labels.push("console0");
    }
    if profile == ConsoleProfile::Server2019 {
        labels.push(SESSION);
    }
    labels
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
    // Suspend would let a guest wake without the firmware's lock on the flash.
    args.add("-global", "ICH9-LPC.disable_s3=1");
    // Native PCIe hot-plug: an ACPI unplug needs a booted guest, even for a disk it never used.
    args.add("-global", "ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off");
}

fn firmware(args: &mut Args, launch: &Launch<'_>) {
    // Only code in SMM may write the variables: without it Secure Boot is decoration.
    args.add("-global", "driver=cfi.pflash01,property=secure,value=on");
    args.json(
        "-blockdev",
        &json!({
            "node-name": "code", "driver": "raw", "read-only": true,
            "file": {"driver": "file", "filename": launch.spec.firmware.code},
        }),
    );
    args.add("-object", format!("secret,id=vars-key,file=/dev/fd/{}", launch.fds.vars_key));
    args.add("-add-fd", format!("fd={},set={VARS_SET}", launch.fds.vars));
    args.json(
        "-blockdev",
        &json!({
            "node-name": "vars", "driver": "luks", "key-secret": "vars-key",
            "file": {"driver": "file", "filename": format!("/dev/fdset/{VARS_SET}")},
        }),
    );
}

/// The descriptor set of the UEFI variables.
pub(crate) const VARS_SET: usize = 1;

/// The descriptor set of the `index`th disk's image. No index is used twice, so no set is.
pub(crate) fn image_set(index: usize) -> usize {
    VARS_SET + 1 + 2 * index
}

/// The descriptor set of the image under it.
pub(crate) fn backing_set(index: usize) -> usize {
    image_set(index) + 1
}

pub(crate) fn disk_node(index: usize) -> String {
    format!("disk{index}")
}

pub(crate) fn disk_id(index: usize) -> String {
    format!("disk{index}-device")
}

/// The `index`th disk, behind a root port.
pub(crate) fn disk_device(disk: &DiskSpec, index: usize, port: usize) -> Value {
    // Never what QEMU finds out about the device behind it.
    let block = if disk.opaque { DiskSpec::OPAQUE_BLOCK } else { 512 };
    json!({
        "driver": "virtio-blk-pci",
        "id": disk_id(index),
        "drive": disk_node(index),
        "bus": format!("port{port}"),
        "serial": disk.serial_seen(),
        "logical_block_size": block,
        "physical_block_size": block,
    })
}

fn nic_device(nic: &NicSpec, index: usize, port: usize) -> Value {
    json!({
        "driver": "virtio-net-pci",
        "id": format!("nic{index}"),
        "netdev": format!("net{index}"),
        "bus": format!("port{port}"),
        "mac": nic.mac,
        "romfile": "",
    })
}

fn root_port(port: usize) -> Value {
    let (slot, function) = (FIRST_SLOT + port / PORTS_PER_SLOT, port % PORTS_PER_SLOT);
    json!({
        "driver": "pcie-root-port",
        "id": format!("port{port}"),
        "bus": "pcie.0",
        "addr": format!("{slot:#x}.{function:#x}"),
        "multifunction": function == 0,
        "chassis": port + 1,
        "io-reserve": 0,
    })
}
