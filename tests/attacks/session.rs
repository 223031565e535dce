//! A fabric admin at the sessions of a VM with console profile 2019: they carry the bytes, and want what is in them.

use std::fs;
use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use drydock_tests::console::Console;
use drydock_tests::images;
use drydock_tests::process::run as run_program;
use drydock_tests::search::contains;
use drydock_tests::ssh::Ssh;
use drydock_tests::world::{World, path};
use machine::exposure::{ChannelKind, ExposureReport};

use crate::suite::{Row, Suite};

const SHORT: Duration = Duration::from_secs(120);
const BOOT: Duration = Duration::from_secs(400);
/// Longer than firmware and guest take to say something on a console.
const SILENCE: Duration = Duration::from_secs(30);

const BLANK: &[Row<World>] = &[Row {
    name: "a_session_is_no_console_of_the_firmware",
    attacker: "fabric admin",
    holds: "a session with a VM of profile 2019 that has no operating system",
    tries: "opens it while the firmware starts, and types what leads into its menus",
    must: "nothing is said, and nothing takes what is typed",
    control: "the console of an encryption-supported VM shows the firmware",
    run: firmware,
}];

const GUEST: &[Row<World>] = &[
    Row {
        name: "a_session_without_the_guests_key_is_no_login",
        attacker: "fabric admin",
        holds: "a session with a guest",
        tries: "types at it; logs in with their own key, with passwords, with none",
        must: "the guest's SSH server says its version and lets nobody in; its sockets stay without a name",
        control: "the tenant's key opens the same guest through the same session",
        run: login,
    },
    Row {
        name: "what_passes_a_session_is_ciphertext",
        attacker: "fabric admin",
        holds: "every byte of the tenant's session, both ways",
        tries: "looks for what the tenant sends and reads",
        must: "neither is there",
        control: "the tenant reads it, and the versions that SSH sends in the clear are found",
        run: ciphertext,
    },
];

pub(crate) fn run(suite: &mut Suite) {
    suite.group(
        "session_blank",
        BLANK,
        || {
            let world = World::new()?;
            world.create_blank("blank", &["--memory", "128", "--console-profile", "2019"])?;
            world.create_blank("open", &["--memory", "128", "--policy", "encryption-supported"])?;
            Ok(world)
        },
        World::close,
    );
    suite.group(
        "session_guest",
        GUEST,
        || {
            let world = World::new()?;
            let disk = world.provision_dvm(&images::folder()?.join("guest.raw"))?;
            world.create_vm("dvm", &disk, &["--memory", "768", "--console-profile", "2019"])?;
            fs::remove_file(disk)?;
            world.admin(&["vm", "start", "dvm"])?.ok()?;
            world.ssh_session("dvm")?.wait(BOOT)?;
            Ok(world)
        },
        World::close,
    );
}

/// Types at a session, and returns what is said: the first of it within `first`, the rest within `more` after that.
fn typed(world: &World, vm: &str, words: &[u8], first: Duration, more: Duration) -> Result<Vec<u8>> {
    let mut command = world.admin_command(&["vm", "session", vm])?;
    let mut session = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut output = session.stdout.take().context("no output")?;
    let (sender, said) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut bytes = [0; 4096];
        while let Ok(read) = output.read(&mut bytes) {
            if read == 0 || sender.send(bytes[..read].to_vec()).is_err() {
                break;
            }
        }
    });
    let mut input = session.stdin.take().context("no input")?;
    // Whoever hangs up has said what there is to say.
    let _ = input.write_all(words);
    let mut all = said.recv_timeout(first).unwrap_or_default();
    let end = std::time::Instant::now() + more;
    while let Ok(bytes) = said.recv_timeout(end.saturating_duration_since(std::time::Instant::now())) {
        all.extend(bytes);
    }
    drop(input);
    ensure!(session.wait()?.success(), "the session ended otherwise than in order");
    Ok(all)
}

