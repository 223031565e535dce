//! SSH from inside the fabric's network namespace, by the network or through a session, with the tenant's key.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::process::{Finished, run};

/// Seconds in which a guest that is up answers, however busy the machine is.
const ANSWER: u32 = 30;

/// How to reach one guest.
#[derive(Clone)]
pub struct Ssh {
    pub netns: String,
    pub address: String,
    pub key: PathBuf,
    /// What carries the bytes instead of the network.
    pub proxy: Option<String>,
}

impl Ssh {
    /// `patience`: how many seconds the guest has to answer.
    fn base(&self, program: &str, patience: u32) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.netns, program, "-i"]).arg(&self.key).args([
            "-o",
            "StrictHostKeyChecking=no",
            "-o",
            "UserKnownHostsFile=/dev/null",
            "-o",
            "LogLevel=ERROR",
            "-o",
            "BatchMode=yes",
            "-o",
            "ServerAliveInterval=10",
        ]);
        command.arg("-o").arg(format!("ConnectTimeout={patience}"));
        if let Some(proxy) = &self.proxy {
            command.arg("-o").arg(format!("ProxyCommand={proxy}"));
        }
        command
    }

    /// A command that runs `script` in the guest.
    pub fn command(&self, script: &str) -> Command {
        self.command_within(script, ANSWER)
    }

    fn command_within(&self, script: &str, patience: u32) -> Command {
        let mut command = self.base("ssh", patience);
        command.arg(format!("root@{}", self.address)).arg(script);
        command
    }

    /// Runs a shell script in the guest.
    pub fn run(&self, script: &str, deadline: Duration) -> Result<Finished> {
        run(&mut self.command(script), b"", deadline)
    }

    /// Runs it and fails unless it succeeds.
    pub fn ok(&self, script: &str, deadline: Duration) -> Result<String> {
        Ok(self.run(script, deadline)?.ok().with_context(|| format!("in {}: {script}", self.address))?.stdout)
    }

    /// True if the guest lets us in, within one attempt.
    pub fn reachable(&self) -> bool {
        let mut attempt = self.command_within("true", 5);
        run(&mut attempt, b"", Duration::from_secs(30)).is_ok_and(|f| f.code == 0)
    }

    /// Tries until the guest lets us in. Every attempt blocks in connect for up to five seconds itself.
    pub fn wait(&self, deadline: Duration) -> Result<f64> {
        let start = Instant::now();
        loop {
            if self.reachable() {
                return Ok(start.elapsed().as_secs_f64());
            }
            if start.elapsed() > deadline {
                bail!("{} is not reached by SSH within {} s", self.address, deadline.as_secs());
            }
            std::thread::sleep(Duration::from_millis(500));
        }
    }

    pub fn put(&self, local: &std::path::Path, remote: &str) -> Result<()> {
        let mut command = self.base("scp", ANSWER);
        command.arg(local).arg(format!("root@{}:{remote}", self.address));
        run(&mut command, b"", Duration::from_secs(120))?.ok().map(drop)
    }

    pub fn get(&self, remote: &str, local: &std::path::Path) -> Result<()> {
        let mut command = self.base("scp", ANSWER);
        command.arg(format!("root@{}:{remote}", self.address)).arg(local);
        run(&mut command, b"", Duration::from_secs(120))?.ok().map(drop)
    }
}
