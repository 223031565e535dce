//! `qemu-img` and how images are named to QEMU's tools.
//!
//! Formats are always given, never probed, and names go through `file.driver=file`, so that neither a
//! disk's contents nor a file's name can make QEMU open something else.

use std::ffi::{OsStr, OsString};
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;
use std::process::{Child, ExitStatus, Stdio};
use std::thread::{self, JoinHandle};

use confine::{Shown, Tool};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::Deserialize;

use crate::container::Format;
use crate::error::{Error, Result};
use crate::progress::Cancel;

pub(crate) const QEMU_IMG: &str = "qemu-img";
/// Most bytes of a tool's complaint that go into an error.
const MAX_STDERR: u64 = 4096;
/// Most bytes that `qemu-img info` says of an image.
const MAX_INFO: usize = 1 << 20;
/// How long a cancelled operation may go on, and how often children are looked after.
const TICK: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };

impl Format {
    fn driver(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
            Self::Vhdx => "vhdx",
        }
    }
}

/// A part of an image in bytes.
#[derive(Clone, Copy)]
pub(crate) struct Range {
    pub(crate) offset: u64,
    pub(crate) size: u64,
}

/// The `--image-opts` text for an image, or for a part of it seen as a raw disk.
pub(crate) fn image_opts(path: &Path, format: Format, range: Option<Range>) -> OsString {
    let driver = format.driver();
    let (options, prefix) = match range {
        None => (format!("driver={driver}"), "file"),
        Some(Range { offset, size }) => {
            (format!("driver=raw,offset={offset},size={size},file.driver={driver}"), "file.file")
        }
    };
    let mut out = format!("{options},{prefix}.driver=file,{prefix}.filename=").into_bytes();
    for byte in path.as_os_str().as_bytes() {
        // A comma ends a value unless doubled.
        if *byte == b',' {
            out.push(b',');
        }
        out.push(*byte);
    }
    OsString::from_vec(out)
}

/// VHDX block size. Small blocks keep a mostly empty disk small on file systems and transports without
/// holes; large disks get larger blocks, because QEMU keeps 8 bytes in memory for each.
pub(crate) fn vhdx_block_size(total: u64) -> u64 {
    const TIB: u64 = 1 << 40;
    if total <= TIB { 1 << 20 } else { 32 << 20 }
}

