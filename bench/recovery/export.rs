//! The export in overlay mode, of VMs with disks from 1 GiB to 1 TiB, one after the other and round again. The VMs are
//! off.

use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use drydock_tests::world::World;

use crate::{Figures, median, put};

const GIB: [u64; 4] = [1, 8, 64, 1024];
const ROUNDS: usize = 7;

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
    let mut seconds: Vec<Vec<f64>> = vec![Vec::new(); GIB.len()];
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
    let medians: Vec<f64> = seconds.into_iter().map(median).collect();
    put(figures, "export_seconds", medians[0]);
    put(figures, "export_8gib_over_1gib", medians[1] / medians[0]);
    put(figures, "export_64gib_over_1gib", medians[2] / medians[0]);
    put(figures, "export_1tib_over_1gib", medians[3] / medians[0]);
    world.close()
}

fn name(gib: u64) -> String {
    format!("dvm-{gib}")
}
