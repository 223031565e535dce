//! A running `qemu-img` or `qemu-nbd`.

use std::io::{self, Read};
use std::path::Path;
use std::process::{Child, ChildStdout, ExitStatus, Stdio};
use std::thread::{self, JoinHandle};

use confine::Tool;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::error::Error;
use crate::progress::Cancel;

/// Most bytes of a tool's error output that go into an error.
const MAX_STDERR: u64 = 4096;
/// How long a cancelled operation may still run.
const TICK: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };

/// A tool, confined, that does not outlive its owner.
pub(crate) struct ToolProcess {
    tool: &'static str,
    child: Child,
    stderr: Option<JoinHandle<Vec<u8>>>,
}

impl ToolProcess {
    /// Starts it, and reads its error output, so that it cannot block on that.
    pub(crate) fn spawn(name: &'static str, mut tool: Tool, path: &Path) -> Result<Self, Error> {
        tool.command.stderr(Stdio::piped());
        let mut child = tool.spawn().map_err(not_started(name, path))?;
        let stderr = child.stderr.take().map(|mut stderr| {
            thread::spawn(move || {
                let mut text = Vec::new();
                // An error here only shortens the text: the tool's failure itself is what counts.
                let _ = (&mut stderr).take(MAX_STDERR).read_to_end(&mut text);
                let _ = io::copy(&mut stderr, &mut io::sink());
                text
            })
        });
        Ok(Self { tool: name, child, stderr })
    }

    /// What it prints; empty where that is not a pipe, and once it has been taken.
    pub(crate) fn output<'a>(&mut self, cancel: &'a Cancel) -> Output<'a> {
        Output { stdout: self.child.stdout.take(), cancel }
    }

    /// Waits for its end.
    pub(crate) fn wait(&mut self) -> io::Result<ExitStatus> {
        self.child.wait()
    }

    /// The error for a tool that has failed.
    pub(crate) fn failure(&mut self, op: &'static str, path: &Path, status: ExitStatus) -> Error {
        let text = self.stderr.take().and_then(|stderr| stderr.join().ok()).unwrap_or_default();
        let stderr = String::from_utf8_lossy(&text).trim().replace('\n', "; ");
        // QEMU's tools exit with 1 for everything; only their words tell these two apart.
        if stderr.contains("log that needs to be replayed") {
            return Error::DirtyLog { path: path.to_owned() };
        }
        if stderr.contains("Is another process using the image") {
            return Error::Busy { path: path.to_owned() };
        }
        Error::Tool { tool: self.tool, op, path: path.to_owned(), status, stderr }
    }
}

impl Drop for ToolProcess {
    fn drop(&mut self) {
        // Both fail only when the child has been waited for already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A tool's output as it comes. A read fails soon after the operation was cancelled.
pub(crate) struct Output<'a> {
    stdout: Option<ChildStdout>,
    cancel: &'a Cancel,
}

impl Read for Output<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(stdout) = &mut self.stdout else { return Ok(0) };
        loop {
            if self.cancel.is_cancelled() {
                return Err(io::Error::other("cancelled"));
            }
            let mut fds = [PollFd::new(stdout, PollFlags::IN)];
            match poll(&mut fds, Some(&TICK)) {
                Ok(0) | Err(rustix::io::Errno::INTR) => continue,
                Ok(_) => {}
                Err(errno) => return Err(errno.into()),
            }
            match stdout.read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => return other,
            }
        }
    }
}

/// The error for a tool that could not be started on the file at `path`.
pub(crate) fn not_started(tool: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| match source.kind() {
        io::ErrorKind::NotFound if confine::find(tool).is_err() => Error::ToolMissing { tool },
        _ => Error::NotStarted { tool, path, source },
    }
}
