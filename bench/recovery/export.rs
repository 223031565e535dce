//! The export in overlay mode, of VMs with disks from 1 GiB to 1 TiB, one after the other and round again. Memory is that
//! of the agent and of every tool it starts; the VMs are off.

use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use drydock_tests::world::{World, path};

use crate::{Figures, median, put};

const GIB: [u64; 4] = [1, 8, 64, 1024];
const ROUNDS: usize = 7;
const SAMPLE: Duration = Duration::from_millis(5);

pub(crate) fn measure(figures: &mut Figures) -> Result<()> {
    let world = World::new()?;
    world.create_blank("vmre", &["--memory", "1024", "--nested"])?;
    for gib in GIB {
        let disk = world.fabric("empty.qcow2");
        let mut create = Command::new("qemu-img");
        create.args(["create", "-q", "-f", "qcow2"]).arg(&disk).arg(format!("{gib}G"));
        drydock_tests::process::run(&mut create, b"", Duration::from_secs(60))?.ok()?;
        world.create_vm(&name(gib), &disk, &["--memory", "256"])?;
        std::fs::remove_file(&disk)?;
    }
    let (end, peak) = (AtomicBool::new(false), AtomicU64::new(0));
    let mut seconds: Vec<Vec<f64>> = vec![Vec::new(); GIB.len()];
    std::thread::scope(|scope| -> Result<()> {
        let sampler = scope.spawn(|| watch_memory(&world, &end, &peak));
        let done = (|| -> Result<()> {
            // The first round warms the page cache with the programs themselves.
            for round in 0..=ROUNDS {
                for (gib, seconds) in GIB.into_iter().zip(&mut seconds) {
                    let vm = name(gib);
                    let export = world.admin(&["recovery", "export", &vm, "--to", "vmre"])?.ok()?;
                    if round > 0 {
                        seconds.push(export.seconds);
                    }
                    world.admin(&["recovery", "abort", &vm])?.ok()?;
                }
            }
            Ok(())
        })();
        end.store(true, Ordering::Relaxed);
        sampler.join().ok().context("the sampler panicked")??;
        done
    })?;
    let medians: Vec<f64> = seconds.into_iter().map(median).collect();
    put(figures, "export_seconds", medians[0]);
    put(figures, "export_8gib_over_1gib", medians[1] / medians[0]);
    put(figures, "export_64gib_over_1gib", medians[2] / medians[0]);
    put(figures, "export_1tib_over_1gib", medians[3] / medians[0]);
    put(figures, "peak_mib", peak.load(Ordering::Relaxed) as f64 / 1024.0);
    world.close()
}

fn name(gib: u64) -> String {
    format!("dvm-{gib}")
}

/// The largest resident set, in KiB, of the agent and its tools, each by itself.
fn watch_memory(world: &World, end: &AtomicBool, peak: &AtomicU64) -> Result<()> {
    let mark = path(&world.store());
    while !end.load(Ordering::Relaxed) {
        for process in std::fs::read_dir("/proc")?.flatten() {
            let line = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            if !line.contains(&mark) || line.contains("qemu-system") {
                continue;
            }
            let status = std::fs::read_to_string(process.path().join("status")).unwrap_or_default();
            let largest =
                status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.split_whitespace().next()?.parse().ok());
            peak.fetch_max(largest.unwrap_or(0), Ordering::Relaxed);
        }
        std::thread::sleep(SAMPLE);
    }
    Ok(())
}
