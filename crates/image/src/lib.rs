//! Disk images: what holds a disk's bytes, in which format, and everything that is done with an image while no VM
//! uses it. Everything except the RG disk, which is the crate `garage`.
//!
//! ```text
//!  host, recovery, garage, machine          who wants something done with a disk
//!          │
//!        image    import · create · read · overlay · extents · vhdx      what is done
//!          │      format: Source, Format                                 with what
//!          │      qemu_img, qemu_nbd ── nbd                              by which tool
//!          ▼
//!       confine                             starts the tools, without rights and without a view of other files
//! ```
//!
//! Who distrusts whom: an image's contents belong to a tenant. Formats are stated by the caller and never probed, with
//! one exception: [`import::info`], which refuses an image that names other files before anything else is done with
//! it. QEMU's tools parse images in a confined process; their answers are checked as if the process were hostile,
//! because the image that it reads may be.
//!
//! All functions block. From async code call them in `tokio::task::spawn_blocking`; [`Cancel`] stops them within
//! 50 ms, and the tool with them.
//!
//! ```
//! use image::{Cancel, Digest, Format, Source, digest};
//!
//! // A caller states the format. It is stored as one word.
//! let source = Source::new("/vm/disk-0.qcow2", Format::Qcow2);
//! assert_eq!(source.format().driver(), "qcow2");
//! assert_eq!("vhdx".parse(), Ok(Format::Vhdx));
//! assert!("vmdk".parse::<Format>().is_err());
//!
//! // Anything that is `Blocks` can be hashed in constant memory: a file here, an image behind qemu-nbd elsewhere.
//! let file = tempfile::tempfile()?;
//! file.set_len(3 << 20)?;
//! let mut blocks = image::blocks::FileBlocks::new(file)?;
//! let found = digest::of_blocks(&mut blocks, &|_| {}, &Cancel::new(), &mut |_, _| Ok(()))?;
//! assert_eq!(found, Some(Digest::of(&vec![0; 3 << 20])));
//! # Ok::<(), std::io::Error>(())
//! ```

#![warn(missing_docs)]

pub mod blocks;
mod create;
pub mod digest;
mod error;
pub mod extents;
mod format;
pub mod import;
pub mod nbd;
pub mod overlay;
mod progress;
mod qemu_img;
mod qemu_nbd;
mod read;
mod tool;
pub mod vhdx;

pub use create::create;
pub use digest::Digest;
pub use error::{Error, Result};
pub use format::{Format, Range, Source, Storage, UnknownFormat};
pub use progress::{Cancel, Progress};
pub use qemu_nbd::ServedImage;
pub use read::{digest_blocks, digest_image, disk_size, replay_log};
