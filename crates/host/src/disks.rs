//! A VM's disks as the agent makes them: the `image` crate's operations away from the async threads, with the agent's
//! errors and progress.

use std::path::Path;

use image::import::ImageInfo;
use image::{Cancel, Progress};
use outcome::{Context, Error, Events, Kind, Result};

/// Reads the header of an image that a tenant gave.
///
/// # Errors
/// `BadInput` when QEMU knows no such image, or when it names other files: a header written by a tenant must not make
/// the agent read what the tenant cannot.
pub async fn info(path: &Path) -> Result<ImageInfo> {
    let path = path.to_owned();
    blocking(move |cancel| image::import::info(&path, cancel)).await
}

/// Copies an image into a new qcow2 of the store. Stops, and leaves nothing, once the client has gone.
///
/// # Errors
/// Those of [`info`], `Interrupted`, or `Internal` with what qemu-img said.
pub async fn import(source: &Path, target: &Path, events: &Events) -> Result<ImageInfo> {
    let name = source.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let (from, to, events) = (source.to_owned(), target.to_owned(), events.clone());
    let message = format!("copying {name}");
    let imported = blocking(move |cancel| {
        let report = |progress: Progress| {
            if events.abandoned() {
                cancel.cancel();
            }
            events.bytes("copy-disk", message.clone(), progress.bytes, progress.total);
        };
        image::import::import(&from, &to, &report, cancel)
    });
    imported.await.map_err(|error| match error.kind {
        Kind::Interrupted => Error::new(Kind::Interrupted, format!("stopped while copying {name}")),
        _ => error,
    })
}

/// Makes an empty qcow2 of `size` bytes that nobody else can read.
///
/// # Errors
/// `Internal` with what qemu-img said.
pub async fn create(target: &Path, size: u64) -> Result<()> {
    let target = target.to_owned();
    blocking(move |cancel| image::create(&target, size, cancel)).await
}

/// Runs `work` on a thread where it may block. Whoever stops waiting for it stops it.
async fn blocking<T: Send + 'static>(work: impl FnOnce(&Cancel) -> image::Result<T> + Send + 'static) -> Result<T> {
    struct CancelOnDrop(Cancel);
    impl Drop for CancelOnDrop {
        fn drop(&mut self) {
            self.0.cancel();
        }
    }
    let cancel = Cancel::new();
    let _waiting = CancelOnDrop(cancel.clone());
    tokio::task::spawn_blocking(move || work(&cancel))
        .await
        .context(Kind::Internal, || "the work on an image stopped".into())?
        .map_err(|error| lift(&error))
}

/// Gives a failure its kind and, where there is one, the next step.
fn lift(error: &image::Error) -> Error {
    use image::Error as E;
    let (kind, remedy) = match error {
        E::ToolMissing { .. } => (Kind::MissingTool, Some("install it: apt-get install qemu-utils")),
        E::OtherFile { .. } => (Kind::BadInput, Some("flatten it first: qemu-img convert -O qcow2 IMAGE FLAT")),
        E::Unsupported { .. } => (Kind::BadInput, Some("convert it to qcow2, raw or VHDX")),
        E::NotStarted { .. } | E::NotAnImage { .. } | E::DirtyLog { .. } | E::Busy { .. } => (Kind::BadInput, None),
        E::Cancelled => (Kind::Interrupted, None),
        _ => (Kind::Internal, None),
    };
    let lifted = Error::of(kind, error);
    match remedy {
        Some(remedy) => lifted.remedy(remedy),
        None => lifted,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn a_file_that_is_missing_or_no_image_is_the_callers_mistake() {
        let dir = tempfile::tempdir().unwrap();
        let missing = info(&dir.path().join("none")).await.unwrap_err();
        assert_eq!(missing.kind, Kind::BadInput, "{missing}");
        let cut = dir.path().join("cut");
        std::fs::write(&cut, b"QFI\xfb\0\0\0\x03").unwrap();
        let refused = info(&cut).await.unwrap_err();
        assert_eq!(refused.kind, Kind::BadInput);
        assert!(refused.message.contains("is not a disk image"), "{refused}");
    }

    #[tokio::test]
    async fn an_import_stops_once_its_client_has_gone() {
        let dir = tempfile::tempdir().unwrap();
        let (image, disk) = (dir.path().join("image"), dir.path().join("disk.qcow2"));
        std::fs::write(&image, vec![1; 1 << 20]).unwrap();
        let (sender, reports) = tokio::sync::mpsc::channel(64);
        drop(reports);
        let stopped = import(&image, &disk, &Events::new(sender)).await.unwrap_err();
        assert_eq!(stopped.kind, Kind::Interrupted);
        assert_eq!(stopped.message, "stopped while copying image");
        assert!(!disk.exists());
    }
}
