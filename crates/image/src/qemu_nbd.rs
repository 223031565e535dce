//! Random access to an image through `qemu-nbd` on a private socket.
//!
//! This is how the host reads the small parts of an image that comes back, and hashes disks: QEMU reads the format,
//! memory stays constant, nothing is unpacked to a temporary file, and a hash costs one pass. The server inherits the
//! listening socket, as from systemd, because it sees no directory to make one in. It is our own child, but its
//! answers are checked as if it were not ([`crate::nbd`]).

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use command_fds::{CommandFdExt, FdMapping};
use confine::{Shown, Tool};

use crate::blocks::Blocks;
use crate::error::{Error, Result};
use crate::format::{Range, Source};
use crate::nbd::Client;
use crate::tool::{ToolProcess, not_started};

const QEMU_NBD: &str = "qemu-nbd";
/// Puts the process's own number where the program looks for whether the sockets that it inherited are meant for it
/// (sd_listen_fds(3)).
const ACTIVATE: &str = "LISTEN_FDS=1 LISTEN_PID=$$ exec \"$@\"";
/// The first of such sockets.
const LISTEN_FD: i32 = 3;
/// How long the server may take to answer one request.
const ANSWER_DEADLINE: Duration = Duration::from_secs(120);

/// The disk in an image, or a part of it, as blocks that can be read.
pub struct ServedImage {
    client: Client<UnixStream>,
    path: PathBuf,
    /// Absent where somebody else runs it.
    server: Option<ToolProcess>,
}

impl ServedImage {
    /// Serves an image, or a part of its disk.
    ///
    /// # Errors
    /// [`Error::DirtyLog`], [`Error::Busy`], or [`Error::Tool`] when QEMU cannot open the image in the stated format.
    pub fn open(source: &Source, range: Option<Range>) -> Result<Self> {
        let path = source.path();
        let options = source.options(range)?;
        let directory = tempfile::Builder::new()
            .prefix("drydock-nbd-")
            .permissions(PermissionsExt::from_mode(0o700))
            .tempdir()
            .map_err(Error::io(path, "create a private directory for"))?;
        let socket = directory.path().join("socket");
        let failed = || Error::io(path, "make a socket for");
        let listener = UnixListener::bind(&socket).map_err(failed())?;
        let stream = UnixStream::connect(&socket).and_then(with_deadlines).map_err(failed())?;
        // Nobody else connects to it.
        directory.close().map_err(failed())?;
        let program = confine::find(QEMU_NBD).map_err(not_started(QEMU_NBD, path))?;
        let mut tool = Tool::new("sh", &[Shown::Read(path)]).map_err(not_started(QEMU_NBD, path))?;
        let command = &mut tool.command;
        command.args(["-c", ACTIVATE, "sh"]).arg(program);
        command.arg("--image-opts").arg("--read-only").arg(options).stdout(Stdio::null());
        let listener = FdMapping { parent_fd: listener.into(), child_fd: LISTEN_FD };
        command.fd_mappings(vec![listener]).map_err(|error| failed()(io::Error::other(error)))?;
        let mut server = ToolProcess::spawn(QEMU_NBD, tool, path)?;
        match Client::connect(stream) {
            Ok(client) => Ok(Self { client, path: path.to_owned(), server: Some(server) }),
            Err(error) => Err(refused(&mut server, path, error)),
        }
    }

    /// Reads from an NBD server that somebody else runs.
    ///
    /// # Errors
    /// [`Error::Io`] when it does not answer.
    pub fn join(socket: &Path) -> Result<Self> {
        let stream = UnixStream::connect(socket)
            .and_then(with_deadlines)
            .map_err(Error::io(socket, "talk to the NBD server at"))?;
        let client = Client::connect(stream).map_err(Error::io(socket, "talk to the NBD server of"))?;
        Ok(Self { client, path: socket.to_owned(), server: None })
    }

    /// Ends the session and waits until the server has closed the image.
    ///
    /// # Errors
    /// [`Error::Tool`] when the server fails.
    pub fn close(mut self) -> Result<()> {
        let failed = Error::io(&self.path, "close");
        let sent = self.client.disconnect();
        let Some(server) = &mut self.server else {
            return sent.map_err(failed);
        };
        let status = sent.and_then(|()| server.wait()).map_err(failed)?;
        if status.success() {
            return Ok(());
        }
        Err(server.failure("close the image", &self.path, status))
    }
}

/// A server that cannot open the image exits: then that is the error.
fn refused(server: &mut ToolProcess, path: &Path, error: io::Error) -> Error {
    let gone = [io::ErrorKind::ConnectionReset, io::ErrorKind::UnexpectedEof, io::ErrorKind::BrokenPipe];
    if gone.contains(&error.kind())
        && let Ok(status) = server.wait()
        && !status.success()
    {
        return server.failure("open the image", path, status);
    }
    Error::io(path, "talk to the NBD server of")(error)
}

impl Blocks for ServedImage {
    fn size(&self) -> u64 {
        self.client.size()
    }

    fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.client.read_at(offset, buf)
    }

    fn write_at(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.client.write_at(offset, data)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.client.flush()
    }
}

fn with_deadlines(stream: UnixStream) -> io::Result<UnixStream> {
    stream.set_read_timeout(Some(ANSWER_DEADLINE))?;
    stream.set_write_timeout(Some(ANSWER_DEADLINE))?;
    Ok(stream)
}
