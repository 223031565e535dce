//! Bringing a tenant's disk image into the store, with `qemu-img`.

use std::path::Path;
use std::process::Stdio;

use serde::Deserialize;
use tokio::io::AsyncReadExt;
use tokio::process::Command;

use crate::error::{Context, Error, Kind, Result};
use crate::wire::Events;

/// What `qemu-img info` says of an image.
#[derive(Debug, Deserialize)]
pub struct ImageInfo {
    #[serde(rename = "virtual-size")]
    pub virtual_size: u64,
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
    let output = qemu_img()
        .args(["info", "--output=json"])
        .arg(path)
        .stdin(Stdio::null())
        .output()
        .await
        .map_err(missing_qemu_img)?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(Error::new(Kind::BadInput, format!("{} is not a disk image: {}", path.display(), said.trim())));
    }
    ImageInfo::read(path, &output.stdout)
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
    let mut child = qemu_img()
        .args(["convert", "-p", "-f", &info.format, "-O", "qcow2"])
        .args([source, target])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(missing_qemu_img)?;
    let mut stdout =
        child.stdout.take().ok_or_else(|| Error::new(Kind::Internal, "qemu-img has no standard output"))?;
    let mut text = String::new();
    let mut buffer = [0u8; 256];
    let name = source.file_name().unwrap_or_default().to_string_lossy().into_owned();
    loop {
        let read =
            stdout.read(&mut buffer).await.context(Kind::Internal, || "cannot read qemu-img's progress".into())?;
        if read == 0 {
            break;
        }
        if events.abandoned() {
            let _ = child.kill().await;
            let _ = std::fs::remove_file(target);
            return Err(Error::new(Kind::Interrupted, format!("stopped while copying {name}")));
        }
        text.push_str(&String::from_utf8_lossy(&buffer[..read]));
        if let Some(percent) = last_percent(&text) {
            let done = (info.virtual_size as f64 * percent / 100.0) as u64;
            events.bytes("copy-disk", format!("copying {name}"), done, info.virtual_size);
        }
        let keep = text.len().saturating_sub(32);
        text.drain(..text.floor_char_boundary(keep));
    }
    let output = child.wait_with_output().await.context(Kind::Internal, || "cannot wait for qemu-img".into())?;
    if !output.status.success() {
        let _ = std::fs::remove_file(target);
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(Error::new(Kind::Internal, format!("qemu-img cannot copy {name}: {}", said.trim())));
    }
    Ok(info)
}

/// Makes an empty qcow2 of `size` bytes that nobody else can read.
///
/// # Errors
/// `Internal` with what qemu-img said.
pub async fn create(target: &Path, size: u64) -> Result<()> {
    let output = qemu_img()
        .args(["create", "-q", "-f", "qcow2"])
        .arg(target)
        .arg(size.to_string())
        .stdin(Stdio::null())
        .output()
        .await
        .map_err(missing_qemu_img)?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(Error::new(Kind::Internal, format!("qemu-img cannot make {}: {}", target.display(), said.trim())));
    }
    Ok(())
}

/// The distribution's, whatever the agent's environment says.
fn qemu_img() -> Command {
    let mut command = Command::new("qemu-img");
    command.env_clear().env("PATH", machine::PATH).env("LC_ALL", "C");
    command
}

/// `qemu-img -p` prints `    (12.34/100%)` and returns to the start of the line.
fn last_percent(text: &str) -> Option<f64> {
    let end = text.rfind("/100%)")?;
    let start = text[..end].rfind('(')? + 1;
    text[start..end].parse::<f64>().ok().filter(|p| (0.0..=100.0).contains(p))
}

fn missing_qemu_img(cause: std::io::Error) -> Error {
    Error::new(Kind::MissingTool, "cannot run qemu-img")
        .caused_by(&cause)
        .remedy("install it: apt-get install qemu-utils")
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
}
