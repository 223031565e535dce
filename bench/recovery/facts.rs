//! What the figures were measured on.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::Figures;

pub(crate) fn collect(figures: &mut Figures) -> Result<()> {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo")?;
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ")).map(|(_, m)| m);
    let memory = std::fs::read_to_string("/proc/meminfo")?;
    let kib: u64 = memory.split_whitespace().nth(1).and_then(|n| n.parse().ok()).context("/proc/meminfo")?;
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let facts = [
        ("cpu", model.unwrap_or("unknown").to_owned()),
        ("cores", std::thread::available_parallelism()?.to_string()),
        ("memory_mib", (kib / 1024).to_string()),
        ("kernel", std::fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned()),
        ("file_system", said("stat", &["-f", "-c", "%T", &here.display().to_string()])?),
        ("qemu", said("qemu-img", &["--version"])?.lines().next().unwrap_or_default().to_owned()),
        ("drydock", env!("CARGO_PKG_VERSION").to_owned()),
    ];
    for (name, value) in facts {
        figures.insert(name.to_owned(), value.into());
    }
    Ok(())
}

fn said(program: &str, args: &[&str]) -> Result<String> {
    let output = Command::new(program).args(args).output().with_context(|| format!("cannot run {program}"))?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
