//! A whole recovery on real VMs up to the console: how long it takes from the export on, in three parts. Ours is the time of
//! the five commands. The damaged VM's shutdown before them is its guest's, and so is its boot after them. What it costs
//! to reach the garage by SSH, measured by doing nothing in it, is taken off the three commands that run there.

use std::time::Duration;

use anyhow::{Context, Result};
use drydock_tests::story::Recovery;
use drydock_tests::world::VMRE_ADDRESS;

use crate::{Figures, median, put};

const COMMANDS: [&str; 5] = ["export", "import", "grant", "lower", "start"];
/// Of them, those that run in the garage.
const IN_THE_GARAGE: f64 = 3.0;
const ROUNDS: usize = 5;
const LONG: Duration = Duration::from_secs(60);

pub(crate) fn measure(figures: &mut Figures) -> Result<()> {
    let mut recovery = Recovery::prepare()?;
    recovery.start_and_break()?;
    let vmre = recovery.world.ssh(VMRE_ADDRESS)?;
    let nothing: Vec<f64> = (0..ROUNDS).map(|_| Ok(vmre.run("true", LONG)?.ok()?.seconds)).collect::<Result<_>>()?;
    let ssh = median(nothing) * IN_THE_GARAGE;
    let shutdown = recovery.world.admin(&["vm", "stop", "dvm"])?.ok()?.seconds;
    recovery.export()?;
    recovery.import_and_grant()?;
    recovery.lower()?;
    recovery.repair()?;
    let seconds = |id: &str| recovery.seconds.get(id).copied().with_context(|| format!("{id} was not measured"));
    let mut own = -ssh;
    for command in COMMANDS {
        own += seconds(command)?;
        put(figures, &format!("console_{command}_seconds"), seconds(command)?);
    }
    put(figures, "console_own_seconds", own);
    put(figures, "console_ssh_seconds", ssh);
    put(figures, "console_guest_shutdown_seconds", shutdown);
    let boot = seconds("login")? - seconds("start")?;
    put(figures, "console_boot_seconds", boot);
    put(figures, "console_own_over_boot", own / boot);
    recovery.close()
}
