//! A table of commands that must be refused: with which exit code, saying what, and changing nothing.

use anyhow::{Result, ensure};

use crate::exit::USAGE;
use crate::process::Finished;

/// Collects what was not refused as it should have been, so that one run shows all of it.
#[derive(Default)]
pub struct Denials {
    failures: Vec<String>,
    cases: usize,
}

impl Denials {
    pub fn expect(&mut self, name: &str, code: i32, says: &str, done: Result<Finished>) {
        let judged = done.and_then(|done| {
            ensure!(done.code == code, "exit code {}, not {code}: {}{}", done.code, done.stdout, done.stderr);
            ensure!(done.stderr.contains(says), "it does not say {says:?}: {}", done.stderr);
            ensure!(done.stderr.contains("next:") || code == USAGE, "no next step: {}", done.stderr);
            Ok(())
        });
        self.note(name, judged);
    }

    pub fn note(&mut self, name: &str, judged: Result<()>) {
        self.cases += 1;
        match judged {
            Ok(()) => println!("  refused: {name}"),
            Err(error) => {
                println!("  NOT as it should be: {name}: {error:#}");
                self.failures.push(name.to_owned());
            }
        }
    }

    pub fn close(self) {
        assert!(self.failures.is_empty(), "{} of {} cases: {:?}", self.failures.len(), self.cases, self.failures);
    }
}
