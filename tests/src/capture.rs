//! Everything that a network namespace's interfaces see, written down as it passes.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::net::{AddressFamily, Protocol, RecvFlags, SocketFlags, SocketType, recv, socket_with, sockopt};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Every protocol (linux/if_ether.h), in the order of the network.
const ETH_P_ALL: u16 = 0x0003;
/// What arrives while the disk is slow.
const WAITING: usize = 64 << 20;
/// How often the end is looked for.
const TICK: Duration = Duration::from_millis(100);

pub struct Capture {
    file: PathBuf,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<()>>,
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
            while !stopped.load(Ordering::Relaxed) {
                match recv(&socket, &mut frame[..], RecvFlags::empty()) {
                    Ok((read, _)) => to.write_all(&frame[..read])?,
                    Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            Ok(())
        });
        if begun.recv().is_err() {
            match thread.join() {
                Ok(Err(error)) => return Err(error).context("cannot capture"),
                _ => bail!("cannot capture"),
            }
        }
        Ok(Capture { file: file.to_owned(), stop, thread })
    }

    /// Ends it; what passed, frame after frame.
    pub fn stop(self) -> Result<Vec<u8>> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().ok().context("the capture panicked")??;
        std::fs::read(&self.file).with_context(|| format!("cannot read {}", self.file.display()))
    }
}
