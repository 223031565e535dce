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

/// Which groups run, and which of their rows.
enum Choice {
    /// None: they are listed, as nextest wants to know them.
    List,
    /// Nothing: nextest asks for tests that are ignored, and no group is.
    Nothing,
    /// The group of this name, as nextest asks for it.
    Group(String),
    /// Rows with any of these words in their names, or all where there are none.
    Rows(Vec<String>),
}

pub(crate) struct Suite {
    choice: Choice,
    names: Vec<&'static str>,
    passed: usize,
    failed: Vec<String>,
}

impl Suite {
    /// From the arguments, which are those of the standard runner. A test in its sense is a group.
    pub(crate) fn new(args: impl Iterator<Item = String>) -> Self {
        let (mut words, mut list, mut ignored, mut exact) = (Vec::new(), false, false, false);
        let mut args = args.skip(1);
        while let Some(arg) = args.next() {
            match arg.as_str() {
                "--test-threads" | "--format" => drop(args.next()),
                "--list" => list = true,
                "--ignored" => ignored = true,
                "--exact" => exact = true,
                option if option.starts_with('-') => {}
                _ => words.push(arg),
            }
        }
        let choice = match (list, ignored) {
            (_, true) => Choice::Nothing,
            (true, false) => Choice::List,
            (false, false) if exact => Choice::Group(words.pop().unwrap_or_default()),
            (false, false) => Choice::Rows(words),
        };
        Suite { choice, names: Vec::new(), passed: 0, failed: Vec::new() }
    }

    /// The names of all rows so far, run or not.
    pub(crate) fn names(&self) -> Vec<&'static str> {
        self.names.clone()
    }

    /// Runs those of a group's rows that were asked for. `close` is part of the test: it fails when a process is left.
    pub(crate) fn group<S>(
        &mut self,
        name: &str,
        rows: &[Row<S>],
        open: impl FnOnce() -> Result<S>,
        close: fn(S) -> Result<()>,
    ) {
        self.names.extend(rows.iter().map(|row| row.name));
        if matches!(self.choice, Choice::List) {
            println!("{name}: test");
        }
        let wanted: Vec<&Row<S>> = rows.iter().filter(|row| self.wants(name, row.name)).collect();
        if wanted.is_empty() {
            return;
        }
        let mut scene = match guarded(open) {
            Ok(scene) => scene,
            Err(error) => return self.note(&format!("the setting of {name}"), Instant::now(), Err(error)),
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
            self.note(&format!("the end of {name}"), start, Err(error));
        }
    }

    fn wants(&self, group: &str, row: &str) -> bool {
        match &self.choice {
            Choice::List | Choice::Nothing => false,
            Choice::Group(name) => name == group,
            Choice::Rows(words) => words.is_empty() || words.iter().any(|word| row.contains(word.as_str())),
        }
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
        if matches!(self.choice, Choice::List | Choice::Nothing) {
            return true;
        }
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
