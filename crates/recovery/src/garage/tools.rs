//! What a repair garage needs installed, and installing it.

use std::path::Path;
use std::process::Stdio;

use outcome::Events;
use outcome::{Context, Error, Kind, Result};
use tokio::process::Command;

/// A program or file that must exist, and Debian's package for it.
const NEEDED: [(&str, &str); 5] = [
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("qemu-img", "qemu-utils"),
    ("swtpm", "swtpm"),
    ("tpm2", "tpm2-tools"),
    ("/usr/share/OVMF/OVMF_CODE_4M.ms.fd", "ovmf"),
];

fn present(what: &str) -> bool {
    if what.starts_with('/') {
        return Path::new(what).exists();
    }
    std::env::split_paths(confine::PATH).any(|dir| dir.join(what).is_file())
}

fn missing() -> Vec<&'static str> {
    NEEDED.iter().filter(|(what, _)| !present(what)).map(|(_, package)| *package).collect()
}

/// Checks for the hypervisor's parts; with `install`, gets what is missing from the distribution.
///
/// # Errors
/// `MissingTool`, naming the packages.
pub(crate) async fn ensure(install: bool, events: &Events) -> Result<()> {
    let packages = missing();
    if packages.is_empty() {
        return Ok(());
    }
    let list = packages.join(" ");
    if !install {
        return Err(Error::new(Kind::MissingTool, format!("this garage lacks: {list}")).remedy(format!(
            "apt-get install {list}, or let the import do it: drydock recovery import --install; then run the import again"
        )));
    }
    events.say("install", format!("installing {list}"));
    let output = Command::new("apt-get")
        .args(["install", "-y", "--no-install-recommends"])
        .args(&packages)
        .env("PATH", confine::PATH)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null())
        .output()
        .await
        .context(Kind::MissingTool, || format!("cannot run apt-get to install {list}"))?;
    let left = missing();
    if output.status.success() && left.is_empty() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(Error::new(
        Kind::MissingTool,
        format!("apt-get did not install {}: {}", left.join(" "), said.lines().last().unwrap_or("it gave no reason")),
    )
    .remedy("install them by hand, then run the import again"))
}
