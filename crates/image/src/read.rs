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
