//! Console profile 2019: the owner reaches a guest without a network by SSH through the fabric, and nobody else reaches it.

use std::fs;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use drydock_tests::denial::Denials;
use drydock_tests::exit::{REFUSED, WRONG_STATE};
use drydock_tests::host::Host;
use drydock_tests::images;
use drydock_tests::process::run;
use drydock_tests::ssh::Ssh;
use drydock_tests::tenant::{Plan, hand_back};
use drydock_tests::world::{DVM_ADDRESS, World};
use machine::exposure::ExposureReport;
use serde_json::{Value, json};

const SHORT: Duration = Duration::from_secs(120);
const BOOT: Duration = Duration::from_secs(400);
const THERE: &str = "10.77.0.2:7446";
/// Where nobody looks for it.
const ELSEWHERE: &str = "10.78.0.10";
const SESSIONS: [&str; 2] = ["--console-profile", "2019"];

/// Channels, and devices that have to do with serial ports.
fn exposed(world: &World, vm: &str) -> Result<(Vec<String>, Vec<String>)> {
    let proof: ExposureReport = serde_json::from_value(world.admin_json(&["vm", "show", vm, "--proof"])?)?;
    for statement in &proof.holds {
        ensure!(statement.holds, "{statement}");
    }
    let mut channels: Vec<_> = proof.chardevs.into_iter().map(|c| c.label).collect();
    channels.sort();
    let mut serial: Vec<_> = proof.devices.into_iter().map(|d| d.driver).filter(|d| d.contains("serial")).collect();
    serial.sort();
    Ok((channels, serial))
}