/// Runs a subcommand with `-p` and reports its percent.
pub(crate) fn convert(
    op: &'static str,
    files: &[Shown<'_>],
    args: &[&OsStr],
    cancel: &Cancel,
    percent: &mut dyn FnMut(f64),
) -> Result<()> {
    let mut line = PercentLine::default();
    run(op, files, args, cancel, &mut |bytes| {
        if let Some(value) = line.push(bytes) {
            percent(value);
        }
    })
    .map(drop)
}

/// The size in bytes of the disk that an image holds.
pub(crate) fn virtual_size(path: &Path, format: Format, cancel: &Cancel) -> Result<u64> {
    #[derive(Deserialize)]
    struct Info {
        #[serde(rename = "virtual-size")]
        virtual_size: u64,
    }
    let opts = image_opts(path, format, None);
    let args: [&OsStr; 4] = ["info".as_ref(), "--output=json".as_ref(), "--image-opts".as_ref(), &opts];
    let mut out = Vec::new();
    run("inspect the image", &[Shown::Read(path)], &args, cancel, &mut |bytes| {
        let room = MAX_INFO - out.len();
        out.extend_from_slice(&bytes[..bytes.len().min(room)]);
    })?;
    serde_json::from_slice::<Info>(&out).map(|info| info.virtual_size).map_err(|_| Error::ToolAnswer {
        tool: QEMU_IMG,
        path: path.to_owned(),
        what: "no virtual-size in the JSON of `qemu-img info`",
    })
}

/// Replays the log of a VHDX that was not closed cleanly, and checks it.
pub(crate) fn replay_log(path: &Path, cancel: &Cancel) -> Result<()> {
    let opts = image_opts(path, Format::Vhdx, None);
    let args: [&OsStr; 6] =
        ["check".as_ref(), "-q".as_ref(), "-r".as_ref(), "all".as_ref(), "--image-opts".as_ref(), &opts];
    run("replay the VHDX log", &[Shown::Write(path)], &args, cancel, &mut |_| {}).map(drop)
}

/// Runs `qemu-img` on these files, the first of which is for errors.
pub(crate) fn run(
    op: &'static str,
    files: &[Shown<'_>],
    args: &[&OsStr],
    cancel: &Cancel,
    output: &mut dyn FnMut(&[u8]),
) -> Result<()> {
    cancel.check()?;
    let path = files.first().map_or(Path::new(""), |file| file.path());
    let mut child = Running::qemu_img(files, args, path)?;
    if let Some(mut stdout) = child.child.stdout.take() {
        let mut buffer = [0u8; 4096];
        loop {
            cancel.check()?;
            let mut fds = [PollFd::new(&stdout, PollFlags::IN)];
            match poll(&mut fds, Some(&TICK)) {
                Ok(0) | Err(rustix::io::Errno::INTR) => continue,
                Ok(_) => {}
                Err(errno) => return Err(Error::io(path, op)(errno.into())),
            }
            match stdout.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => output(&buffer[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::io(path, op)(error)),
            }
        }
    }
    let status = child.child.wait().map_err(Error::io(path, op))?;
    if status.success() {
        return Ok(());
    }
    Err(child.failure(op, path, status))
}

/// A tool, confined, that does not outlive its owner.
pub(crate) struct Running {
    tool: &'static str,
    pub(crate) child: Child,
    complaint: Option<JoinHandle<Vec<u8>>>,
}

impl Running {
    pub(crate) fn qemu_img(files: &[Shown<'_>], args: &[&OsStr], path: &Path) -> Result<Self> {
        let mut tool = Tool::new(QEMU_IMG, files).map_err(not_started(QEMU_IMG, path))?;
        tool.command.args(args).stdout(Stdio::piped());
        Self::spawn(QEMU_IMG, tool, path)
    }

    /// Spawns, and listens to complaints, so that they cannot block the child.
    pub(crate) fn spawn(name: &'static str, mut tool: Tool, path: &Path) -> Result<Self> {
        tool.command.stderr(Stdio::piped());
        let mut child = tool.spawn().map_err(not_started(name, path))?;
        let complaint = child.stderr.take().map(|mut stderr| {
            thread::spawn(move || {
                let mut text = Vec::new();
                // What cannot be read of it is left out: the failure itself is what counts.
                let _ = (&mut stderr).take(MAX_STDERR).read_to_end(&mut text);
                let _ = io::copy(&mut stderr, &mut io::sink());
                text
            })
        });
        Ok(Self { tool: name, child, complaint })
    }

    /// The error for a child that has ended badly.
    pub(crate) fn failure(&mut self, op: &'static str, path: &Path, status: ExitStatus) -> Error {
        let text = self.complaint.take().and_then(|complaint| complaint.join().ok()).unwrap_or_default();
        let stderr = String::from_utf8_lossy(&text).trim().replace('\n', "; ");
        if stderr.contains("log that needs to be replayed") {
            return Error::DirtyLog { path: path.to_owned() };
        }
        if stderr.contains("Is another process using the image") {
            return Error::Busy { path: path.to_owned() };
        }
        Error::Tool { tool: self.tool, op, path: path.to_owned(), status: status.to_string(), stderr }
    }
}

pub(crate) fn not_started(tool: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |error| match error.kind() {
        io::ErrorKind::NotFound if confine::find(tool).is_err() => Error::ToolMissing { tool },
        _ => Error::io(&path, "start a tool for")(error),
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only when the child has been waited for already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Finds the percentages in the output of `-p`: `    (25.00/100%)\r`.
#[derive(Default)]
struct PercentLine {
    pending: String,
}

impl PercentLine {
    /// Longer text without a line end is not what `-p` prints.
    const MAX: usize = 64;

    fn push(&mut self, bytes: &[u8]) -> Option<f64> {
        let mut latest = None;
        for byte in bytes {
            match byte {
                b'\r' | b'\n' => {
                    latest = Self::parse(&self.pending).or(latest);
                    self.pending.clear();
                }
                _ if self.pending.len() < Self::MAX => self.pending.push(char::from(*byte)),
                _ => {}
            }
        }
        latest
    }

    fn parse(line: &str) -> Option<f64> {
        let number = line.trim().strip_prefix('(')?.strip_suffix("/100%)")?;
        let value: f64 = number.parse().ok()?;
        (0.0..=100.0).contains(&value).then_some(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_add_options() {
        let opts = image_opts(Path::new("/x/a,file.driver=nbd"), Format::Vhdx, Some(Range { offset: 1, size: 2 }));
        assert_eq!(
            opts,
            "driver=raw,offset=1,size=2,file.driver=vhdx,file.file.driver=file,\
             file.file.filename=/x/a,,file.driver=nbd"
        );
        assert_eq!(image_opts(Path::new("b"), Format::Qcow2, None), "driver=qcow2,file.driver=file,file.filename=b");
    }

    #[test]
    fn percent_is_read_across_pieces() {
        let mut line = PercentLine::default();
        assert_eq!(line.push(b"    (0.00/100%)\r    (25."), Some(0.0));
        assert_eq!(line.push(b"50/100%)\r"), Some(25.5));
        assert_eq!(line.push(b"(nan/100%)\r(-1/100%)\r(7/100%"), None);
        assert_eq!(line.push(&[b'9'; 1000]), None);
    }
}
