//! Bringing a tenant's disk image into the store, with `qemu-img`.

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, fchown};
use std::path::Path;
use std::process::Stdio;

use confine::{Shown, Tool};
use serde::Deserialize;
use tokio::io::AsyncReadExt;
use tokio::process::{ChildStderr, Command};
use tokio::runtime::Handle;

use outcome::Events;
use outcome::{Context, Error, Kind, Result};

const QEMU_IMG: &str = "qemu-img";
/// Most bytes that it says of an image, and that are kept of a complaint.
const MAX_INFO: usize = 1 << 20;
const MAX_COMPLAINT: u64 = 4096;

/// What `qemu-img info` says of an image.
#[derive(Debug, Deserialize)]
pub struct ImageInfo {
    /// The size in bytes of the disk that the image holds.
    #[serde(rename = "virtual-size")]
    pub virtual_size: u64,
    /// The image's format, in QEMU's words.
    pub format: String,
    #[serde(rename = "backing-filename")]
    backing: Option<String>,
    #[serde(rename = "format-specific", default)]
    specific: serde_json::Value,
}

/// Reads an image's header.
///
/// # Errors
/// `BadInput` when it is no image QEMU knows, or one that names other files: a header written by a tenant must
/// not make the agent read what the tenant cannot.
pub async fn info(path: &Path) -> Result<ImageInfo> {
    let mut answer = Vec::new();
    let args = ["info".as_ref(), "--output=json".as_ref(), path.as_os_str()];
    let done = qemu_img(&[Shown::Read(path)], &args, &mut |said| {
        let room = MAX_INFO - answer.len();
        answer.extend_from_slice(&said[..said.len().min(room)]);
        Ok(())
    })
    .await?;
    done.map_err(|said| Error::new(Kind::BadInput, format!("{} is not a disk image: {said}", path.display())))?;
    ImageInfo::read(path, &answer)
}

impl ImageInfo {
    /// Reads what `qemu-img info` said of the image at `path`, and refuses one that names other files.
    ///
    /// # Errors
    /// `BadInput` for such an image or an unknown format; `Internal` when it is not what qemu-img writes.
    pub fn read(path: &Path, json: &[u8]) -> Result<Self> {
        let info: ImageInfo =
            serde_json::from_slice(json).context(Kind::Internal, || "qemu-img info answers in another shape".into())?;
        let external = info.specific.pointer("/data/data-file").is_some();
        if info.backing.is_some() || external {
            return Err(Error::new(Kind::BadInput, format!("{} refers to another file", path.display()))
                .remedy("flatten it first: qemu-img convert -O qcow2 IMAGE FLAT"));
        }
        if !["raw", "qcow2", "vhdx"].contains(&info.format.as_str()) {
            return Err(Error::new(
                Kind::BadInput,
                format!("{}: format '{}' is not supported", path.display(), info.format),
            )
            .remedy("convert it to qcow2, raw or VHDX"));
        }
        Ok(info)
    }
}

/// Copies an image into a new qcow2 of the store. Stops, and leaves nothing, once the client has gone.
///
/// # Errors
/// `BadInput`, `Interrupted`, or `Internal` with what qemu-img said.
pub async fn import(source: &Path, target: &Path, events: &Events) -> Result<ImageInfo> {
    let info = info(source).await?;
    let name = source.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let made = copy(source, target, &name, &info, events).await;
    if made.is_err() {
        let _ = std::fs::remove_file(target);
    }
    made.map(|()| info)
}

async fn copy(source: &Path, target: &Path, name: &str, info: &ImageInfo, events: &Events) -> Result<()> {
    let failed = |what: &'static str| move || format!("cannot {what} {name}");
    let file = private_file(target)?;
    // Both belong to who may read the source, as whom qemu-img runs. Nobody but the agent can enter the store.
    let owner = std::fs::metadata(source).context(Kind::NotFound, failed("look at"))?;
    fchown(&file, Some(owner.uid()), None).context(Kind::Internal, failed("make room for"))?;
    let args = ["convert", "-p", "-f", &info.format, "-O", "qcow2"].map(OsStr::new);
    let args = [&args[..], &[source.as_os_str(), target.as_os_str()]].concat();
    let mut text = String::new();
    let done = qemu_img(&[Shown::Read(source), Shown::Write(target)], &args, &mut |said| {
        if events.abandoned() {
            return Err(Error::new(Kind::Interrupted, format!("stopped while copying {name}")));
        }
        text.push_str(&String::from_utf8_lossy(said));
        if let Some(percent) = last_percent(&text) {
            let done = (info.virtual_size as f64 * percent / 100.0) as u64;
            events.bytes("copy-disk", format!("copying {name}"), done, info.virtual_size);
        }
        let keep = text.len().saturating_sub(32);
        text.drain(..text.floor_char_boundary(keep));
        Ok(())
    })
    .await?;
    done.map_err(|said| Error::new(Kind::Internal, format!("qemu-img cannot copy {name}: {said}")))?;
    fchown(&file, Some(rustix::process::geteuid().as_raw()), None).context(Kind::Internal, failed("take over"))
}

