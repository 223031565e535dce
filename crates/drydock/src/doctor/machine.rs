//! This machine: privileges, virtualization, network, and the store of VMs.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use machine::accel::{Accel, probe};

use super::check::Check;
use crate::host::HgsArgs;

/// With less than this, in bytes, the first VM does not fit.
const LEAST_SPACE: u64 = 4 << 30;

pub(super) fn checks(args: &HgsArgs) -> Vec<Check> {
    vec![rights(), kvm(), nested(), tap(), bridge(), store(&args.store), space(&args.store)]
}

fn rights() -> Check {
    const NAME: &str = "rights";
    if rustix::process::geteuid().is_root() {
        return Check::pass(NAME, "root: tap interfaces and locked memory are allowed");
    }
    Check::fail(
        NAME,
        "not root: no tap interfaces, no locked memory",
        "run the agent as root: contrib/systemd/drydock-host.service",
    )
}

fn kvm() -> Check {
    const NAME: &str = "KVM";
    let choice = probe(None);
    match choice.accel {
        Accel::Kvm => Check::pass(NAME, choice.reason),
        Accel::Tcg => Check::skip(
            NAME,
            format!("VMs are emulated, slowly: {}", choice.reason),
            Some("enable virtualization in the machine's firmware setup, then: modprobe kvm_intel, or kvm_amd"),
        ),
    }
}

/// A repair garage runs the damaged VM inside itself.
fn nested() -> Check {
    const NAME: &str = "nesting";
    for module in ["kvm_intel", "kvm_amd"] {
        let Ok(value) = fs::read_to_string(format!("/sys/module/{module}/parameters/nested")) else { continue };
        if matches!(value.trim(), "Y" | "1") {
            return Check::pass(NAME, format!("{module} allows nested virtualization"));
        }
        return Check::fail(
            NAME,
            format!("{module} does not allow nested virtualization: repair garages would emulate"),
            format!("echo 'options {module} nested=1' > /etc/modprobe.d/drydock.conf, then reload the module"),
        );
    }
    Check::skip(NAME, "no KVM on this machine; an emulated garage needs no nested virtualization", None)
}

fn tap() -> Check {
    const NAME: &str = "network ports";
    match fs::OpenOptions::new().read(true).write(true).open("/dev/net/tun") {
        Ok(_) => Check::pass(NAME, "/dev/net/tun can be opened"),
        Err(error) => Check::fail(NAME, format!("/dev/net/tun: {error}"), "modprobe tun; run this command as root"),
    }
}

fn bridge() -> Check {
    const NAME: &str = "bridge";
    let bridges: Vec<String> = fs::read_dir("/sys/class/net")
        .into_iter()
        .flatten()
        .flatten()
        .filter(|interface| interface.path().join("bridge").is_dir())
        .map(|interface| interface.file_name().to_string_lossy().into_owned())
        .collect();
    if bridges.is_empty() {
        return Check::fail(NAME, "this machine has no bridge", "ip link add br0 type bridge; ip link set br0 up");
    }
    Check::pass(NAME, bridges.join(", "))
}

fn store(path: &Path) -> Check {
    const NAME: &str = "store";
    let fix = format!("drydock host init --store {} --out host.pub.pem", path.display());
    let Ok(found) = fs::metadata(path) else {
        return Check::fail(NAME, format!("{} does not exist", path.display()), fix);
    };
    let me = rustix::process::geteuid().as_raw();
    if !found.is_dir() {
        return Check::fail(NAME, format!("{} is not a directory", path.display()), fix);
    }
    if found.uid() != me {
        return Check::fail(
            NAME,
            format!("{} belongs to UID {}, not to {me}", path.display(), found.uid()),
            format!("chown -R {me} {}", path.display()),
        );
    }
    if found.mode() & 0o077 != 0 {
        return Check::fail(
            NAME,
            format!("{} is accessible to others (mode {:o})", path.display(), found.mode() & 0o777),
            format!("chmod 700 {}", path.display()),
        );
    }
    Check::pass(NAME, path.display().to_string())
}

fn space(path: &Path) -> Check {
    const NAME: &str = "space";
    match host::free_space(path) {
        Err(error) => Check::skip(NAME, error.message, None),
        Ok(free) if free < LEAST_SPACE => Check::fail(
            NAME,
            format!("{} MiB are free in {}", free >> 20, path.display()),
            format!("make at least {} MiB free", LEAST_SPACE >> 20),
        ),
        Ok(free) => Check::pass(NAME, format!("{} GiB are free in {}", free >> 30, path.display())),
    }
}
