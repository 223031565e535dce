//! Two guarded hosts of one fabric.

use anyhow::{Context, Result, ensure};
use drydock_tests::denial::Denials;
use drydock_tests::world::{World, path};

const KEY_RELEASE: i32 = 7;

/// Both get keys from the same service, and each only as long as it is trusted.
#[test]
fn each_host_gets_keys_for_itself() -> Result<()> {
    let world = World::new()?;
    let mut second = world.second_host()?;
    let mut denials = Denials::default();
    for (host, vm) in [(&*world, "here"), (&second, "there")] {
        host.create_blank(vm, &["--memory", "256"])?;
        host.admin(&["vm", "start", vm])?.ok().with_context(|| format!("starting {vm}"))?;
        host.admin(&["vm", "stop", vm, "--force"])?.ok()?;
    }
    ensure!(second.admin_json(&["vm", "list"])?.as_array().is_some_and(|all| all.len() == 1), "they share a store");
    let hgs = path(&world.fabric("hgs"));
    world.admin(&["hgs", "remove-host", "host-2", "--dir", &hgs])?.ok()?;
    denials.expect(
        "a host that is trusted no longer",
        KEY_RELEASE,
        "add-host",
        second.admin(&["vm", "start", "there"]),
    );
    world.admin(&["vm", "start", "here"])?.ok().context("the other host")?;
    denials.close();
    second.shut_down()?;
    world.close()
}
