//! Another user of the host: has the program, knows every path, and is not root.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use drydock_tests::exit::{REFUSED, UNREACHABLE};
use drydock_tests::process::{Finished, run as run_program};
use drydock_tests::world::{World, drydock};

use crate::suite::{Row, Suite};

const SHORT: Duration = Duration::from_secs(120);
/// Users and groups of no account.
const NOBODY: &str = "65534";

const ROWS: &[Row<World>] = &[Row {
    name: "local_users_reach_neither_agent_nor_store",
    attacker: "a local user on a host",
    holds: "another uid, the program, every path; then also an admin's mistake that opened every folder and the socket",
    tries: "asks the agent; reads the store",
    must: "neither the socket nor a file opens; with all doors open the agent still asks who is there",
    control: "the same program asks as the agent's own user",
    run: reach,
}];

pub(crate) fn run(suite: &mut Suite) {
    suite.group(
        "local_users",
        ROWS,
        || {
            let world = World::new()?;
            world.create_blank("dvm", &["--memory", "256"])?;
            Ok(world)
        },
        World::close,
    );
}

fn reach(world: &mut World) -> Result<()> {
    // Somewhere that everybody can enter, up to the doors that are tested.
    let public = tempfile::Builder::new().prefix("drydock-attack-").tempdir_in("/var/tmp")?;
    open_to_all(public.path(), 0o755)?;
    let program = public.path().join("drydock");
    fs::copy(drydock()?, &program)?;
    let socket = world.socket();
    let as_nobody = |script: String| -> Result<Finished> {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups", "sh", "-c", &script]);
        run_program(&mut command, b"", SHORT)
    };
    let ask = format!("{} vm list --socket {}", program.display(), socket.display());
    let refused = as_nobody(ask.clone())?;
    ensure!(refused.code == UNREACHABLE, "another user reaches the socket: {} {}", refused.code, refused.stdout);
    let record = world.store().join("vms/dvm/slots/1/record.sealed");
    let read = as_nobody(format!("cat {}", record.display()))?;
    ensure!(read.code != 0, "another user reads the store");

    // An admin opened every door on the way: the agent still asks who is there.
    let mut opened = Vec::new();
    for door in socket.ancestors().skip(1).take_while(|door| door.parent().is_some()) {
        opened.push((door.to_path_buf(), fs::metadata(door)?.permissions()));
        open_to_all(door, 0o755)?;
    }
    open_to_all(&socket, 0o666)?;
    let refused = as_nobody(ask);
    for (door, before) in opened {
        fs::set_permissions(door, before)?;
    }
    let refused = refused?;
    ensure!(refused.code == REFUSED, "exit code {}: {}{}", refused.code, refused.stdout, refused.stderr);
    ensure!(refused.stderr.contains("65534 may not talk"), "{}", refused.stderr);
    let mut command = Command::new(&program);
    command.args(["vm", "list", "--socket"]).arg(&socket);
    ensure!(run_program(&mut command, b"", SHORT)?.ok()?.stdout.contains("dvm"), "the control");
    Ok(())
}

fn open_to_all(path: &Path, mode: u32) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).with_context(|| format!("{}", path.display()))
}
