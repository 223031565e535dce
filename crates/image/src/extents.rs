//! Where the data of a disk image lies, so that holes are not copied and data is copied without going through QEMU.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use confine::Shown;
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, SeqAccess, Visitor};

use crate::error::{Error, Result};
use crate::format::{Format, Source};
use crate::progress::Cancel;
use crate::qemu_img;

/// A stretch of a disk that holds data, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Where it begins on the disk.
    pub start: u64,
    /// How long it is.
    pub length: u64,
    /// Where it begins in the image file, if the data lies there as it is; otherwise QEMU must read it.
    pub offset: Option<u64>,
}

/// Calls `each` for all data of a disk of `size` bytes, in order. Memory does not grow with the disk.
///
/// # Errors
/// [`Error::Io`]; [`Error::Tool`] and its kin; `Cancelled`; whatever `each` returns.
pub fn each(source: &Source, size: u64, cancel: &Cancel, each: &mut dyn FnMut(Extent) -> Result<()>) -> Result<()> {
    match source.format() {
        Format::Raw => of_file(source.path(), size, each),
        Format::Qcow2 | Format::Vhdx => mapped(source, size, cancel, each),
    }
}

fn of_file(path: &Path, size: u64, each: &mut dyn FnMut(Extent) -> Result<()>) -> Result<()> {
    use rustix::fs::{SeekFrom, seek};
    let failed = || Error::io(path, "find the data of");
    let file = File::open(path).map_err(Error::io(path, "open"))?;
    let mut at = 0;
    while at < size {
        let start = match seek(&file, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(rustix::io::Errno::NXIO) => return Ok(()),
            // A file system without holes, or a block device.
            Err(_) if at == 0 => return each(Extent { start: 0, length: size, offset: Some(0) }),
            Err(errno) => return Err(failed()(errno.into())),
        };
        let end = seek(&file, SeekFrom::Hole(start)).map_err(|errno| failed()(errno.into()))?.min(size);
        if start >= end {
            return Ok(());
        }
        each(Extent { start, length: end - start, offset: Some(start) })?;
        at = end;
    }
    Ok(())
}

/// A line of `qemu-img map`.
#[derive(Deserialize)]
struct Mapped {
    start: u64,
    length: u64,
    /// False: it reads as zeros, whatever the file holds there.
    data: bool,
    #[serde(default)]
    zero: bool,
    #[serde(default)]
    compressed: bool,
    offset: Option<u64>,
}

fn mapped(source: &Source, size: u64, cancel: &Cancel, each: &mut dyn FnMut(Extent) -> Result<()>) -> Result<()> {
    let path = source.path();
    let options = source.options(None)?;
    let args = ["map".as_ref(), "--output=json".as_ref(), "--image-opts".as_ref(), options.as_os_str()];
    qemu_img::run("find the data of the image", &[Shown::Read(path)], &args, cancel, |output| {
        read_map(output, path, size, cancel, each)
    })?
    .map_err(|_| qemu_img::bad_answer(path, "not the JSON of `qemu-img map`"))
}

/// Reads what `qemu-img map` says of the image at `path` with a disk of `size` bytes, and calls `each` for all data in
/// order. The inner error is that of the JSON, which may be cut off because the tool failed.
///
/// # Errors
/// `ToolAnswer` for a map that does not fit the disk, `Cancelled`, and whatever `each` returns.
pub fn read_map(
    json: impl Read,
    path: &Path,
    size: u64,
    cancel: &Cancel,
    each: &mut dyn FnMut(Extent) -> Result<()>,
) -> Result<serde_json::Result<()>> {
    let mut failure = None;
    let mut next = 0;
    let mut take = |line: Mapped| -> Result<()> {
        cancel.check()?;
        // It is our own child, but the image it reads is not ours.
        let end = line.start.checked_add(line.length).filter(|end| line.start >= next && *end <= size);
        next = end.ok_or_else(|| qemu_img::bad_answer(path, "a map that does not fit the disk"))?;
        if !line.data || line.zero || line.length == 0 {
            return Ok(());
        }
        each(Extent { start: line.start, length: line.length, offset: line.offset.filter(|_| !line.compressed) })
    };
    let mut json = serde_json::Deserializer::from_reader(std::io::BufReader::new(json));
    let parsed = Lines(&mut |line| take(line).map_err(|error| failure = Some(error)).is_ok())
        .deserialize(&mut json)
        .and_then(|()| json.end());
    match failure {
        Some(error) => Err(error),
        None => Ok(parsed),
    }
}

/// Passes on each element of an array while it is read.
struct Lines<'a>(&'a mut dyn FnMut(Mapped) -> bool);

impl<'de> DeserializeSeed<'de> for Lines<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> std::result::Result<(), D::Error> {
        from.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Lines<'_> {
    type Value = ();

    fn expecting(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str("the map of an image")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut lines: A) -> std::result::Result<(), A::Error> {
        while let Some(line) = lines.next_element()? {
            if !(self.0)(line) {
                return Err(serde::de::Error::custom("stopped"));
            }
        }
        Ok(())
    }
}
