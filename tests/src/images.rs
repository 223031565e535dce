//! The guest images, and what makes a disk of one a particular VM: `/provision.tar` on its ESP, which the first
//! boot unpacks over the root file system before it encrypts it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::process::run;

/// Where the ESP begins in the images.
const ESP: &str = "1M";
const BUILD: Duration = Duration::from_secs(1500);
const COPY: Duration = Duration::from_secs(120);

/// The folder with `guest.raw` and `garage.raw`, built when they are not cached.
pub fn folder() -> Result<PathBuf> {
    let build = Path::new(env!("CARGO_MANIFEST_DIR")).join("images/build");
    let built = run(&mut Command::new(build), b"", BUILD)?.ok().context("cannot build the guest images")?;
    Ok(PathBuf::from(built.stdout.trim()))
}

/// A file to put into a guest: path, mode, contents.
pub type GuestFile<'a> = (&'a str, u32, &'a [u8]);

/// Copies an image to `disk` and provisions it with `files`.
pub fn provision(image: &Path, disk: &Path, files: &[GuestFile]) -> Result<()> {
    let mut cp = Command::new("cp");
    cp.args(["--sparse=always", "--reflink=auto"]).arg(image).arg(disk);
    run(&mut cp, b"", COPY)?.ok().context("cannot copy the image")?;
    let work = tempfile::tempdir()?;
    let root = work.path().join("root");
    for (path, mode, contents) in files {
        let file = root.join(path);
        if let Some(parent) = file.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(&file, contents)?;
        fs::set_permissions(&file, fs::Permissions::from_mode(*mode))?;
    }
    // sshd wants a home that nobody else can write to; whatever umask we run under, system folders are open.
    for folder in folders(&root)? {
        let mode = if folder.ends_with("root/.ssh") || folder == root.join("root") { 0o700 } else { 0o755 };
        fs::set_permissions(&folder, fs::Permissions::from_mode(mode))?;
    }
    let tar = work.path().join("provision.tar");
    let mut command = Command::new("tar");
    command.arg("-C").arg(&root).args(["--owner=0", "--group=0", "-cf"]).arg(&tar).arg(".");
    run(&mut command, b"", COPY)?.ok().context("cannot pack the provisioning data")?;
    let mut command = Command::new("mcopy");
    command.env("MTOOLS_SKIP_CHECK", "1").arg("-i").arg(format!("{}@@{ESP}", disk.display())).arg(&tar);
    command.arg("::/provision.tar");
    run(&mut command, b"", COPY)?.ok().context("cannot put the provisioning data on the ESP").map(drop)
}

fn folders(root: &Path) -> Result<Vec<PathBuf>> {
    let mut found = vec![root.to_path_buf()];
    let mut next = 0;
    while let Some(folder) = found.get(next).cloned() {
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            if path.is_dir() {
                found.push(path);
            }
        }
        next += 1;
    }
    Ok(found)
}
