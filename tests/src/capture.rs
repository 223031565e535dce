//! Everything that a network namespace's interfaces see, written down as it passes.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::net::{AddressFamily, Protocol, RecvFlags, SocketFlags, SocketType, recv, socket_with, sockopt};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::process::run;

/// Every protocol (linux/if_ether.h), in the order of the network.
const ETH_P_ALL: u16 = 0x0003;
/// What arrives while the disk is slow.
const WAITING: usize = 64 << 20;
/// How often the end is looked for.
const TICK: Duration = Duration::from_millis(100);
const SEARCH: Duration = Duration::from_secs(120);

pub struct Capture {
    file: PathBuf,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<u64>>,
}

impl Capture {
    /// Begins to write what passes in the namespace `netns` into `file`.
    pub fn start(netns: &str, file: &Path) -> Result<Self> {
        let namespace = File::open(Path::new("/run/netns").join(netns))?;
        let mut to = File::create(file)?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let (ready, begun) = std::sync::mpsc::channel();
        // A namespace is a thread's own: this one never returns from it.
        let thread = std::thread::spawn(move || {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
            let all = std::num::NonZeroU32::new(u32::from(ETH_P_ALL.to_be())).map(Protocol::from_raw);
            let socket = socket_with(AddressFamily::PACKET, SocketType::RAW, SocketFlags::CLOEXEC, all)?;
            sockopt::set_socket_recv_buffer_size_force(&socket, WAITING)?;
            sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(TICK))?;
            ready.send(())?;
            let mut frame = vec![0; 1 << 17];
            let mut bytes = 0;
            while !stopped.load(Ordering::Relaxed) {
                match recv(&socket, &mut frame[..], RecvFlags::empty()) {
                    Ok((read, _)) => {
                        to.write_all(&frame[..read])?;
                        bytes += read as u64;
                    }
                    Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            Ok(bytes)
        });
        if begun.recv().is_err() {
            match thread.join() {
                Ok(Err(error)) => return Err(error).context("cannot capture"),
                _ => bail!("cannot capture"),
            }
        }
        Ok(Capture { file: file.to_owned(), stop, thread })
    }

    /// Ends it; how many bytes passed.
    pub fn stop(self) -> Result<(Captured, u64)> {
        self.stop.store(true, Ordering::Relaxed);
        let bytes = self.thread.join().ok().context("the capture panicked")??;
        Ok((Captured { file: self.file }, bytes))
    }
}

/// What was written down.
pub struct Captured {
    file: PathBuf,
}

impl Captured {
    /// Whether this text passed.
    pub fn holds(&self, text: &str) -> Result<bool> {
        let mut grep = Command::new("grep");
        grep.args(["--quiet", "--text", "--fixed-strings", "-e", text]).arg(&self.file).env("LC_ALL", "C");
        match run(&mut grep, b"", SEARCH)?.code {
            0 => Ok(true),
            1 => Ok(false),
            code => bail!("grep ends with {code}"),
        }
    }
}
