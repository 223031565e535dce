//! Running rows: a group's rows share what it is set up with, and every row is counted.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use anyhow::{Context, Result, anyhow};

/// One attempt, as docs/threat-model.md has it.
pub(crate) struct Row<S> {
    /// What the row is called in the table and on the command line.
    pub name: &'static str,
    pub attacker: &'static str,
    pub holds: &'static str,
    pub tries: &'static str,
    /// What must happen.
    pub must: &'static str,
    /// What shows that the attempt itself was sound.
    pub control: &'static str,
    pub run: fn(&mut S) -> Result<()>,
}

pub(crate) struct Suite {
    /// Words of the command line; a row with any of them in its name is run.
    filter: Vec<String>,
    names: Vec<&'static str>,
    passed: usize,
    failed: Vec<String>,
}

impl Suite {
    /// From the arguments; the options of the standard runner are passed over.
    pub(crate) fn new(args: impl Iterator<Item = String>) -> Self {
        let mut filter = Vec::new();
        let mut args = args.skip(1);
        while let Some(arg) = args.next() {
            match arg.as_str() {
                "--test-threads" => drop(args.next()),
                option if option.starts_with('-') => {}
                _ => filter.push(arg),
            }
        }
        Suite { filter, names: Vec::new(), passed: 0, failed: Vec::new() }
    }

    /// The names of all rows so far, run or not.
    pub(crate) fn names(&self) -> Vec<&'static str> {
        self.names.clone()
    }

    /// Runs those of a group's rows that were asked for. `close` is part of the test: it fails when a process is left.
    pub(crate) fn group<S>(&mut self, rows: &[Row<S>], open: impl FnOnce() -> Result<S>, close: fn(S) -> Result<()>) {
        self.names.extend(rows.iter().map(|row| row.name));
        let wanted: Vec<&Row<S>> = rows.iter().filter(|row| self.wants(row.name)).collect();
        let Some(first) = wanted.first() else { return };
        let mut scene = match guarded(open) {
            Ok(scene) => scene,
            Err(error) => return self.note(&format!("the setting of {}", first.name), Instant::now(), Err(error)),
        };
        for row in &wanted {
            println!(
                "\n{}\n  attacker  {}\n  holds     {}\n  tries     {}",
                row.name, row.attacker, row.holds, row.tries
            );
            println!("  must      {}\n  control   {}", row.must, row.control);
            let start = Instant::now();
            let done = guarded(|| (row.run)(&mut scene));
            self.note(row.name, start, done);
        }
        let start = Instant::now();
        if let Err(error) = guarded(|| close(scene)) {
            self.note(&format!("the end of {}", first.name), start, Err(error));
        }
    }

    fn wants(&self, name: &str) -> bool {
        self.filter.is_empty() || self.filter.iter().any(|word| name.contains(word.as_str()))
    }

    fn note(&mut self, name: &str, start: Instant, done: Result<()>) {
        let seconds = start.elapsed().as_secs_f64();
        match done {
            Ok(()) => {
                self.passed += 1;
                println!("  passed    {name}, {seconds:.1} s");
            }
            Err(error) => {
                println!("  FAILED    {name}, {seconds:.1} s: {error:#}");
                self.failed.push(name.to_owned());
            }
        }
    }

    /// Says what came of it. Nothing run is a failure: it proves nothing.
    pub(crate) fn close(self) -> bool {
        println!();
        for name in &self.failed {
            println!("failed: {name}");
        }
        println!("{} passed, {} failed", self.passed, self.failed.len());
        self.failed.is_empty() && self.passed > 0
    }
}

/// A panic is a failure like any other.
fn guarded<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let said = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
        Err(anyhow!("{}", said.unwrap_or("a panic without a word"))).context("it panicked")
    })
}
