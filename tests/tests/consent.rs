//! A guest that does not open its disk by itself while a console may be open: the policy in force is in its vTPM.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use drydock_tests::console::Console;
use drydock_tests::denial::Denials;
use drydock_tests::exit::REFUSED;
use drydock_tests::images;
use drydock_tests::process::run;
use drydock_tests::world::{DVM_ADDRESS, World};

const SHORT: Duration = Duration::from_secs(120);
const BOOT: Duration = Duration::from_secs(300);
const PASSPHRASE: &str = "lantern-42";

#[test]
fn a_guest_asks_for_consent_while_its_policy_is_lowered() -> Result<()> {
    let mut world = World::new()?;
    let disk = world.provision_dvm(&images::folder()?.join("guest.raw"))?;
    world.create_vm("dvm", &disk, &["--memory", "768"])?;
    world.admin(&["vm", "start", "dvm"])?.ok()?;
    let guest = world.ssh(DVM_ADDRESS)?;
    guest.wait(BOOT)?;
    let opt_in = format!("{PASSPHRASE}\n");
    run(&mut guest.command("/usr/local/sbin/drydock-guest-consent"), opt_in.as_bytes(), SHORT)?.ok()?;

    // Root in the guest cannot write what the guest is to be told.
    let tpm = |command: &str| guest.run(&format!("TPM2TOOLS_TCTI=device:/dev/tpmrm0 {command}"), SHORT);
    let before = tpm("tpm2_nvread -C 0x01440001 0x01440001 | sha256sum")?.ok()?.stdout;
    for attempt in
        ["nvundefine -C p", "nvundefine -C o", "nvextend -C p -i /etc/hostname", "nvextend -C o -i /etc/hostname"]
    {
        let done = tpm(&format!("tpm2_{attempt} 0x01440001"))?;
        ensure!(done.code != 0, "root in the guest changed the policy's register: {attempt}");
    }
    ensure!(tpm("tpm2_nvread -C 0x01440001 0x01440001 | sha256sum")?.ok()?.stdout == before, "the register changed");
    // The control: what the owner's hierarchy may do, it can.
    tpm("tpm2_nvdefine -C o -s 8 0x01500007 && tpm2_nvundefine -C o 0x01500007")?.ok()?;
    world.admin(&["vm", "stop", "dvm"])?.ok()?;

    let mut denials = Denials::default();
    let lower = ["vm", "set-policy", "dvm", "encryption-supported"];
    denials.expect("lowering the policy on a guarded host", REFUSED, "guarded host", world.admin(&lower));
    world.kill_agent()?;
    world.start_local_agent()?;
    world.admin(&lower)?.ok()?;
    world.admin(&["vm", "start", "dvm"])?.ok()?;
    let mut console = Console::open(&mut world.admin_command(&["vm", "console", "dvm"])?)?;
    console.expect("consent passphrase: ", BOOT)?;
    ensure!(!guest.reachable(), "it is up without consent");
    console.type_line("guessed")?;
    console.expect("that is not it", SHORT)?;
    console.expect("consent passphrase: ", SHORT)?;
    console.type_line(PASSPHRASE)?;
    guest.wait(BOOT).context("with consent")?;
    drop(console);
    world.admin(&["vm", "stop", "dvm"])?.ok()?;

    world.admin(&["vm", "set-policy", "dvm", "shielded"])?.ok()?;
    world.admin(&["vm", "start", "dvm"])?.ok()?;
    guest.wait(BOOT).context("the control: shielded again, it opens by itself")?;
    world.admin(&["vm", "stop", "dvm"])?.ok()?;
    denials.close();
    world.close()
}
