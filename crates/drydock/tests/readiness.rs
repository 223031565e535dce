//! What the service manager hears from a command that serves (`Type=notify`): that it is ready once clients can connect,
//! and that it is stopping; and that it serves all the same where no service manager listens.

#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Read};
use std::net::TcpStream;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

const PATIENCE: Duration = Duration::from_secs(60);

/// A service manager's end.
fn manager(path: &Path) -> UnixDatagram {
    let socket = UnixDatagram::bind(path).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

fn heard(socket: &UnixDatagram) -> String {
    let mut buffer = [0; 256];
    let read = socket.recv(&mut buffer).unwrap();
    String::from_utf8(buffer[..read].to_vec()).unwrap()
}

fn start(arguments: &[&str], notify: &Path) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_drydock"));
    command.args(arguments).env("NOTIFY_SOCKET", notify).stdin(Stdio::null()).stderr(Stdio::piped());
    command.spawn().unwrap()
}

/// What is printed where it listens.
fn address(process: &mut Child) -> String {
    let mut stderr = BufReader::new(process.stderr.take().unwrap());
    let address = loop {
        let mut line = String::new();
        assert!(stderr.read_line(&mut line).unwrap() > 0, "it ended before it listened");
        if let Some((_, address)) = line.split_once("listening on ") {
            break address.trim().to_owned();
        }
    };
    std::thread::spawn(move || stderr.read_to_end(&mut Vec::new()));
    address
}

fn end(mut process: Child) {
    kill_process(Pid::from_child(&process), Signal::TERM).unwrap();
    assert!(process.wait().unwrap().success());
}

fn hgs(dir: &str) {
    let made = Command::new(env!("CARGO_BIN_EXE_drydock")).args(["hgs", "init", "--dir", dir]).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}

#[test]
fn the_service_is_ready_when_it_listens_and_says_when_it_stops() {
    let directory = tempfile::tempdir().unwrap();
    let dir = directory.path().join("hgs").to_str().unwrap().to_owned();
    hgs(&dir);
    let manager = manager(&directory.path().join("notify"));
    let serve = ["hgs", "serve", "--dir", &dir, "--listen", "127.0.0.1:0"];
    let mut process = start(&serve, &directory.path().join("notify"));
    assert_eq!(heard(&manager), "READY=1\n");
    let url = address(&mut process);
    TcpStream::connect(url.strip_prefix("https://").unwrap()).unwrap();
    end(process);
    assert_eq!(heard(&manager), "STOPPING=1\n");
}

#[test]
fn an_agent_is_ready_when_its_socket_listens_and_says_when_it_stops() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let (store, socket) = (path("store"), path("run/agent.sock"));
    let manager = manager(&directory.path().join("notify"));
    let serve = ["--socket", &socket, "host", "serve", "--local", "--accel", "tcg", "--store", &store];
    let mut process = start(&serve, &directory.path().join("notify"));
    assert_eq!(heard(&manager), "READY=1\n");
    UnixStream::connect(&socket).unwrap();
    assert_eq!(address(&mut process), socket);
    end(process);
    assert_eq!(heard(&manager), "STOPPING=1\n");
}

#[test]
fn a_service_manager_that_is_gone_stops_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let dir = directory.path().join("hgs").to_str().unwrap().to_owned();
    hgs(&dir);
    let mut process =
        start(&["hgs", "serve", "--dir", &dir, "--listen", "127.0.0.1:0"], &directory.path().join("nobody"));
    let url = address(&mut process);
    TcpStream::connect(url.strip_prefix("https://").unwrap()).unwrap();
    end(process);
}
