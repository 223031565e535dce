//! The repair garage as its host sees it: a VM that must fit, gets nested virtualization, and has a port for each disk
//! of a recovery.

use host::{Agent, VmLock};
use machine::VmSpec;
use outcome::Events;
use outcome::{Error, Kind, Result};

use crate::damaged::require_shielded;
use crate::journal::Journal;
use crate::rg::{overlay_serials, rg_serial};

/// What the garage needs beyond the damaged VM's own memory: its kernel, QEMU, swtpm, the firmware.
const OVERHEAD_MIB: u32 = 512;

/// The garage has nested virtualization, or may be given it.
pub(crate) fn check_nesting(vmre: &mut VmLock, restart: bool) -> Result<()> {
    vmre.refuse_orphan()?;
    let garage = vmre.dir().spec()?;
    if vmre.is_running() && !garage.nested && !restart {
        return Err(Error::new(Kind::WrongState, format!("{} runs without nested virtualization", garage.name))
            .remedy("stop it first, or let this command restart it: --restart-garage"));
    }
    Ok(())
}

/// The checks that need only the two specifications.
pub(crate) fn check_specs(damaged: &VmSpec, garage: &VmSpec) -> Result<()> {
    require_shielded(damaged)?;
    require_shielded(garage)?;
    let shared = damaged.nics.iter().any(|nic| garage.nics.iter().any(|other| other.switch == nic.switch));
    if !shared {
        return Err(Error::new(
            Kind::BadInput,
            format!("{} and {} are on different bridges", damaged.name, garage.name),
        )
        .remedy("use a garage on the same bridge: inside it the repaired VM must reach its own network"));
    }
    let needed = damaged.memory_mib.saturating_add(OVERHEAD_MIB);
    if garage.memory_mib < needed {
        return Err(Error::new(
            Kind::NoSpace,
            format!(
                "{} has {} MiB of memory; to run {} inside it needs {needed} MiB",
                garage.name, garage.memory_mib, damaged.name
            ),
        )
        .remedy("use a garage with more memory"));
    }
    Ok(())
}

/// Turns nested virtualization on, for which a running garage is restarted.
pub(crate) async fn nested_on(agent: &Agent, vmre: &mut VmLock, events: &Events) -> Result<()> {
    let mut spec = vmre.dir().spec()?;
    if spec.nested {
        return Ok(());
    }
    let was_running = vmre.is_running();
    if was_running {
        vmre.stop(false, events).await?;
    }
    spec.nested = true;
    vmre.dir().write_spec(&spec)?;
    if was_running {
        host::start(agent, vmre, events).await?;
    }
    Ok(())
}

/// The garage of a recovery. `None` for one that was deleted, which has let go of everything, and where the garage is
/// not on this host.
pub(crate) fn lock(agent: &Agent, journal: &Journal) -> Result<Option<VmLock>> {
    let existing = journal.garage().filter(|garage| agent.store().vm(garage).is_ok());
    existing.map(|garage| agent.lock(garage)).transpose()
}

/// Takes the RG disk out of the garage, and the overlays of the VM's `disks` if there are any: now and at later starts.
pub(crate) async fn take_out(
    journal: &Journal,
    disks: usize,
    garage: Option<&mut VmLock>,
    events: &Events,
) -> Result<()> {
    let Some(garage) = garage else { return Ok(()) };
    events.say("detach", format!("detaching the RG disk from {}", garage.dir().name()));
    garage.detach(&rg_serial(journal.id())).await?;
    for serial in overlay_serials(journal, disks) {
        garage.detach(&serial).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use machine::{ConsoleProfile, Firmware, NicSpec, Policy};
    use uuid::Uuid;

    fn vm(name: &str) -> VmSpec {
        VmSpec {
            id: Uuid::new_v4(),
            name: name.into(),
            memory_mib: 1024,
            vcpus: 1,
            nested: false,
            policy: Policy::Shielded,
            console_profile: ConsoleProfile::default(),
            disks: Vec::new(),
            nics: vec![NicSpec { switch: "br0".into(), mac: "52:54:00:00:00:01".into() }],
            firmware: Firmware { code: "/code".into(), vars_template: "/vars".into() },
        }
    }

    #[test]
    fn each_check_refuses_on_its_own() {
        let damaged = vm("dvm");
        let good = VmSpec { memory_mib: 1024 + OVERHEAD_MIB, ..vm("vmre") };
        check_specs(&damaged, &good).unwrap();

        let small = VmSpec { memory_mib: 1023 + OVERHEAD_MIB, ..good.clone() };
        assert_eq!(check_specs(&damaged, &small).unwrap_err().kind, Kind::NoSpace);

        let mut elsewhere = good.clone();
        elsewhere.nics[0].switch = "br1".into();
        let refused = check_specs(&damaged, &elsewhere).unwrap_err();
        assert!(refused.message.contains("different bridges"));

        for open in [
            (VmSpec { policy: Policy::EncryptionSupported, ..damaged.clone() }, good.clone()),
            (damaged.clone(), VmSpec { policy: Policy::EncryptionSupported, ..good.clone() }),
        ] {
            assert_eq!(check_specs(&open.0, &open.1).unwrap_err().kind, Kind::Refused);
        }
    }
}
