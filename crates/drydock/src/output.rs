//! What people and scripts see: results on standard output, everything else on standard error.

use std::cell::RefCell;
use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressStyle};
use outcome::{Error, Progress};
use serde_json::{Value, json};

/// Where a command prints, and how.
pub(crate) struct Output {
    json: bool,
    quiet: bool,
    bar: RefCell<Option<(String, ProgressBar)>>,
}

impl Output {
    pub(crate) fn new(json: bool, quiet: bool) -> Self {
        Output { json, quiet, bar: RefCell::new(None) }
    }

    /// The result: `people` as text, or `value` as JSON.
    pub(crate) fn result(&self, value: &Value, people: impl FnOnce() -> String) {
        self.end_bar();
        if self.json {
            println!("{}", json!({ "result": value }));
        } else {
            let text = people();
            if !text.is_empty() {
                println!("{}", printable(text.trim_end()));
            }
        }
    }

    /// A remark during the work.
    pub(crate) fn note(&self, text: &str) {
        if !self.json && !self.quiet {
            eprintln!("{}", printable(text));
        }
    }

    /// What a long step is doing.
    pub(crate) fn progress(&self, progress: &Progress) {
        if self.quiet {
            return;
        }
        if self.json {
            println!("{}", json!({ "progress": progress }));
            return;
        }
        let mut bar = self.bar.borrow_mut();
        let known = bar.as_ref().is_some_and(|(step, _)| *step == progress.step && progress.total > 0);
        if !known {
            if let Some((_, old)) = bar.take() {
                old.finish_and_clear();
            }
            eprintln!("  {}", printable(&progress.message));
            if progress.total > 0 && std::io::stderr().is_terminal() {
                let new = ProgressBar::new(progress.total).with_style(style());
                *bar = Some((progress.step.clone(), new));
            } else if progress.total > 0 {
                *bar = Some((progress.step.clone(), ProgressBar::hidden()));
            }
        }
        if let Some((_, bar)) = bar.as_ref() {
            bar.set_position(progress.done);
        }
    }

    fn end_bar(&self) {
        if let Some((_, bar)) = self.bar.borrow_mut().take() {
            bar.finish_and_clear();
        }
    }

    /// The error that ends the command: message, causes, next step.
    pub(crate) fn error(&self, error: &Error) {
        self.end_bar();
        if self.json {
            println!("{}", json!({ "error": error, "exit_code": error.kind.exit_code() }));
            return;
        }
        eprintln!("error: {}", printable(&error.message));
        for cause in &error.causes {
            eprintln!("  because: {}", printable(cause));
        }
        if let Some(remedy) = &error.remedy {
            eprintln!("  next: {}", printable(remedy));
        }
    }
}

/// What is printed may quote a file or a certificate that somebody else wrote: no part of it may control the terminal.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && !matches!(c, '\n' | '\t') { '\u{fffd}' } else { c }).collect()
}

fn style() -> ProgressStyle {
    ProgressStyle::with_template("  {bar:30} {bytes}/{total_bytes}  {bytes_per_sec}  {eta} left")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use outcome::Kind;

    use super::*;

    #[test]
    fn nothing_printed_steers_the_terminal() {
        assert_eq!(printable("a\tb\nc \u{1b}[2J\u{9b}1m\r\u{7f}"), "a\tb\nc \u{fffd}[2J\u{fffd}1m\u{fffd}\u{fffd}");
    }

    #[test]
    fn the_exit_codes_are_those_of_the_documentation() {
        let rows = include_str!("../../../docs/exit-codes.md").lines().filter_map(|line| {
            let mut cells = line.strip_prefix("| ")?.split('|').map(str::trim);
            Some((cells.next()?.parse::<u8>().ok()?, cells.next()?.trim_matches('`')))
        });
        let documented: Vec<_> = rows.filter(|(_, kind)| !kind.is_empty()).collect();
        for (code, kind) in &documented {
            let kind: Kind = serde_json::from_value(json!(kind)).unwrap();
            assert_eq!(kind.exit_code(), *code, "{kind:?}");
        }
        // One row for each kind: 1 to 11 without 2, which is clap's, and 130.
        let codes: Vec<u8> = documented.iter().map(|(code, _)| *code).collect();
        assert_eq!(codes, [1, 3, 4, 5, 6, 7, 8, 9, 10, 11, 130]);
    }
}
