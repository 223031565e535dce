//! What a hand-back writes: everything that reaches the disk under the host's store from `reinstate` to its end,
//! journals of the file system included, over what the repair changed.

use anyhow::{Context, Result};
use drydock_tests::tenant::{Plan, hand_back, repair};
use drydock_tests::world::World;

use crate::{Figures, put};

const MIB: u64 = 1 << 20;
/// MiB that the repair changes.
const CHANGED: [u64; 3] = [1, 100, 1000];
/// The file system of the store, and the VM's disk, in MiB.
const STORE: u32 = 6144;
const DISK: u64 = 2048;

pub(crate) fn measure(figures: &mut Figures) -> Result<()> {
    for changed in CHANGED {
        let world = World::on_device(STORE)?;
        let disk = world.fabric("dvm.raw");
        std::fs::File::create(&disk)?.set_len(DISK * MIB)?;
        world.create_vm("dvm", &disk, &["--memory", "256"])?;
        std::fs::remove_file(&disk)?;
        world.create_blank("vmre", &["--memory", "1024", "--nested"])?;
        world.admin(&["recovery", "export", "dvm", "--to", "vmre"])?.ok()?;
        repair(&world, "dvm", 16 * MIB, changed * MIB)?;
        hand_back(&world, "dvm", &Plan::default(), |_| Ok(()))?;
        let before = world.bytes_written()?;
        world.admin(&["recovery", "reinstate", "dvm"])?.ok()?;
        let written = world.bytes_written()? - before;
        world.admin(&["vm", "stop", "dvm", "--force"])?.ok()?;
        anyhow::ensure!(world.disk_holds("dvm", 16 * MIB, changed * MIB, 77)?, "the repair did not arrive");
        let name = format!("handback_overhead_{changed}");
        put(figures, &name, written as f64 / (changed * MIB) as f64);
        put(figures, &format!("handback_mib_beyond_{changed}"), written as f64 / MIB as f64 - changed as f64);
        world.close().context("after the hand-back")?;
    }
    Ok(())
}
