//! Bringing a tenant's disk image in, as a qcow2 of one's own.

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::fs::{MetadataExt, fchown};
use std::path::Path;

use confine::Shown;
use serde::Deserialize;

use crate::create::private_file;
use crate::error::{Error, Result};
use crate::format::Format;
use crate::progress::{Cancel, Progress};
use crate::qemu_img;

/// What `qemu-img info` says of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageInfo {
    /// Size of the disk in the image, in bytes.
    pub virtual_size: u64,
    /// The image's format, as QEMU recognises it.
    pub format: Format,
}

/// Reads the header of an image whose format only its owner knows: QEMU finds that out.
///
/// # Errors
/// [`Error::NotAnImage`]; [`Error::OtherFile`] for one that names other files: a header written by a tenant must not
/// make the agent read what the tenant cannot; [`Error::Unsupported`].
pub fn info(path: &Path, cancel: &Cancel) -> Result<ImageInfo> {
    let json = qemu_img::info(path, &[path.as_os_str()], cancel).map_err(|error| match error {
        Error::Tool { path, stderr, .. } => Error::NotAnImage { path, stderr },
        other => other,
    })?;
    ImageInfo::read(path, &json)
}

impl ImageInfo {
    /// Reads what `qemu-img info` said of the image at `path`, and refuses one that names other files.
    ///
    /// # Errors
    /// [`Error::OtherFile`], [`Error::Unsupported`]; [`Error::ToolAnswer`] when it is not what qemu-img writes.
    pub fn read(path: &Path, json: &[u8]) -> Result<Self> {
        #[derive(Deserialize)]
        struct Answer {
            #[serde(rename = "virtual-size")]
            virtual_size: u64,
            format: String,
            #[serde(rename = "backing-filename")]
            backing: Option<String>,
            #[serde(rename = "format-specific", default)]
            specific: serde_json::Value,
        }
        let answer: Answer =
            serde_json::from_slice(json).map_err(|_| qemu_img::bad_answer(path, "not the JSON of `qemu-img info`"))?;
        let external = answer.specific.pointer("/data/data-file").is_some();
        if answer.backing.is_some() || external {
            return Err(Error::OtherFile { path: path.to_owned() });
        }
        match answer.format.parse() {
            Ok(format) => Ok(Self { virtual_size: answer.virtual_size, format }),
            Err(_) => Err(Error::Unsupported { path: path.to_owned(), format: answer.format }),
        }
    }
}

/// Copies an image into the new qcow2 `target`, which only this user can open. When it fails, nothing is left.
///
/// # Errors
/// Those of [`info`]; [`Error::Io`]; [`Error::Tool`]; [`Error::Cancelled`].
pub fn import(source: &Path, target: &Path, progress: &dyn Fn(Progress), cancel: &Cancel) -> Result<ImageInfo> {
    let info = info(source, cancel)?;
    let made = copy(source, target, &info, progress, cancel);
    if made.is_err() {
        let _ = std::fs::remove_file(target);
    }
    made.map(|()| info)
}

fn copy(source: &Path, target: &Path, info: &ImageInfo, progress: &dyn Fn(Progress), cancel: &Cancel) -> Result<()> {
    let file = private_file(target)?;
    // Until the copy is complete, both belong to whoever owns the source, as whom qemu-img runs. Nobody but the agent
    // can enter the store.
    let owner = std::fs::metadata(source).map_err(Error::io(source, "inspect"))?;
    fchown(&file, Some(owner.uid()), None).map_err(Error::io(target, "change the owner of"))?;
    let args = ["convert", "-p", "-f", info.format.driver(), "-O", "qcow2"].map(OsStr::new);
    let args = [&args[..], &[source.as_os_str(), target.as_os_str()]].concat();
    let files = [Shown::Read(source), Shown::Write(target)];
    qemu_img::run_reporting("copy the image", &files, &args, cancel, &mut |percent| {
        progress(Progress::percent(percent, info.virtual_size));
    })?;
    take_over(&file, target)
}

fn take_over(file: &File, target: &Path) -> Result<()> {
    fchown(file, Some(rustix::process::geteuid().as_raw()), None).map_err(Error::io(target, "take over"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn an_image_that_names_another_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("base.qcow2");
        let over = dir.path().join("over.qcow2");
        let run = |args: Vec<&str>| {
            let done = std::process::Command::new("qemu-img").args(args).output().expect("qemu-img is installed");
            assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        };
        run(vec!["create", "-q", "-f", "qcow2", base.to_str().unwrap(), "1M"]);
        let backing = base.to_str().unwrap();
        run(vec!["create", "-q", "-f", "qcow2", "-b", backing, "-F", "qcow2", over.to_str().unwrap()]);
        assert_eq!(info(&base, &Cancel::new()).unwrap().virtual_size, 1 << 20);
        let refused = info(&over, &Cancel::new()).unwrap_err();
        assert!(matches!(refused, Error::OtherFile { .. }), "{refused}");
    }

    #[test]
    fn what_qemu_does_not_know_or_we_do_not_support_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let cut = dir.path().join("cut.qcow2");
        std::fs::write(&cut, b"QFI\xfb\0\0\0\x03").unwrap();
        let refused = info(&cut, &Cancel::new()).unwrap_err();
        assert!(matches!(refused, Error::NotAnImage { .. }), "{refused}");
        let other = ImageInfo::read(Path::new("/a"), br#"{"virtual-size":512,"format":"vmdk"}"#).unwrap_err();
        assert_eq!(other.to_string(), "/a: format 'vmdk' is not supported");
    }

    #[test]
    fn an_image_that_only_its_owner_can_read_becomes_the_agents_disk() {
        const SOMEBODY: u32 = 12345;
        let dir = tempfile::tempdir().unwrap();
        let (image, disk) = (dir.path().join("image"), dir.path().join("disk.qcow2"));
        std::fs::write(&image, vec![1; 1 << 20]).unwrap();
        std::fs::set_permissions(&image, std::os::unix::fs::PermissionsExt::from_mode(0o400)).unwrap();
        std::os::unix::fs::chown(&image, Some(SOMEBODY), Some(SOMEBODY)).unwrap();
        import(&image, &disk, &|_| {}, &Cancel::new()).unwrap();
        assert_eq!(info(&disk, &Cancel::new()).unwrap().format, Format::Qcow2);
        let made = std::fs::metadata(&disk).unwrap();
        assert_eq!((made.uid(), made.mode() & 0o777), (0, 0o600));
        assert_eq!(std::fs::metadata(&image).unwrap().uid(), SOMEBODY);
    }

    #[test]
    fn a_cancelled_import_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (image, disk) = (dir.path().join("image"), dir.path().join("disk.qcow2"));
        std::fs::write(&image, vec![1; 1 << 20]).unwrap();
        let cancel = Cancel::new();
        let stopped = import(&image, &disk, &|_| cancel.cancel(), &cancel);
        assert!(matches!(stopped, Err(Error::Cancelled)), "{stopped:?}");
        assert!(!disk.exists());
    }
}
