//! What people and scripts see: results on standard output, everything else on standard error.

use std::cell::RefCell;
use std::io::IsTerminal;

use host::error::Error;
use host::wire::Progress;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

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
                println!("{}", text.trim_end());
            }
        }
    }

    /// A remark on the way.
    pub(crate) fn note(&self, text: &str) {
        if !self.json && !self.quiet {
            eprintln!("{text}");
        }
    }

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
            eprintln!("  {}", progress.message);
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

    pub(crate) fn error(&self, error: &Error) {
        self.end_bar();
        if self.json {
            println!("{}", json!({ "error": error, "exit_code": error.kind.exit_code() }));
            return;
        }
        eprintln!("error: {}", error.message);
        for cause in &error.causes {
            eprintln!("  because: {cause}");
        }
        if let Some(remedy) = &error.remedy {
            eprintln!("  next: {remedy}");
        }
    }
}

fn style() -> ProgressStyle {
    ProgressStyle::with_template("  {bar:30} {bytes}/{total_bytes}  {bytes_per_sec}  {eta} left")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
}
