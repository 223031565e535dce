//! What is in an image: the size and the digest of its disk.

use std::ffi::OsStr;
use std::path::Path;

use confine::Shown;
use serde::Deserialize;

use crate::blocks::Blocks;
use crate::digest::{self, Digest};
use crate::error::{Error, Result};
use crate::format::{Format, Source};
use crate::progress::{Cancel, Progress};
use crate::qemu_img;
use crate::qemu_nbd::ServedImage;

/// The size in bytes of the disk that an image holds, read in the stated format: a raw disk's contents are its
/// guest's, and may look like anything.
///
/// # Errors
/// [`Error::Tool`] and its kin when QEMU cannot open the image in that format.
pub fn disk_size(source: &Source, cancel: &Cancel) -> Result<u64> {
    #[derive(Deserialize)]
    struct Info {
        #[serde(rename = "virtual-size")]
        virtual_size: u64,
    }
    let options = source.options(None)?;
    let json = qemu_img::info(source.path(), &["--image-opts".as_ref(), &options], cancel)?;
    serde_json::from_slice::<Info>(&json)
        .map(|info| info.virtual_size)
        .map_err(|_| qemu_img::bad_answer(source.path(), "no virtual-size in the JSON of `qemu-img info`"))
}

/// SHA-256 over all bytes of the disk that an image holds.
///
/// # Errors
/// [`Error::Tool`] and its kin when QEMU cannot open the image, [`Error::Cancelled`].
pub fn digest_image(source: &Source, progress: &dyn Fn(Progress), cancel: &Cancel) -> Result<Digest> {
    let mut image = ServedImage::open(source, None)?;
    digest_blocks(source.path(), &mut image, progress, cancel)
}

/// SHA-256 over all of `blocks`; `path` is for errors.
///
/// # Errors
/// [`Error::Io`] when they cannot be read, [`Error::Cancelled`].
pub fn digest_blocks(
    path: &Path,
    blocks: &mut dyn Blocks,
    progress: &dyn Fn(Progress),
    cancel: &Cancel,
) -> Result<Digest> {
    digest::of_blocks(blocks, progress, cancel, &mut |_, _| Ok(()))
        .map_err(Error::io(path, "hash the disk"))?
        .ok_or(Error::Cancelled)
}

/// Replays the log of a VHDX that was not closed cleanly, and checks it. QEMU's lock refuses it while a VM has it
/// open.
///
/// # Errors
/// [`Error::Busy`]; [`Error::Tool`] when it is damaged beyond that.
pub fn replay_log(path: &Path, cancel: &Cancel) -> Result<()> {
    let options = Source::new(path, Format::Vhdx).options(None)?;
    let args = ["check", "-q", "-r", "all", "--image-opts"].map(OsStr::new);
    let args = [&args[..], &[options.as_os_str()]].concat();
    qemu_img::run_quietly("replay the VHDX log", &[Shown::Write(path)], &args, cancel)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::path::PathBuf;
    use std::process::Command;

    use super::*;
    use crate::format::Storage;

    /// A loop device on a file.
    struct Loop(PathBuf);

    impl Loop {
        fn new(file: &Path) -> Self {
            let output = Command::new("losetup").args(["--find", "--show"]).arg(file).output().unwrap();
            assert!(output.status.success(), "{output:?}");
            Self(String::from_utf8(output.stdout).unwrap().trim().into())
        }
    }

    impl Drop for Loop {
        fn drop(&mut self) {
            let _ = Command::new("losetup").arg("--detach").arg(&self.0).status();
        }
    }

    #[test]
    fn a_block_device_holds_an_image_as_a_file_does() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("image");
        let bytes: Vec<u8> = (0..3u32 << 20).map(|n| (n % 251) as u8).collect();
        std::fs::write(&file, &bytes).unwrap();
        let device = Loop::new(&file);
        for (path, storage) in [(&file, Storage::File), (&device.0, Storage::BlockDevice)] {
            let source = Source::new(path, Format::Raw);
            assert_eq!(source.storage().unwrap(), storage);
            assert_eq!(disk_size(&source, &Cancel::new()).unwrap(), 3 << 20);
            assert_eq!(digest_image(&source, &|_| {}, &Cancel::new()).unwrap(), Digest::of(&bytes));
            let mut found = Vec::new();
            crate::extents::each(&source, 3 << 20, &Cancel::new(), &mut |extent| {
                found.push((extent.start, extent.length, extent.offset));
                Ok(())
            })
            .unwrap();
            assert_eq!(found, [(0, 3 << 20, Some(0))]);
        }
    }
}
