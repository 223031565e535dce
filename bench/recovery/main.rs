//! What a recovery costs: the export of small and large VMs, what a hand-back writes, copies beside `qemu-img` and `cp`,
//! what memory each command takes, and how long it takes to a console. Each figure is a ratio of two things done in this
//! run, or a share of one.
//!
//! ```text
//! cargo bench -p drydock-tests --bench recovery -- OUT.json [export] [handback] [copy] [memory] [console]
//! ```
//! Without names all of them are measured. Needs root; the last one boots real VMs and takes some minutes.

mod console;
mod copy;
mod export;
mod facts;
mod handback;
mod memory;
#[path = "../peak.rs"]
mod peak;

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value};

/// The figures, flat, in the order of their names.
type Figures = Map<String, Value>;
type Measure = fn(&mut Figures) -> Result<()>;

const ALL: [(&str, Measure); 5] = [
    ("export", export::measure),
    ("handback", handback::measure),
    ("copy", copy::measure),
    ("memory", memory::measure),
    ("console", console::measure),
];

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    // Cargo passes `--bench`.
    let mut arguments = std::env::args().skip(1).filter(|argument| !argument.starts_with("--"));
    let out = arguments.next().context("name the file for the figures")?;
    let wanted: Vec<String> = arguments.collect();
    if let Some(unknown) = wanted.iter().find(|name| !ALL.iter().any(|(known, _)| known == name)) {
        bail!("there is no measurement '{unknown}'");
    }
    let out = Path::new(&out);
    // What is not measured now keeps its value from an earlier run on the same file.
    let mut figures: Figures =
        std::fs::read(out).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
    facts::collect(&mut figures)?;
    for (name, measure) in ALL {
        if wanted.is_empty() || wanted.iter().any(|w| w == name) {
            eprintln!("measuring: {name}");
            measure(&mut figures).with_context(|| format!("measuring {name}"))?;
        }
    }
    if let Some(parent) = out.parent() {
        std::fs::create_dir_all(parent)?;
    }
    std::fs::write(out, serde_json::to_vec_pretty(&figures)?)?;
    println!("{}", serde_json::to_string_pretty(&figures)?);
    eprintln!("written to {}", out.display());
    Ok(())
}

/// Puts a figure in, with three digits behind the point.
fn put(figures: &mut Figures, name: &str, value: f64) {
    figures.insert(name.to_owned(), ((value * 1000.0).round() / 1000.0).into());
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
