//! One runner for the programs of tpm2-tools: a deadline, bounded output, a `PATH` that is not the caller's.

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use confine::PATH;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, Command};
use zeroize::Zeroizing;

/// A hardware TPM takes up to half a minute for an RSA key.
const DEADLINE: Duration = Duration::from_secs(120);
/// How long a killed tool is waited for.
const REAP: Duration = Duration::from_secs(2);
/// Far above anything the tools write for us.
const MAX_OUTPUT: u64 = 64 << 10;
/// Longest reason that is taken from a tool's standard error, in characters.
const MAX_MESSAGE: usize = 200;

/// Why a TPM could not be used.
#[derive(Debug, thiserror::Error)]
pub enum TpmError {
    /// The tool could not be started.
    #[error("{tool} cannot be run: is Debian's package tpm2-tools installed?")]
    NoTool {
        /// Its name.
        tool: &'static str,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The tool exited with an error.
    #[error("{tool} failed: {message}")]
    Failed {
        /// Its name.
        tool: &'static str,
        /// The first line of its standard error.
        message: String,
    },
    /// The tool was killed at its deadline.
    #[error("{tool} did not finish in {} seconds", DEADLINE.as_secs())]
    TimedOut {
        /// Its name.
        tool: &'static str,
    },
    /// The tool was killed because it wrote too much.
    #[error("{tool} wrote more than {MAX_OUTPUT} bytes")]
    TooMuchOutput {
        /// Its name.
        tool: &'static str,
    },
    /// A file of the tools, or the event log, could not be used.
    #[error("{} cannot be read or written", .path.display())]
    File {
        /// Where it is.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A file is larger than anything the tools or a firmware write.
    #[error("{} is larger than such a file can be", .path.display())]
    TooLarge {
        /// Where it is.
        path: PathBuf,
    },
    /// The TPM's endorsement key is of another kind than RSA-2048.
    #[error("the TPM has no endorsement key of the default template")]
    EndorsementKey(#[source] attestation::Error),
    /// An NV index that should hold a counter of ours holds something else.
    #[error("the TPM's NV index {index} is not a counter of Drydock's")]
    ForeignCounter {
        /// Its NV index, in hexadecimal.
        index: String,
    },
}

/// The outcome of something done with a TPM.
pub type Result<T> = std::result::Result<T, TpmError>;

/// tpm2-tools, run in one directory against one TPM. Their files are named relative to that directory.
///
/// A tool gets 120 seconds; then it is killed. Of what it writes, 64 KiB are read.
#[derive(Clone, Copy)]
pub struct Tools<'a> {
    tcti: Option<&'a str>,
    dir: &'a Path,
    deadline: Duration,
}

/// What a tool left behind when it ended.
struct Output {
    status: ExitStatus,
    stdout: Zeroizing<Vec<u8>>,
    stderr: Zeroizing<Vec<u8>>,
}

impl<'a> Tools<'a> {
    /// `tcti` names the TPM as tpm2-tools do (`device:/dev/tpmrm0`); without it, their default is used. `dir` is
    /// where their files are: a private directory, which the caller made.
    #[must_use]
    pub fn new(tcti: Option<&'a str>, dir: &'a Path) -> Self {
        Tools { tcti, dir, deadline: DEADLINE }
    }

    /// Runs a tool, for the files that it writes.
    ///
    /// # Errors
    /// `NoTool`, `Failed`, `TimedOut`, `TooMuchOutput`.
    pub async fn run(&self, tool: &'static str, arguments: &[&str]) -> Result<()> {
        self.pipe(tool, arguments, &[]).await.map(drop)
    }

    /// Runs a tool with `input`, a few bytes, on its standard input, and returns its standard output.
    ///
    /// # Errors
    /// `NoTool`, `Failed`, `TimedOut`, `TooMuchOutput`.
    pub async fn pipe(&self, tool: &'static str, arguments: &[&str], input: &[u8]) -> Result<Zeroizing<Vec<u8>>> {
        let mut child = self.spawn(tool, arguments)?;
        let ended = tokio::time::timeout(self.deadline, converse(tool, &mut child, input)).await;
        let output = match ended.unwrap_or(Err(TpmError::TimedOut { tool })) {
            Ok(output) => output,
            Err(error) => {
                kill(&mut child).await;
                return Err(error);
            }
        };
        if output.status.success() {
            return Ok(output.stdout);
        }
        let text = String::from_utf8_lossy(&output.stderr);
        let message = text.lines().next().unwrap_or("it exited without an error message");
        Err(TpmError::Failed { tool, message: message.chars().take(MAX_MESSAGE).collect() })
    }

    /// Runs a tool, then removes the keys that it left in the TPM, even if it failed. Behind a resource manager there
    /// are none; a TPM without one holds three.
    pub(crate) async fn run_flushed(&self, tool: &'static str, arguments: &[&str]) -> Result<()> {
        let done = self.run(tool, arguments).await;
        let flushed = self.run("tpm2_flushcontext", &["-t"]).await;
        done.and(flushed)
    }

    fn spawn(&self, tool: &'static str, arguments: &[&str]) -> Result<Child> {
        let mut command = Command::new(tool);
        command.env("PATH", PATH);
        command.args(arguments).current_dir(self.dir).kill_on_drop(true);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        if let Some(tcti) = self.tcti {
            command.env("TPM2TOOLS_TCTI", tcti);
        }
        // The tools' libraries log to the standard error in colours and many lines.
        command.env("TSS2_LOG", "all+NONE");
        command.spawn().map_err(|source| TpmError::NoTool { tool, source })
    }

    pub(crate) fn read(&self, name: &str) -> Result<Vec<u8>> {
        read(&self.dir.join(name), MAX_OUTPUT)
    }

    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let path = self.dir.join(name);
        fs::write(&path, bytes).map_err(file_error(&path))
    }

    pub(crate) fn remove(&self, name: &str) -> Result<()> {
        let path = self.dir.join(name);
        fs::remove_file(&path).map_err(file_error(&path))
    }
}

/// Writes the input, reads both outputs to the end, and waits for the tool. Gives up as soon as the standard output is
/// longer than its bound: the tool may be waiting for a reader.
async fn converse(tool: &'static str, child: &mut Child, input: &[u8]) -> Result<Output> {
    let lost = |source| TpmError::NoTool { tool, source };
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let write = async {
        if let Some(mut pipe) = stdin {
            // A tool that failed before it read says why itself.
            let _ = pipe.write_all(input).await;
        }
        Ok(())
    };
    let output = async {
        let output = read_at_most(stdout, MAX_OUTPUT + 1).await.map_err(lost)?.0;
        if output.len() as u64 > MAX_OUTPUT { Err(TpmError::TooMuchOutput { tool }) } else { Ok(output) }
    };
    let errors = async {
        let (first, rest) = read_at_most(stderr, MAX_OUTPUT).await.map_err(lost)?;
        if let Some(mut rest) = rest {
            // Only the first line is reported, but the tool must not wait for a reader.
            tokio::io::copy(&mut rest, &mut tokio::io::sink()).await.map_err(lost)?;
        }
        Ok(first)
    };
    let ((), stdout, stderr) = tokio::try_join!(write, output, errors)?;
    let status = child.wait().await.map_err(lost)?;
    Ok(Output { status, stdout, stderr })
}

/// The first bytes from a pipe, and the pipe. The buffer never grows: that would leave unwiped copies of a secret.
async fn read_at_most<P: AsyncRead + Unpin>(
    pipe: Option<P>,
    limit: u64,
) -> std::io::Result<(Zeroizing<Vec<u8>>, Option<P>)> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(usize::try_from(limit).unwrap_or(0) + 1));
    let Some(pipe) = pipe else { return Ok((bytes, None)) };
    let mut limited = pipe.take(limit);
    while limited.read_buf(&mut *bytes).await? > 0 {}
    Ok((bytes, Some(limited.into_inner())))
}

