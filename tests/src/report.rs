//! `target/demo/report.json`: every step with who did it, how long it took, and what was observed.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use serde::Serialize;

#[derive(Debug, Serialize)]
pub struct Step {
    pub id: String,
    pub actor: String,
    pub ok: bool,
    pub seconds: f64,
    pub evidence: String,
}

#[derive(Debug, Default, Serialize)]
pub struct Report {
    pub steps: Vec<Step>,
    pub ok: bool,
}

/// The ids that a whole recovery reports.
pub const IDS: [&str; 13] = [
    "dvm-shielded-start",
    "dvm-broken",
    "fabric-console-refused",
    "export",
    "import",
    "grant",
    "policy-lowered",
    "console-repair",
    "finish",
    "reinstate",
    "dvm-healthy",
    "fabric-console-still-refused",
    "recovery-key-dead",
];

impl Report {
    /// Does a step and records what it observed; an error is recorded and handed on.
    pub fn step(&mut self, id: &str, actor: &str, what: &str, work: impl FnOnce() -> Result<String>) -> Result<()> {
        eprintln!("\n── {actor}: {what}");
        let start = Instant::now();
        let done = work();
        let seconds = start.elapsed().as_secs_f64();
        let (ok, evidence) = match &done {
            Ok(evidence) => (true, evidence.clone()),
            Err(error) => (false, format!("{error:#}")),
        };
        eprintln!("   {} ({seconds:.1} s) {}", if ok { "✓" } else { "✗" }, evidence.trim());
        self.steps.push(Step { id: id.into(), actor: actor.into(), ok, seconds, evidence });
        done.map(drop)
    }

    /// Judges the whole: every step that must be there is there, and every one went well.
    pub fn close(&mut self) {
        let complete = IDS.iter().all(|id| self.steps.iter().any(|s| s.id == *id));
        self.ok = complete && self.steps.iter().all(|s| s.ok);
    }

    pub fn write(&self, path: &Path) -> Result<()> {
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        std::fs::write(path, serde_json::to_vec_pretty(self)?)
            .with_context(|| format!("cannot write {}", path.display()))
    }

    pub fn table(&self) -> String {
        let mut text = format!("\n{:<30} {:<28} {:>8}\n", "STEP", "WHO", "SECONDS");
        for step in &self.steps {
            let mark = if step.ok { ' ' } else { '✗' };
            text += &format!("{:<30} {:<28} {:>8.1} {mark}\n", step.id, step.actor, step.seconds);
        }
        let total: f64 = self.steps.iter().map(|s| s.seconds).sum();
        text += &format!("{:<30} {:<28} {total:>8.1}\n", "all", "");
        text
    }
}
