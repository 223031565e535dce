//! `drydock vm console` and `drydock vm session`: the connection to the agent becomes a stream of bytes.

use std::fs::File;
use std::io::{IsTerminal, Read, Write};
use std::os::fd::AsFd;
use std::path::Path;

use host::api::VmRequest;
use outcome::{Context, Kind, Result};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};

use crate::output::Output;

/// Ctrl-], as in telnet.
const ESCAPE: u8 = 0x1d;

/// Connects the terminal to a VM's serial console, until Ctrl-], the end of input, or the end of the VM.
///
/// # Errors
/// `Refused` where the policy allows no console; whatever else the agent answers.
pub(crate) fn console(name: &str, socket: &Path, out: &Output) -> Result<()> {
    let (stream, early) = host::client::stream(socket, &VmRequest::VmConsole { name: name.to_owned() })?;
    out.note(&format!("Connected to the console of {name}; leave with Ctrl-]."));
    let raw = RawTerminal::enter();
    let mut to_guest = stream.try_clone().context(Kind::Internal, || "cannot share the console".into())?;
    // Ends with the process: a blocked read of the terminal cannot be cancelled.
    std::thread::spawn(move || {
        let mut stdin = std::io::stdin();
        let mut buffer = [0u8; 256];
        while let Ok(n) = stdin.read(&mut buffer) {
            let typed = &buffer[..n];
            let end = typed.iter().position(|b| *b == ESCAPE);
            if n == 0 || to_guest.write_all(&typed[..end.unwrap_or(n)]).is_err() || end.is_some() {
                break;
            }
        }
        let _ = to_guest.shutdown(std::net::Shutdown::Both);
    });
    let mut from_guest = stream;
    let mut stdout = std::io::stdout();
    let mut buffer = [0u8; 4096];
    let mut shown = stdout.write_all(&early).and_then(|()| stdout.flush());
    while shown.is_ok() {
        match from_guest.read(&mut buffer) {
            Ok(n) if n > 0 => shown = stdout.write_all(&buffer[..n]).and_then(|()| stdout.flush()),
            _ => break,
        }
    }
    drop(raw);
    out.note("");
    Ok(())
}

/// Copies until the end. Not `io::copy`: it would splice, and a pipe that is spliced into stays locked while no bytes
/// arrive, for its reader too.
fn carry(from: &mut impl Read, to: &mut impl Write) -> std::io::Result<()> {
    let mut buffer = [0u8; 16 << 10];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(read) => to.write_all(&buffer[..read])?,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Raw bytes between the guest and standard input and output, as `ssh` expects them from a ProxyCommand.
///
/// # Errors
/// `Refused` where the console profile has no sessions; whatever else the agent answers.
pub(crate) fn session(name: String, socket: &Path, out: &Output) -> Result<()> {
    let lost = || "cannot share the session".to_owned();
    let (mut from_guest, early) = host::client::stream(socket, &VmRequest::VmSession { name })?;
    if std::io::stdin().is_terminal() {
        out.note("A session carries bytes for an SSH client, not for a terminal: drydock vm session --help");
    }
    let mut to_guest = from_guest.try_clone().context(Kind::Internal, lost)?;
    // Not through the standard library's buffers: a client waits for every byte.
    let mut input = File::from(std::io::stdin().as_fd().try_clone_to_owned().context(Kind::Internal, lost)?);
    let mut output = File::from(std::io::stdout().as_fd().try_clone_to_owned().context(Kind::Internal, lost)?);
    // Ends with the process, like the console's.
    std::thread::spawn(move || {
        let _ = carry(&mut input, &mut to_guest);
        let _ = to_guest.shutdown(std::net::Shutdown::Write);
    });
    let shown = output.write_all(&early).and_then(|()| carry(&mut from_guest, &mut output));
    match shown {
        // The reader may have had enough.
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(error).context(Kind::Internal, || "the session was interrupted".into())
        }
        _ => Ok(()),
    }
}

/// While this lives, the terminal passes every key to the guest.
struct RawTerminal {
    before: Termios,
}

impl RawTerminal {
    fn enter() -> Option<Self> {
        let stdin = std::io::stdin();
        if !stdin.is_terminal() {
            return None;
        }
        let before = tcgetattr(stdin.as_fd()).ok()?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(stdin.as_fd(), OptionalActions::Now, &raw).ok()?;
        Some(RawTerminal { before })
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        let _ = tcsetattr(std::io::stdin().as_fd(), OptionalActions::Now, &self.before);
    }
}