/// Kills a tool and reaps it. One that the kernel holds on to is reaped later, by the runtime.
async fn kill(child: &mut Child) {
    // An error means that it has ended.
    let _ = child.start_kill();
    let _ = tokio::time::timeout(REAP, child.wait()).await;
}

/// Reads a file of at most `limit` bytes.
pub(crate) fn read(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = fs::File::open(path).map_err(file_error(path))?;
    file.take(limit + 1).read_to_end(&mut bytes).map_err(file_error(path))?;
    if bytes.len() as u64 > limit {
        return Err(TpmError::TooLarge { path: path.to_owned() });
    }
    Ok(bytes)
}

pub(crate) fn file_error(path: &Path) -> impl FnOnce(std::io::Error) -> TpmError {
    let path = path.to_owned();
    move |source| TpmError::File { path, source }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::time::Instant;

    use super::*;

    async fn run(deadline: Duration, script: &str) -> Result<Zeroizing<Vec<u8>>> {
        let dir = tempfile::tempdir().unwrap();
        let tools = Tools { deadline, ..Tools::new(None, dir.path()) };
        tools.pipe("sh", &["-c", script], b"input").await
    }

    #[tokio::test]
    async fn a_tool_is_killed_at_its_deadline() {
        let dir = tempfile::tempdir().unwrap();
        let tools = Tools { deadline: Duration::from_millis(300), ..Tools::new(None, dir.path()) };
        let begun = Instant::now();
        let done = tools.run("sh", &["-c", "echo $$ > pid; exec sleep 600"]).await;
        assert!(matches!(done, Err(TpmError::TimedOut { tool: "sh" })), "{done:?}");
        assert!(begun.elapsed() < Duration::from_secs(60));
        let pid = String::from_utf8(tools.read("pid").unwrap()).unwrap();
        assert!(!Path::new("/proc").join(pid.trim()).exists(), "it outlived its deadline");
    }

    #[tokio::test]
    async fn output_is_read_up_to_its_bound() {
        let all = run(DEADLINE, "cat; head -c 65531 /dev/zero").await.unwrap();
        assert_eq!((&all[..5], all.len() as u64), (&b"input"[..], MAX_OUTPUT));
        let more = run(DEADLINE, "head -c 10000000 /dev/zero").await;
        assert!(matches!(more, Err(TpmError::TooMuchOutput { .. })), "{more:?}");
        // A flood of errors neither blocks the tool nor fills the message.
        let failed = run(DEADLINE, "head -c 10000000 /dev/zero | tr '\\0' x >&2; exit 1").await;
        assert!(matches!(&failed, Err(TpmError::Failed { message, .. }) if message.len() == MAX_MESSAGE), "{failed:?}");
    }

    #[tokio::test]
    async fn a_failure_has_the_first_line_of_its_reason() {
        let failed = run(DEADLINE, "echo one >&2; echo two >&2; exit 3").await;
        assert!(matches!(&failed, Err(TpmError::Failed { message, .. }) if message == "one"), "{failed:?}");
        let silent = run(DEADLINE, "exit 3").await;
        assert_eq!(silent.unwrap_err().to_string(), "sh failed: it exited without an error message");
        let dir = tempfile::tempdir().unwrap();
        let missing = Tools::new(None, dir.path()).run("drydock-no-such-tool", &[]).await;
        assert!(matches!(missing, Err(TpmError::NoTool { .. })), "{missing:?}");
    }
}
