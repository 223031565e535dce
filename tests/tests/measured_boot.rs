//! Attestation by TPM with a real firmware's log: a guest with its own vTPM plays the host.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use drydock_tests::denial::Denials;
use drydock_tests::exit::KEY_RELEASE;
use drydock_tests::images;
use drydock_tests::world::{GATEWAY, VMRE_ADDRESS, World, path};

const SHORT: Duration = Duration::from_secs(180);
const BOOT: Duration = Duration::from_secs(600);
const ATTEST: &str = "drydock host attest --hgs https://10.77.0.1:8444 --hgs-ca /root/hgs-ca.pem --tpm";

#[test]
fn a_host_proves_how_it_was_started() -> Result<()> {
    let world = World::new()?;
    let disk = world.provision_vmre(&images::folder()?.join("garage.raw"))?;
    world.create_vm("host", &disk, &["--memory", "1024"])?;
    world.admin(&["vm", "start", "host"])?.ok()?;

    let dir = path(&world.fabric("hgs-tpm"));
    world.admin(&["hgs", "init", "--mode", "tpm", "--san", GATEWAY, "--dir", &dir])?.ok()?;
    let listen = format!("{GATEWAY}:8444");
    let service = world.serve("the HGS in TPM mode", &["hgs", "serve", "--listen", &listen, "--dir", &dir])?;
    let host = world.ssh(VMRE_ADDRESS)?;
    host.wait(BOOT)?;
    host.put(&world.fabric("hgs-tpm/hgs-ca.pem"), "/root/hgs-ca.pem")?;

    let mut denials = Denials::default();
    denials.expect("a TPM that nobody registered", KEY_RELEASE, "UnauthorizedHost", host.run(ATTEST, SHORT));
    let (ek, log) = (world.fabric("host.ek"), world.fabric("host.log"));
    host.ok("drydock host init --tpm --out /root/host.ek", SHORT)?;
    host.get("/root/host.ek", &ek)?;
    host.ok("cat /sys/kernel/security/tpm0/binary_bios_measurements > /root/host.log", SHORT)?;
    host.get("/root/host.log", &log)?;
    world.admin(&["hgs", "add-host", "host", "--tpm", &path(&ek), "--dir", &dir])?.ok()?;
    denials.expect("a boot that nobody knows", KEY_RELEASE, "InsecureHostConfiguration", host.run(ATTEST, SHORT));
    world.admin(&["hgs", "add-baseline", "debian", &path(&log), "--dir", &dir])?.ok()?;
    let passed = host.ok(ATTEST, SHORT).context("the control")?;
    ensure!(passed.starts_with("Passed"), "{passed}");

    // Root on the host measures something that the firmware did not.
    host.ok(&format!("tpm2_pcrextend 4:sha256={}", "5a".repeat(32)), SHORT)?;
    denials.expect("a PCR that the log does not explain", KEY_RELEASE, "TcgLogValidation", host.run(ATTEST, SHORT));
    world.admin(&["hgs", "remove-host", "host", "--dir", &dir])?.ok()?;
    denials.expect("a TPM that is trusted no longer", KEY_RELEASE, "UnauthorizedHost", host.run(ATTEST, SHORT));
    denials.close();
    service.terminate(SHORT)?;
    world.admin(&["vm", "stop", "host", "--force"])?.ok()?;
    world.close()
}
