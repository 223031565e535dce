//! `qemu-img`: the one place that runs it.

use std::ffi::OsStr;
use std::io::Read;
use std::path::Path;
use std::process::Stdio;

use confine::{Shown, Tool};

use crate::error::{Error, Result};
use crate::progress::Cancel;
use crate::tool::{Output, ToolProcess, not_started};

pub(crate) const QEMU_IMG: &str = "qemu-img";
/// Most bytes that `qemu-img info` may say of an image.
const MAX_INFO: u64 = 1 << 20;

/// Runs `qemu-img` on these files, the first of which is for errors, and gives its output to `read`. Ends it when
/// `read` fails or the operation is cancelled.
///
/// # Errors
/// What `read` returns; otherwise [`Error::Tool`] and its kin when qemu-img fails.
pub(crate) fn run<T>(
    op: &'static str,
    files: &[Shown<'_>],
    args: &[&OsStr],
    cancel: &Cancel,
    read: impl FnOnce(Output<'_>) -> Result<T>,
) -> Result<T> {
    cancel.check()?;
    let path = files.first().map_or(Path::new(""), |file| file.path());
    let mut tool = Tool::new(QEMU_IMG, files).map_err(not_started(QEMU_IMG, path))?;
    tool.command.args(args).stdout(Stdio::piped());
    let mut process = ToolProcess::spawn(QEMU_IMG, tool, path)?;
    let output = process.output(cancel);
    let read = read(output);
    // It says nothing else when a read failed for that reason.
    cancel.check()?;
    let read = read?;
    let status = process.wait().map_err(Error::io(path, op))?;
    if !status.success() {
        return Err(process.failure(op, path, status));
    }
    Ok(read)
}

/// Runs a subcommand that prints nothing of interest.
pub(crate) fn run_quietly(op: &'static str, files: &[Shown<'_>], args: &[&OsStr], cancel: &Cancel) -> Result<()> {
    let path = files.first().map_or(Path::new(""), |file| file.path());
    run(op, files, args, cancel, |mut output| {
        std::io::copy(&mut output, &mut std::io::sink()).map(drop).map_err(Error::io(path, op))
    })
}

/// Runs a subcommand with `-p` and reports its percent.
pub(crate) fn run_reporting(
    op: &'static str,
    files: &[Shown<'_>],
    args: &[&OsStr],
    cancel: &Cancel,
    percent: &mut dyn FnMut(f64),
) -> Result<()> {
    let path = files.first().map_or(Path::new(""), |file| file.path());
    run(op, files, args, cancel, |mut output| {
        let mut line = PercentLine::default();
        let mut buffer = [0u8; 4096];
        loop {
            match output.read(&mut buffer).map_err(Error::io(path, op))? {
                0 => return Ok(()),
                count => {
                    if let Some(value) = line.push(&buffer[..count]) {
                        percent(value);
                    }
                }
            }
        }
    })
}

/// What `qemu-img info` says, as JSON of at most 1 MiB; the rest is cut off, which no JSON survives.
pub(crate) fn info(image: &Path, args: &[&OsStr], cancel: &Cancel) -> Result<Vec<u8>> {
    const OP: &str = "inspect the image";
    let args = [&["info".as_ref(), "--output=json".as_ref()], args].concat();
    run(OP, &[Shown::Read(image)], &args, cancel, |mut output| {
        let mut json = Vec::new();
        (&mut output).take(MAX_INFO).read_to_end(&mut json).map_err(Error::io(image, OP))?;
        std::io::copy(&mut output, &mut std::io::sink()).map_err(Error::io(image, OP))?;
        Ok(json)
    })
}

/// The error for an answer that makes no sense.
pub(crate) fn bad_answer(path: &Path, what: &'static str) -> Error {
    Error::ToolAnswer { tool: QEMU_IMG, path: path.to_owned(), what }
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
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn percent_is_read_across_pieces() {
        let mut line = PercentLine::default();
        assert_eq!(line.push(b"    (0.00/100%)\r    (25."), Some(0.0));
        assert_eq!(line.push(b"50/100%)\r"), Some(25.5));
        assert_eq!(line.push(b"(nan/100%)\r(-1/100%)\r(7/100%"), None);
        assert_eq!(line.push(&[b'9'; 1000]), None);
    }

    #[test]
    fn a_cancelled_run_ends_at_once_and_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image");
        std::fs::write(&image, [0; 512]).unwrap();
        let args: [&OsStr; 4] = ["info".as_ref(), "-f".as_ref(), "raw".as_ref(), image.as_os_str()];
        let cancel = Cancel::new();
        let stopped = run("inspect", &[Shown::Read(&image)], &args, &cancel, |mut output| {
            cancel.cancel();
            output.read(&mut [0]).map_err(Error::io(&image, "inspect"))
        });
        assert!(matches!(stopped, Err(Error::Cancelled)), "{stopped:?}");
        let begun = run("inspect", &[Shown::Read(&image)], &args, &cancel, |_| Ok(()));
        assert!(matches!(begun, Err(Error::Cancelled)), "{begun:?}");
    }
}
