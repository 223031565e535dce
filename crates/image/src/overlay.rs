//! Overlay mode: each of the DVM's disks is attached to the garage as an overlay on the untouched original.
//!
//! An overlay is a qcow2 whose header names no backing file: whoever opens it says what lies under it, so nothing
//! that is written into an image can make QEMU open another file.

use std::ffi::OsStr;
use std::path::Path;

use confine::Shown;

use crate::error::{Error, Result};
use crate::format::{Format, Source, as_backing};
use crate::progress::{Cancel, Progress};
use crate::qemu_img;
use crate::read::disk_size;

/// Checks that the garage's QEMU left a whole overlay of a disk of `size` bytes behind. Space that was reserved and
/// not used, as after a kill, does no harm.
///
/// # Errors
/// [`Error::Tool`] for a damaged overlay, [`Error::SizeMismatch`] for one of another disk.
pub fn check(path: &Path, size: u64, cancel: &Cancel) -> Result<()> {
    /// `qemu-img check`: there are leaks, but no errors.
    const LEAKS: i32 = 3;
    let overlay = Source::new(path, Format::Qcow2);
    let options = overlay.options(None)?;
    let args: [&OsStr; 4] = ["check".as_ref(), "-q".as_ref(), "--image-opts".as_ref(), &options];
    match qemu_img::run_quietly("check an overlay", &[Shown::Read(path)], &args, cancel) {
        Err(Error::Tool { status, .. }) if status.code() == Some(LEAKS) => {}
        other => other?,
    }
    Error::expect_size(path, size, disk_size(&overlay, cancel)?)
}

/// Writes what the overlay holds into the image under it. The overlay stays as it is, so that an interrupted merge can
/// be repeated; until it is complete, both together are the disk.
///
/// # Errors
/// [`Error::Busy`] while a VM uses either, [`Error::Tool`], [`Error::Cancelled`].
pub fn merge(overlay: &Path, backing: &Source, progress: &dyn Fn(Progress), cancel: &Cancel) -> Result<()> {
    let source = Source::new(overlay, Format::Qcow2);
    let total = disk_size(&source, cancel)?;
    let mut options = source.options(None)?;
    options.push(",");
    options.push(as_backing(&backing.options(None)?));
    let args: [&OsStr; 5] = ["commit".as_ref(), "-p".as_ref(), "-d".as_ref(), "--image-opts".as_ref(), &options];
    let files = [Shown::Write(overlay), Shown::Write(backing.path())];
    qemu_img::run_reporting("merge an overlay", &files, &args, cancel, &mut |percent| {
        progress(Progress::percent(percent, total));
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::create;
    use std::process::Command;

    const SIZE: u64 = 16 << 20;

    fn io(image: &Path, format: &str, command: &str) -> bool {
        let done = Command::new("qemu-io").args(["-f", format, "-c", command]).arg(image).output().unwrap();
        done.status.success() && !String::from_utf8_lossy(&done.stdout).contains("failed")
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
            let source = Source::new(&base, format);
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
