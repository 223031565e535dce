//! Random access to an image through `qemu-nbd` on a private socket.
//!
//! This is how the host reads the small parts of a VHDX that comes back, and hashes disks: QEMU reads the
//! format, memory stays constant, nothing is unpacked to a temporary file, and a hash costs one pass. It gets the socket
//! that it listens on from us, as from systemd, since it sees no folder to make one in. The
//! client speaks the fixed newstyle handshake with `NBD_OPT_EXPORT_NAME` and simple replies (NBD protocol,
//! NetworkBlockDevice/nbd `doc/proto.md`), one request at a time. The server is our own child, but its
//! answers are checked as if it were not.

use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use command_fds::{CommandFdExt, FdMapping};
use confine::{Shown, Tool};

use crate::blocks::{Blocks, check_range};
use crate::error::{Error, Result};
use crate::qemu::{Running, not_started};

const QEMU_NBD: &str = "qemu-nbd";
/// Puts the process's own number where the program looks for whether the sockets that it inherited are meant for it
/// (sd_listen_fds(3)).
const ACTIVATE: &str = "LISTEN_FDS=1 LISTEN_PID=$$ exec \"$@\"";
/// The first of such sockets.
const LISTEN_FD: i32 = 3;
/// How long the server may take to answer one request.
const ANSWER_DEADLINE: Duration = Duration::from_secs(120);
/// Largest request, well under what every server takes (32 MiB).
const MAX_REQUEST: usize = 1 << 20;

const INIT_MAGIC: &[u8; 8] = b"NBDMAGIC";
const OPTION_MAGIC: &[u8; 8] = b"IHAVEOPT";
const FIXED_NEWSTYLE_NO_ZEROES: u16 = 0b11;
const OPT_EXPORT_NAME: u32 = 1;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;

#[derive(Clone, Copy)]
#[repr(u16)]
enum Request {
    Read = 0,
    Disconnect = 2,
}

/// An image, or a part of one, as blocks that can be read.
pub(crate) struct Nbd {
    stream: UnixStream,
    size: u64,
    cookie: u64,
    path: PathBuf,
    /// Our own.
    server: Option<Running>,
}