fn firmware(world: &mut World) -> Result<()> {
    world.admin(&["vm", "start", "blank"])?.ok()?;
    let keys = b"\x1b\x1b[24~\r\n\x1bOQ\r\nexit\r\n".repeat(20);
    let said = typed(world, "blank", &keys, SILENCE, Duration::ZERO)?;
    ensure!(said.is_empty(), "it said {:?}", String::from_utf8_lossy(&said));
    world.admin(&["vm", "stop", "blank", "--force"])?.ok()?;
    world.admin(&["vm", "start", "open"])?.ok()?;
    let mut console = Console::open(&mut world.admin_command(&["vm", "console", "open"])?)?;
    console.expect("BdsDxe", SHORT).context("the control")?;
    drop(console);
    world.admin(&["vm", "stop", "open", "--force"])?.ok().map(drop)
}

fn login(world: &mut World) -> Result<()> {
    for words in [b"root\n\nid\n".as_slice(), b"\x03\x04\n", b"SSH-2.0-x\r\n\0\0\0\x0c", &[0xff; 100_000]] {
        let said = typed(world, "dvm", words, SHORT, Duration::from_secs(5))?;
        let text = String::from_utf8_lossy(&said).into_owned();
        ensure!(text.starts_with("SSH-2.0-OpenSSH"), "{:?} is answered by {text:?}", &words[..words.len().min(20)]);
        for shell in ["login", "root@", "uid=", "assword", "# "] {
            ensure!(!text.contains(shell), "a way in: {text:?}");
        }
    }
    let session = world.ssh_session("dvm")?;
    let stranger = Ssh { key: world.foreign_ssh_key()?, ..session.clone() };
    let mut attempts = vec![stranger.command("id")];
    for method in ["password", "keyboard-interactive", "none", "hostbased", "gssapi-with-mic"] {
        let mut command = stranger.command("id");
        // The first one counts.
        command = after_program(&command, &["-o", &format!("PreferredAuthentications={method}")]);
        attempts.push(command);
    }
    for mut attempt in attempts {
        let done = run_program(&mut attempt, b"root\n\n", SHORT)?;
        ensure!(done.code == 255 && done.stdout.is_empty(), "{attempt:?}: {}: {}", done.code, done.stdout);
        ensure!(done.stderr.contains("Permission denied"), "it was not the guest that refused: {}", done.stderr);
    }
    let proof: ExposureReport = serde_json::from_value(world.admin_json(&["vm", "show", "dvm", "--proof"])?)?;
    for process in [&proof.qemu, &proof.swtpm] {
        let way_in = process.descriptors.iter().find(|descriptor| {
            matches!(
                descriptor.kind,
                ChannelKind::NamedSocket | ChannelKind::ListeningSocket | ChannelKind::NetworkSocket
            )
        });
        ensure!(way_in.is_none(), "{way_in:?}");
    }
    session.ok("true", SHORT).context("the control").map(drop)
}

/// The same command with options behind the name of `ssh`.
fn after_program(command: &Command, options: &[&str]) -> Command {
    let mut other = Command::new(command.get_program());
    for arg in command.get_args() {
        other.arg(arg);
        if arg == "ssh" {
            other.args(options);
        }
    }
    other
}

fn ciphertext(world: &mut World) -> Result<()> {
    let (up, down) = (world.fabric("up"), world.fabric("down"));
    let session = world.ssh_session("dvm")?;
    let carried = session.proxy.clone().context("no session")?;
    let recorded = format!("sh -c 'tee {} | {carried} | tee {}'", path(&up), path(&down));
    let tenant = Ssh { proxy: Some(recorded), ..session };
    let sent = "sent-by-the-tenant ".repeat(1000);
    let mut command =
        tenant.command("cat > /dev/shm/sent; half=from-the-guest; for i in $(seq 1000); do echo read-$half; done");
    let read = run_program(&mut command, sent.as_bytes(), SHORT)?.ok()?.stdout;
    ensure!(read.contains("read-from-the-guest"), "the control: the tenant reads {read:?}");
    let (up, down) = (fs::read(up)?, fs::read(down)?);
    let there = world.ssh_session("dvm")?.ok("cat /dev/shm/sent", SHORT)?;
    ensure!(there == sent, "the control: the guest got something else");
    for recorded in [&up, &down] {
        ensure!(contains(recorded, b"SSH-2.0-OpenSSH"), "the control: nothing was recorded");
        for marker in [b"sent-by-the-tenant".as_slice(), b"read-from-the-guest", b"/dev/shm/sent"] {
            ensure!(!contains(recorded, marker), "{} passes in the clear", String::from_utf8_lossy(marker));
        }
    }
    Ok(())
}
