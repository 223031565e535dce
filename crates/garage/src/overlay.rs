//! Overlay mode: each of the DVM's disks is attached to the garage as an overlay on the untouched original.
//!
//! An overlay is a qcow2 whose header names no backing file: whoever opens it says what lies under it, so nothing
//! that is written into an image can make QEMU open another file.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use confine::Shown;

use crate::container::{Format, Source};
use crate::error::{Error, Result};
use crate::progress::{Cancel, Progress};
use crate::qemu::{self, image_opts};

/// Makes an empty overlay for a disk of `size` bytes in the file `path`, whatever the disk's size, in the same time.
pub fn create(path: &Path, size: u64, cancel: &Cancel) -> Result<()> {
    let size = size.to_string();
    let args: [&OsStr; 6] =
        ["create".as_ref(), "-q".as_ref(), "-f".as_ref(), "qcow2".as_ref(), path.as_os_str(), size.as_ref()];
    // The tool is shown files that are there, and may make none.
    let mut options = File::options();
    options.write(true).create(true).truncate(true).mode(0o600).open(path).map_err(Error::io(path, "create"))?;
    qemu::run("create an overlay", &[Shown::Write(path)], &args, cancel, &mut |_| {}).map(drop)
}

/// Checks that the garage's QEMU left a whole overlay of a disk of `size` bytes behind. Space that was reserved and
/// not used, as after a kill, does no harm.
pub fn check(path: &Path, size: u64, cancel: &Cancel) -> Result<()> {
    /// `qemu-img check`: there are leaks, but no errors.
    const LEAKS: &str = "exit status: 3";
    let opts = image_opts(path, Format::Qcow2, None);
    let args: [&OsStr; 4] = ["check".as_ref(), "-q".as_ref(), "--image-opts".as_ref(), &opts];
    match qemu::run("check an overlay", &[Shown::Read(path)], &args, cancel, &mut |_| {}) {
        Err(Error::Tool { status, .. }) if status == LEAKS => {}
        other => drop(other?),
    }
    let found = qemu::virtual_size(path, Format::Qcow2, cancel)?;
    if found != size {
        return Err(Error::SizeMismatch { path: path.to_owned(), expected: size, found });
    }
    Ok(())
}

/// Writes what the overlay holds into the image under it. The overlay stays as it is, so that a merge that was cut
/// short can be done again; until it is done, both together are the disk.
pub fn merge(overlay: &Path, backing: &Source, progress: &dyn Fn(Progress), cancel: &Cancel) -> Result<()> {
    let total = qemu::virtual_size(overlay, Format::Qcow2, cancel)?;
    let mut opts = image_opts(overlay, Format::Qcow2, None);
    opts.push(",");
    opts.push(prefixed(&image_opts(&backing.path, backing.format, None)));
    let args: [&OsStr; 5] = ["commit".as_ref(), "-p".as_ref(), "-d".as_ref(), "--image-opts".as_ref(), &opts];
    let files = [Shown::Write(overlay), Shown::Write(&backing.path)];
    qemu::convert("merge an overlay", &files, &args, cancel, &mut |percent| {
        let bytes = (total as f64 * percent / 100.0) as u64;
        progress(Progress { bytes: bytes.min(total), total });
    })
}

/// The options of an image as those of a backing image. A comma in a file's name is doubled, so only single ones
/// separate options.
fn prefixed(opts: &OsStr) -> OsString {
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    let mut out = b"backing.".to_vec();
    let mut rest = opts.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        out.push(byte);
        rest = after;
        if byte == b',' {
            match rest.split_first() {
                Some((b',', after)) => {
                    out.push(b',');
                    rest = after;
                }
                _ => out.extend_from_slice(b"backing."),
            }
        }
    }
    OsString::from_vec(out)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::process::Command;

    const SIZE: u64 = 16 << 20;

    fn io(image: &Path, format: &str, command: &str) -> bool {
        let done = Command::new("qemu-io").args(["-f", format, "-c", command]).arg(image).output().unwrap();
        done.status.success() && !String::from_utf8_lossy(&done.stdout).contains("failed")
    }

    #[test]
    fn names_cannot_add_options() {
        let opts = image_opts(Path::new("/x/a,,b,file.driver=nbd"), Format::Raw, None);
        assert_eq!(
            prefixed(&opts),
            "backing.driver=raw,backing.file.driver=file,backing.file.filename=/x/a,,,,b,,file.driver=nbd"
        );
    }

    #[test]
    fn an_overlay_is_merged_into_every_format_and_can_be_again() {
        for (format, driver) in [(Format::Raw, "raw"), (Format::Qcow2, "qcow2"), (Format::Vhdx, "vhdx")] {
            let dir = tempfile::tempdir().unwrap();
            let (base, overlay) = (dir.path().join("a,base"), dir.path().join("over,lay"));
            let made = Command::new("qemu-img").args(["create", "-q", "-f", driver]).arg(&base).arg("16M").status();
            assert!(made.unwrap().success());
            assert!(io(&base, driver, "write -P 1 0 2M"));
            create(&overlay, SIZE, &Cancel::new()).unwrap();
            check(&overlay, SIZE, &Cancel::new()).unwrap();
            assert!(io(&overlay, "qcow2", "write -P 2 1M 64k"));
            let source = Source { path: base.clone(), format };
            for _ in 0..2 {
                merge(&overlay, &source, &|_| {}, &Cancel::new()).unwrap();
                assert!(io(&base, driver, "read -P 1 0 1M"), "{driver}");
                assert!(io(&base, driver, "read -P 2 1M 64k"), "{driver}");
                assert!(io(&base, driver, "read -P 1 1088k 960k"), "{driver}");
                assert!(io(&overlay, "qcow2", "read -P 2 1M 64k"), "{driver}: the overlay was emptied");
            }
        }
    }

    #[test]
    fn a_damaged_or_other_overlay_is_refused() {
        use std::os::unix::fs::FileExt;
        let dir = tempfile::tempdir().unwrap();
        let overlay = dir.path().join("overlay");
        create(&overlay, SIZE, &Cancel::new()).unwrap();
        assert!(matches!(check(&overlay, SIZE + 512, &Cancel::new()), Err(Error::SizeMismatch { .. })));
        assert!(io(&overlay, "qcow2", "write -P 2 1M 64k"));
        check(&overlay, SIZE, &Cancel::new()).unwrap();
        // The first entry of the level 1 table, in the fourth cluster, now points into nowhere.
        let file = std::fs::OpenOptions::new().write(true).open(&overlay).unwrap();
        file.write_all_at(&[0x80, 0, 0, 0, 0x77, 0, 0, 0], 3 << 16).unwrap();
        assert!(check(&overlay, SIZE, &Cancel::new()).is_err());
    }
}
