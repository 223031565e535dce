//! What the agent answers about VMs, as text.

use host::api::{PowerState, VmStatus};
use machine::exposure::ExposureReport;

use crate::fingerprint;

fn state(vm: &VmStatus) -> &'static str {
    match vm.state {
        PowerState::Off => "off",
        PowerState::Busy => "busy",
        PowerState::Running => "running",
        PowerState::Orphaned => "orphaned",
    }
}

/// The VMs of a host, one a line.
pub(super) fn table(all: &[VmStatus]) -> String {
    if all.is_empty() {
        return "no VMs; create one: drydock vm create --help".into();
    }
    let mut text = format!("{:<20} {:<9} {:<21} {:>8}  {}\n", "NAME", "STATE", "POLICY", "MEMORY", "OWNER");
    for vm in all {
        text += &format!(
            "{:<20} {:<9} {:<21} {:>4} MiB  {}{}\n",
            vm.name,
            state(vm),
            vm.policy.to_string(),
            vm.memory_mib,
            vm.owner,
            vm.recovery.as_ref().map(|_| "  (in recovery)").unwrap_or_default()
        );
    }
    text
}

/// One VM.
pub(super) fn vm(vm: &VmStatus) -> String {
    let cards: Vec<_> = vm.switch.iter().zip(&vm.mac).map(|(bridge, mac)| format!("{bridge} {mac}")).collect();
    let mut text = format!(
        "{}: {}, {}\n  id          {}\n  console     profile {}\n  memory      {} MiB, {} vCPU{}\n  network     {}\n  \
         disks       {}\n  generation  {}\n  owner       {}\n              {}\n",
        vm.name,
        state(vm),
        vm.policy,
        vm.id,
        vm.console_profile,
        vm.memory_mib,
        vm.vcpus,
        if vm.nested { ", nested virtualization" } else { "" },
        cards.join(", "),
        vm.disks.join(", "),
        vm.generation,
        vm.owner,
        fingerprint::grouped(&vm.owner_fingerprint),
    );
    if let Some(offline) = &vm.offline {
        text += &format!(
            "  offline     {} start{} left without the Host Guardian Service{}\n",
            offline.remaining,
            if offline.remaining == 1 { "" } else { "s" },
            if offline.started { "; the VM was started without it" } else { "" },
        );
    }
    if let Some(hold) = &vm.recovery {
        text += &format!("  recovery    {}: {}\n", hold.recovery_id, hold.reason);
    }
    if let Some(handed_over) = &vm.handed_over {
        text += &format!("  handed over to {}, where it may be running\n", handed_over.to);
    }
    text
}

/// The exposure report of a running VM.
pub(super) fn exposure(name: &str, report: &ExposureReport) -> String {
    let mut text = format!(
        "exposure report of {name}: {}, QEMU {} under {}\n",
        report.policy, report.qemu_version, report.accelerator
    );
    for process in [&report.qemu, &report.swtpm] {
        let user = process.uids.first().copied().unwrap_or_default();
        let digest = fingerprint::hint(process.program_sha256.as_deref().unwrap_or_default());
        text += &format!(
            "  process {:<8} {} (sha256 {digest}), user {user}, {} descriptors\n",
            process.pid,
            process.program.display(),
            process.descriptors.len(),
        );
    }
    for statement in &report.holds {
        text += &format!("  {:<5} {statement}\n", if statement.holds { "yes" } else { "NO" });
    }
    text
}