/// Waits until the agent has written down that somebody opened a session.
fn opened(host: &Host) -> Result<()> {
    let since = Instant::now();
    while !host.agent_log().contains("a session was opened") {
        ensure!(since.elapsed() < SHORT, "no session was opened: {}", host.agent_log());
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

#[test]
fn a_guest_without_a_network_is_reached_by_its_owner_only() -> Result<()> {
    let world = World::new()?;
    let disk = world.provision_dvm(&images::folder()?.join("guest.raw"))?;
    world.create_vm("dvm", &disk, &[&["--memory", "768"], &SESSIONS[..]].concat())?;
    fs::remove_file(disk)?;
    let mut denials = Denials::default();
    denials.expect("a session with a VM that is off", WRONG_STATE, "is off", world.admin(&["vm", "session", "dvm"]));
    world.admin(&["vm", "start", "dvm"])?.ok()?;
    ensure!(world.admin_json(&["vm", "show", "dvm"])?["console_profile"] == "2019");
    ensure!(world.admin_json(&["vm", "list"])?[0]["console_profile"] == "2019");
    ensure!(world.admin(&["vm", "show", "dvm"])?.ok()?.stdout.contains("profile 2019"));
    ensure!(exposed(&world, "dvm")?.1 == ["virtio-serial-pci"], "there is more than a session's place");

    let network = world.ssh(DVM_ADDRESS)?;
    let session = world.ssh_session("dvm")?;
    let waited = session.wait(BOOT)?;
    println!("  reached through a session {waited:.0} s after the start");
    network.wait(SHORT).context("the control: by the network too")?;
    let move_to = |from: &str, to: &str| {
        let file = "/etc/systemd/network/10-lan.network";
        session.ok(&format!("sed -i s/^Address={from}/Address={to}/ {file} && networkctl reload"), SHORT)
    };
    move_to(DVM_ADDRESS, ELSEWHERE).context("breaking the network")?;
    let since = Instant::now();
    while network.reachable() {
        ensure!(since.elapsed() < SHORT, "the network is not broken");
    }
    ensure!(session.ok("hostname", SHORT)?.trim() == "dvm", "the next session does not work");
    ensure!(world.agent_log().contains("a session was opened"), "{}", world.agent_log());
    ensure!(world.agent_log().contains("vm-session by user 0 (process "), "{}", world.agent_log());

    // Every byte value, and more of them than any buffer on the way holds.
    let bytes: Vec<u8> = (0..4u32 << 20).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let there = run(&mut session.command("sha256sum"), &bytes, SHORT)?.ok()?.stdout;
    ensure!(there.contains(&image::Digest::of(&bytes).to_string()), "the guest got something else: {there}");

    let stranger = Ssh { key: world.foreign_ssh_key()?, ..session.clone() };
    let refused = stranger.run("id", SHORT)?;
    ensure!(refused.code == 255 && refused.stdout.is_empty(), "another key: {}: {}", refused.code, refused.stdout);
    ensure!(refused.stderr.contains("Permission denied"), "it was not the guest that refused: {}", refused.stderr);
    denials.expect("a console", REFUSED, "has no console", world.admin(&["vm", "console", "dvm"]));

    // While one is open it is all that there is more; the next one ends it, and its server in the guest.
    let mut open = session.command("echo in; exec cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut line = [0; 3];
    std::io::Read::read_exact(open.stdout.as_mut().context("no output")?, &mut line)?;
    let (channels, serial) = exposed(&world, "dvm")?;
    ensure!(channels == ["qmp", "session0", "tpm0"], "channels: {channels:?}");
    ensure!(serial == ["virtio-serial-pci", "virtserialport"], "devices: {serial:?}");
    let servers = "systemctl list-units --plain --no-legend --state=active 'drydock-session@*' | wc -l";
    let since = Instant::now();
    while session.ok(servers, SHORT)?.trim() != "1" {
        ensure!(since.elapsed() < SHORT, "servers of earlier sessions run on");
    }
    ensure!(open.wait()?.code() == Some(255), "the earlier session did not end");

    move_to(ELSEWHERE, DVM_ADDRESS).context("repairing it")?;
    network.wait(SHORT).context("repaired through the session")?;
    world.admin(&["vm", "stop", "dvm"])?.ok()?;
    denials.close();
    world.close()
}

#[test]
fn the_profile_is_sealed_and_goes_where_the_vm_goes() -> Result<()> {
    let world = World::new()?;
    world.create_blank("without", &["--memory", "128"])?;
    world.create_blank("dvm", &[&["--memory", "256"], &SESSIONS[..]].concat())?;
    world.create_blank("vmre", &["--memory", "1024", "--nested"])?;
    let mut denials = Denials::default();
    let without = || world.admin(&["vm", "session", "without"]);
    denials.expect("a session, profile 2016, off", REFUSED, "console profile 2016", without());
    for (vm, profile) in [("without", json!("2019")), ("dvm", Value::Null), ("dvm", json!("2016"))] {
        let file = world.store().join("vms").join(vm).join("vm.json");
        let text = fs::read(&file)?;
        let mut spec: Value = serde_json::from_slice(&text)?;
        ensure!(spec.get("console_profile").is_some() == (vm == "dvm"), "the file says: {spec}");
        let fields = spec.as_object_mut().context("no object")?;
        match profile {
            Value::Null => drop(fields.remove("console_profile")),
            profile => drop(fields.insert("console_profile".into(), profile)),
        }
        fs::write(&file, spec.to_string())?;
        let edited = world.admin(&["vm", "start", vm]);
        denials.expect("a start with another console profile", REFUSED, "'console_profile'", edited);
        fs::write(&file, text)?;
    }
    world.admin(&["vm", "start", "without"])?.ok().context("the control")?;
    denials.expect("a session, profile 2016", REFUSED, "console profile 2016", without());
    ensure!(exposed(&world, "without")? == (vec!["qmp".into(), "tpm0".into()], Vec::new()), "there is a port");
    world.admin(&["vm", "stop", "without", "--force"])?.ok()?;

    // Through a recovery.
    world.admin(&["recovery", "export", "dvm", "--to", "vmre"])?.ok()?;
    hand_back(&world, "dvm", &Plan::default(), |_| Ok(()))?;
    world.admin(&["recovery", "reinstate", "dvm"])?.ok()?;
    ensure!(exposed(&world, "dvm")?.1 == ["virtio-serial-pci"], "what came back has no sessions");

    // To another host, while a session is open.
    let mut second = world.second_host()?;
    second.shut_down()?;
    second.start_agent_taking(THERE, &[])?;
    let mut open = world.admin_command(&["vm", "session", "dvm"])?.stdin(Stdio::piped()).spawn()?;
    opened(&world)?;
    ensure!(exposed(&world, "dvm")?.0.contains(&"session0".to_owned()), "it is not told");
    world.admin(&["vm", "migrate", "dvm", "--to", THERE])?.ok()?;
    ensure!(open.wait()?.success(), "the session ended otherwise than in order");
    ensure!(second.admin_json(&["vm", "show", "dvm"])?["console_profile"] == "2019");
    let mut open = second.admin_command(&["vm", "session", "dvm"])?.stdin(Stdio::piped()).spawn()?;
    opened(&second)?;
    second.admin(&["vm", "stop", "dvm", "--force"])?.ok()?;
    ensure!(open.wait()?.success(), "the session outlives the VM");
    second.admin(&["vm", "start", "dvm"])?.ok()?;
    second.admin(&["vm", "stop", "dvm", "--force"])?.ok()?;
    denials.close();
    second.shut_down()?;
    world.close()
}
