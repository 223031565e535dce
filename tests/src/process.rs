//! Running programs: to their end with a deadline, or in the background until they say that they are ready.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

/// What a finished program left.
#[derive(Debug, Clone)]
pub struct Finished {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
    pub seconds: f64,
}

impl Finished {
    /// The last JSON line on standard output.
    pub fn json(&self) -> Result<serde_json::Value> {
        let line = self.stdout.lines().last().context("the program printed nothing")?;
        serde_json::from_str(line).with_context(|| format!("not JSON: {line}"))
    }

    /// Fails unless the program succeeded.
    pub fn ok(self) -> Result<Finished> {
        if self.code != 0 {
            bail!("exit code {}\n{}\n{}", self.code, self.stdout.trim(), self.stderr.trim());
        }
        Ok(self)
    }
}

/// Runs a program in a process group of its own and kills the group at the deadline.
pub fn run(command: &mut Command, input: &[u8], deadline: Duration) -> Result<Finished> {
    let start = Instant::now();
    let mut child = command
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {:?}", command.get_program()))?;
    let mut stdin = child.stdin.take().context("no standard input")?;
    let input = input.to_vec();
    std::thread::spawn(move || {
        let _ = stdin.write_all(&input);
    });
    let collect = |stream: Option<Box<dyn Read + Send>>| {
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            if let Some(mut stream) = stream {
                let _ = stream.read_to_end(&mut bytes);
            }
            String::from_utf8_lossy(&bytes).into_owned()
        })
    };
    let stdout = collect(child.stdout.take().map(|s| Box::new(s) as _));
    let stderr = collect(child.stderr.take().map(|s| Box::new(s) as _));
    let (done, ended) = mpsc::channel();
    let group = child.id();
    let waiter = std::thread::spawn(move || {
        let status = child.wait();
        let _ = done.send(());
        status
    });
    if let Err(RecvTimeoutError::Timeout) = ended.recv_timeout(deadline) {
        kill_group(group);
        let _ = waiter.join();
        bail!(
            "{:?} did not end within {} s\n{}\n{}",
            command.get_args().collect::<Vec<_>>(),
            deadline.as_secs(),
            stdout.join().unwrap_or_default(),
            stderr.join().unwrap_or_default()
        );
    }
    let status = waiter.join().ok().context("the waiter panicked")??;
    Ok(Finished {
        code: status.code().unwrap_or(-1),
        stdout: stdout.join().unwrap_or_default(),
        stderr: stderr.join().unwrap_or_default(),
        seconds: start.elapsed().as_secs_f64(),
    })
}

fn kill_group(leader: u32) {
    if let Some(pid) = i32::try_from(leader).ok().and_then(rustix::process::Pid::from_raw) {
        let _ = rustix::process::kill_process_group(pid, rustix::process::Signal::KILL);
    }
}

/// A service in the background; killed with all its children when dropped.
pub struct Service {
    name: String,
    child: Child,
    log: Arc<Mutex<VecDeque<String>>>,
    spare_children: bool,
}

impl Service {
    /// Starts it and waits for a line on standard error that contains `ready`; returns that line too.
    pub fn start(name: &str, command: &mut Command, ready: &str, deadline: Duration) -> Result<(Self, String)> {
        let mut child = command
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        let stderr = child.stderr.take().context("no standard error")?;
        let log = Arc::new(Mutex::new(VecDeque::new()));
        let kept = Arc::clone(&log);
        let (lines, seen) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(std::io::Result::ok) {
                let mut log = kept.lock().unwrap_or_else(PoisonError::into_inner);
                if log.len() == 500 {
                    log.pop_front();
                }
                log.push_back(line.clone());
                let _ = lines.send(line);
            }
        });
        let service = Service { name: name.to_owned(), child, log, spare_children: false };
        let end = Instant::now() + deadline;
        loop {
            match seen.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(line) if line.contains(ready) => return Ok((service, line)),
                Ok(_) => {}
                Err(_) => bail!("{name} did not get ready:\n{}", service.log()),
            }
        }
    }

    pub fn log(&self) -> String {
        let log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        log.iter().fold(String::new(), |text, line| text + line + "\n")
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Kills it and none of its children.
    pub fn kill_alone(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        self.spare_children = true;
        Ok(())
    }

    /// Waits until it has ended by itself, and leaves its children alone.
    pub fn died(mut self, deadline: Duration) -> Result<()> {
        let end = Instant::now() + deadline;
        while self.child.try_wait()?.is_none() {
            if Instant::now() > end {
                bail!("{} lives on:\n{}", self.name, self.log());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        self.spare_children = true;
        Ok(())
    }

    /// Ctrl-C, in its terminal.
    pub fn interrupt(self, deadline: Duration) -> Result<()> {
        kill_process_group(self.child_id()?, Signal::INT)?;
        self.ended("SIGINT", deadline)
    }

    /// Asks it to end and waits.
    pub fn terminate(self, deadline: Duration) -> Result<()> {
        kill_process(self.child_id()?, Signal::TERM)?;
        self.ended("SIGTERM", deadline)
    }

    fn child_id(&self) -> Result<Pid> {
        i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).context("no process id")
    }

    fn ended(mut self, signal: &str, deadline: Duration) -> Result<()> {
        let end = Instant::now() + deadline;
        while self.child.try_wait()?.is_none() {
            if Instant::now() > end {
                bail!("{} did not end on {signal}:\n{}", self.name, self.log());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if !self.spare_children {
            kill_group(self.child.id());
        }
        let _ = self.child.wait();
    }
}