/// Makes an empty qcow2 of `size` bytes that nobody else can read.
///
/// # Errors
/// `Internal` with what qemu-img said.
pub async fn create(target: &Path, size: u64) -> Result<()> {
    private_file(target)?;
    let size = size.to_string();
    let args = ["create".as_ref(), "-q".as_ref(), "-f".as_ref(), "qcow2".as_ref(), target.as_os_str(), size.as_ref()];
    let done = qemu_img(&[Shown::Write(target)], &args, &mut |_| Ok(())).await?;
    done.map_err(|said| Error::new(Kind::Internal, format!("qemu-img cannot make {}: {said}", target.display())))
}

/// An empty file that only this user may open; qemu-img is shown files, and may make none.
fn private_file(path: &Path) -> Result<File> {
    let mut options = File::options();
    options
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .context(Kind::Internal, || format!("cannot make {}", path.display()))
}

/// Runs qemu-img on these files, confined, and gives what it prints to `output`, whose error ends it. What it complains
/// of is the inner error.
async fn qemu_img(
    files: &[Shown<'_>],
    args: &[&OsStr],
    output: &mut (dyn FnMut(&[u8]) -> Result<()> + Send),
) -> Result<std::result::Result<(), String>> {
    let mut tool = Tool::new(QEMU_IMG, files).map_err(not_started)?;
    tool.command.args(args).stdout(Stdio::piped()).stderr(Stdio::piped());
    let runtime = Handle::current();
    let spawn = move |command| {
        let _tokio = runtime.enter();
        let child = Command::from(command).kill_on_drop(true).spawn()?;
        let id = child.id().unwrap_or_default();
        Ok((child, id))
    };
    let mut child = tool.spawn_with(spawn).map_err(not_started)?;
    let complaint = tokio::spawn(complaint(child.stderr.take()));
    let failed = || "cannot hear qemu-img out".to_owned();
    if let Some(mut stdout) = child.stdout.take() {
        let mut buffer = [0; 4096];
        while let n @ 1.. = stdout.read(&mut buffer).await.context(Kind::Internal, failed)? {
            output(&buffer[..n])?;
        }
    }
    let status = child.wait().await.context(Kind::Internal, failed)?;
    let said = complaint.await.context(Kind::Internal, failed)?;
    Ok(if status.success() { Ok(()) } else { Err(said) })
}

/// The beginning of it; the rest is read, so that it blocks nobody.
async fn complaint(stderr: Option<ChildStderr>) -> String {
    let mut text = Vec::new();
    if let Some(mut stderr) = stderr {
        let _ = (&mut stderr).take(MAX_COMPLAINT).read_to_end(&mut text).await;
        let _ = tokio::io::copy(&mut stderr, &mut tokio::io::sink()).await;
    }
    String::from_utf8_lossy(&text).trim().to_owned()
}

/// `qemu-img -p` prints `    (12.34/100%)` and returns to the start of the line.
fn last_percent(text: &str) -> Option<f64> {
    let end = text.rfind("/100%)")?;
    let start = text[..end].rfind('(')? + 1;
    text[start..end].parse::<f64>().ok().filter(|p| (0.0..=100.0).contains(p))
}

fn not_started(cause: std::io::Error) -> Error {
    let error = Error::new(Kind::BadInput, "qemu-img cannot be run on that").caused_by(&cause);
    if confine::find(QEMU_IMG).is_err() {
        return Error::new(Kind::MissingTool, "cannot run qemu-img")
            .caused_by(&cause)
            .remedy("install it: apt-get install qemu-utils");
    }
    error
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn progress_is_read_from_the_last_report() {
        assert_eq!(last_percent("    (0.00/100%)\r    (12.50/100%)\r"), Some(12.5));
        assert_eq!(last_percent("    (12.5"), None);
        assert_eq!(last_percent("(x/100%)"), None);
    }

    #[tokio::test]
    async fn an_image_that_names_another_file_is_refused() {
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
        assert_eq!(info(&base).await.unwrap().virtual_size, 1 << 20);
        let refused = info(&over).await.unwrap_err();
        assert_eq!(refused.kind, Kind::BadInput);
        assert!(refused.message.contains("refers to another file"));
    }

    #[tokio::test]
    async fn an_image_that_only_its_owner_can_read_becomes_the_agents_disk() {
        const SOMEBODY: u32 = 12345;
        let dir = tempfile::tempdir().unwrap();
        let (image, disk) = (dir.path().join("image"), dir.path().join("disk.qcow2"));
        std::fs::write(&image, vec![1; 1 << 20]).unwrap();
        std::fs::set_permissions(&image, std::os::unix::fs::PermissionsExt::from_mode(0o400)).unwrap();
        std::os::unix::fs::chown(&image, Some(SOMEBODY), Some(SOMEBODY)).unwrap();
        let (sender, _reports) = tokio::sync::mpsc::channel(64);
        import(&image, &disk, &Events::new(sender)).await.unwrap();
        assert_eq!(info(&disk).await.unwrap().format, "qcow2");
        let made = std::fs::metadata(&disk).unwrap();
        assert_eq!((made.uid(), made.mode() & 0o777), (0, 0o600));
        assert_eq!(std::fs::metadata(&image).unwrap().uid(), SOMEBODY);
    }
}
