//! A whole recovery on real VMs up to the console: how long it takes from the export on, and how much of that is not the
//! guest's own boot. The commands inside the garage are reached by SSH, which counts as ours.

use anyhow::{Context, Result};
use drydock_tests::story::Recovery;

use crate::{Figures, put};

pub(crate) fn measure(figures: &mut Figures) -> Result<()> {
    let mut recovery = Recovery::prepare()?;
    recovery.start_and_break()?;
    recovery.export()?;
    recovery.import_and_grant()?;
    recovery.lower()?;
    recovery.repair()?;
    let seconds = |id: &str| -> Result<f64> {
        recovery.report.steps.iter().find(|step| step.id == id).map(|step| step.seconds).context("a step is missing")
    };
    let commands = seconds("export")? + seconds("import")? + seconds("grant")? + seconds("policy-lowered")?;
    let start = recovery.start_seconds.context("the VM was not started")?;
    put(figures, "console_export_seconds", seconds("export")?);
    put(figures, "console_import_seconds", seconds("import")?);
    put(figures, "console_grant_seconds", seconds("grant")? + seconds("policy-lowered")?);
    put(figures, "console_start_seconds", start);
    put(figures, "console_own_seconds", commands + start);
    put(figures, "console_boot_seconds", recovery.login_seconds.context("no login was seen")? - start);
    recovery.world.close()
}
