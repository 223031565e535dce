//! Every write of a command fails once, in turn for want of space and with an input/output error.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::exit::PANIC;
use crate::host::Host;
use crate::process::Finished;
use crate::world::path;

/// More writes than any command makes: a test that never ends would find no fault either.
pub const MOST: u32 = 100;

/// Gives this host an agent that fails the writes that are ordered, and says where to order them.
pub fn failing_agent(host: &mut Host) -> Result<PathBuf> {
    let orders = host.fabric("faults");
    host.kill_agent()?;
    host.start_agent_with(&[(fault::VARIABLE, &path(&orders))])?;
    Ok(orders)
}

/// The command under test: how it is run, and the file that orders faults from what writes for it.
pub struct Faulty<'a> {
    pub args: &'a [&'a str],
    pub orders: &'a Path,
    pub run: &'a dyn Fn(&[&str]) -> Result<Finished>,
}

impl Faulty<'_> {
    /// Does `prepare`, fails each write in turn, and lets `after` look at what was said; at the end at a run in which no
    /// write failed. Says how many writes there are.
    pub fn every_write(
        &self,
        prepare: impl Fn() -> Result<()>,
        after: impl Fn(&Finished) -> Result<()>,
    ) -> Result<u32> {
        let args = self.args;
        for nth in 1..MOST {
            let error = if nth % 2 == 0 { "EIO" } else { "ENOSPC" };
            prepare().with_context(|| format!("before write {nth} of {args:?}"))?;
            fs::write(self.orders, format!("{nth} {error}"))?;
            let done = (self.run)(args)?;
            if self.orders.exists() {
                fs::remove_file(self.orders)?;
                after(&done.ok().with_context(|| format!("{args:?} without a fault"))?)?;
                println!("  each of the {} writes of `drydock {}` failed once", nth - 1, args.join(" "));
                return Ok(nth - 1);
            }
            says_why(&done).with_context(|| format!("write {nth} of {args:?}, {error}"))?;
            after(&done).with_context(|| format!("after write {nth} of {args:?}, {error}"))?;
        }
        anyhow::bail!("{args:?} makes more than {MOST} writes")
    }
}

/// A command that can do without the write goes on; one that fails names the error.
pub fn says_why(done: &Finished) -> Result<()> {
    let named = ["os error 28", "os error 5"].iter().any(|why| done.stderr.contains(why));
    ensure!(done.code == 0 || done.code != PANIC && named, "exit code {}: {}", done.code, done.stderr);
    Ok(())
}