impl Nbd {
    /// Serves the image that `opts` describes; `path` is for errors.
    pub(crate) fn open(opts: &OsStr, path: &Path) -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("drydock-nbd-")
            .permissions(PermissionsExt::from_mode(0o700))
            .tempdir()
            .map_err(Error::io(path, "create a private folder"))?;
        let socket = folder.path().join("socket");
        let failed = || Error::io(path, "make a socket for");
        let listener = UnixListener::bind(&socket).map_err(failed())?;
        let stream = UnixStream::connect(&socket).and_then(with_deadlines).map_err(failed())?;
        // Nobody else connects to it.
        folder.close().map_err(failed())?;
        let program = confine::find(QEMU_NBD).map_err(not_started(QEMU_NBD, path))?;
        let mut tool = Tool::new("sh", &[Shown::Read(path)]).map_err(not_started("sh", path))?;
        let command = &mut tool.command;
        command.args(["-c", ACTIVATE, "sh"]).arg(program);
        command.arg("--image-opts").arg("--read-only").arg(opts).stdout(Stdio::null());
        let listener = FdMapping { parent_fd: listener.into(), child_fd: LISTEN_FD };
        command.fd_mappings(vec![listener]).map_err(|error| failed()(io::Error::other(error)))?;
        let server = Running::spawn(QEMU_NBD, tool, path)?;
        Self::greet(stream, path, Some(server))
    }

    /// Reads from a server that somebody else runs.
    pub(crate) fn join(socket: &Path) -> Result<Self> {
        let stream = UnixStream::connect(socket)
            .and_then(with_deadlines)
            .map_err(Error::io(socket, "talk to the NBD server at"))?;
        Self::greet(stream, socket, None)
    }

    fn greet(stream: UnixStream, path: &Path, server: Option<Running>) -> Result<Self> {
        let mut nbd = Self { stream, size: 0, cookie: 0, path: path.to_owned(), server };
        match nbd.handshake() {
            Ok(size) => nbd.size = size,
            Err(error) => return Err(nbd.refused(error)),
        }
        Ok(nbd)
    }

    /// A server that cannot open the image ends: then that is the error.
    fn refused(mut self, error: io::Error) -> Error {
        let gone = [io::ErrorKind::ConnectionReset, io::ErrorKind::UnexpectedEof, io::ErrorKind::BrokenPipe];
        if gone.contains(&error.kind())
            && let Some(server) = &mut self.server
            && let Ok(status) = server.child.wait()
            && !status.success()
        {
            return server.failure("open the image", &self.path, status);
        }
        Error::io(&self.path, "talk to the NBD server of")(error)
    }

    /// Ends the session and waits until the server has closed the image.
    pub(crate) fn close(mut self) -> Result<()> {
        let failed = Error::io(&self.path, "close through qemu-nbd");
        let sent = self.send(Request::Disconnect, 0, 0);
        let Some(server) = &mut self.server else {
            return sent.map_err(failed);
        };
        let status = sent.and_then(|()| server.child.wait()).map_err(failed)?;
        if status.success() {
            return Ok(());
        }
        Err(server.failure("close the image", &self.path, status))
    }

    fn handshake(&mut self) -> io::Result<u64> {
        let greeting: [u8; 18] = self.receive()?;
        let flags = u16::from_be_bytes([greeting[16], greeting[17]]);
        if &greeting[..8] != INIT_MAGIC
            || &greeting[8..16] != OPTION_MAGIC
            || flags & FIXED_NEWSTYLE_NO_ZEROES != FIXED_NEWSTYLE_NO_ZEROES
        {
            return Err(protocol("unexpected greeting"));
        }
        let mut out = Vec::with_capacity(20);
        out.extend_from_slice(&u32::from(FIXED_NEWSTYLE_NO_ZEROES).to_be_bytes());
        out.extend_from_slice(OPTION_MAGIC);
        out.extend_from_slice(&OPT_EXPORT_NAME.to_be_bytes());
        // The export's name is empty.
        out.extend_from_slice(&0u32.to_be_bytes());
        self.stream.write_all(&out)?;
        let answer: [u8; 10] = self.receive()?;
        let [size @ .., _, _] = answer;
        Ok(u64::from_be_bytes(size))
    }

    fn send(&mut self, request: Request, offset: u64, length: u32) -> io::Result<()> {
        self.cookie = self.cookie.wrapping_add(1);
        let mut out = Vec::with_capacity(28);
        out.extend_from_slice(&REQUEST_MAGIC.to_be_bytes());
        out.extend_from_slice(&0u16.to_be_bytes());
        out.extend_from_slice(&(request as u16).to_be_bytes());
        out.extend_from_slice(&self.cookie.to_be_bytes());
        out.extend_from_slice(&offset.to_be_bytes());
        out.extend_from_slice(&length.to_be_bytes());
        self.stream.write_all(&out)
    }

    fn reply(&mut self) -> io::Result<()> {
        let reply: [u8; 16] = self.receive()?;
        let [m0, m1, m2, m3, e0, e1, e2, e3, cookie @ ..] = reply;
        if u32::from_be_bytes([m0, m1, m2, m3]) != REPLY_MAGIC || u64::from_be_bytes(cookie) != self.cookie {
            return Err(protocol("unexpected reply"));
        }
        match i32::from_be_bytes([e0, e1, e2, e3]) {
            0 => Ok(()),
            // NBD's error numbers are Linux's.
            code => Err(io::Error::from_raw_os_error(code)),
        }
    }

    fn receive<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0u8; N];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }
}

impl Blocks for Nbd {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&mut self, mut offset: u64, buf: &mut [u8]) -> io::Result<()> {
        check_range(self.size, offset, buf.len())?;
        for piece in buf.chunks_mut(MAX_REQUEST) {
            self.send(Request::Read, offset, piece.len() as u32)?;
            self.reply()?;
            self.stream.read_exact(piece)?;
            offset += piece.len() as u64;
        }
        Ok(())
    }

    fn write_at(&mut self, _: u64, _: &[u8]) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn with_deadlines(stream: UnixStream) -> io::Result<UnixStream> {
    stream.set_read_timeout(Some(ANSWER_DEADLINE))?;
    stream.set_write_timeout(Some(ANSWER_DEADLINE))?;
    Ok(stream)
}

fn protocol(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}
