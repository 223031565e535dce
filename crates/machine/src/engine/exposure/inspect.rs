//! Asking kernel and QEMU.

use serde_json::json;

use super::machine::{MachineAnswers, MachineExposure};
use super::process::ProcessExposure;
use super::report::ExposureReport;
use super::statements;
use super::subject::Subject;
use crate::engine::qmp::{Command, Qmp};
use crate::error::Result;

/// Inspects a VM. `digests` of the programs take a moment.
pub(crate) async fn inspect(qmp: &Qmp, subject: &Subject, digests: bool) -> Result<ExposureReport> {
    let mut answers = MachineAnswers {
        kvm: qmp.execute(Command::QueryKvm, json!({})).await?,
        version: qmp.execute(Command::QueryVersion, json!({})).await?,
        chardevs: qmp.execute(Command::QueryChardev, json!({})).await?,
        nodes: qmp.execute(Command::QueryNamedBlockNodes, json!({"flat": true})).await?,
        exports: qmp.execute(Command::QueryBlockExports, json!({})).await?,
        devices: Vec::new(),
    };
    for path in ["/machine/peripheral", "/machine/peripheral-anon"] {
        answers.devices.push(qmp.execute(Command::QomList, json!({"path": path})).await?);
    }
    let machine = MachineExposure::of(answers)?;
    let mut report = ExposureReport {
        policy: subject.policy,
        console_profile: subject.console_profile,
        accelerator: machine.accelerator,
        qemu_version: machine.qemu_version,
        qemu: ProcessExposure::of(subject.qemu, &subject.hidden, digests)?,
        swtpm: ProcessExposure::of(subject.swtpm, &subject.hidden, digests)?,
        chardevs: machine.chardevs,
        devices: machine.devices,
        block_nodes: machine.block_nodes,
        exports: machine.exports,
        holds: Vec::new(),
    };
    report.holds = statements::all(&report, subject);
    Ok(report)
}
