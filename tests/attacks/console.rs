//! A fabric admin who wants to see or type into a shielded VM: consoles, monitors, debuggers, agents in the guest.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use drydock_tests::console::Console;
use drydock_tests::exit::{BAD_INPUT, NOT_FOUND, REFUSED, USAGE};
use drydock_tests::process::{Service, run as run_program};
use drydock_tests::world::{SWITCH, World, path};
use serde_json::{Value, json};

use crate::socket;
use crate::suite::{Row, Suite};

const SHORT: Duration = Duration::from_secs(120);

const ROWS: &[Row<World>] = &[
    Row {
        name: "no_command_opens_a_channel",
        attacker: "fabric admin",
        holds: "drydock on the host, a running shielded VM",
        tries: "commands and options for VNC, SPICE, serial and virtio consoles, monitors, a debugger, a guest agent, a \
                memory dump, a screenshot; the console that there is",
        must: "no such command or option exists; the console is refused",
        control: "the console of an encryption-supported VM on the same host shows its firmware",
        run: commands,
    },
    Row {
        name: "no_request_on_the_socket_opens_a_channel",
        attacker: "fabric admin",
        holds: "the agent's socket, without drydock in between",
        tries: "every operation one can think of, fields too many, QMP in place of a request, behind it and in its \
                fields, half a request, none",
        must: "an error each time, never a stream; the VM runs on as it was",
        control: "the console of the encryption-supported VM becomes a stream over the same bytes",
        run: requests,
    },
    Row {
        name: "a_running_vm_has_no_named_channel",
        attacker: "fabric admin",
        holds: "the list of all sockets of the host",
        tries: "finds a socket or a port of QEMU's or swtpm's to connect to",
        must: "there is none, neither of a shielded VM nor of one with a console",
        control: "the same search finds the monitor and the VNC server of a QEMU that the attacker starts",
        run: named_channels,
    },
    Row {
        name: "no_field_of_vm_json_opens_a_channel",
        attacker: "fabric admin",
        holds: "vm.json of a VM that is off",
        tries: "a field too many in every object; options, commas and line ends in every text; another firmware",
        must: "the VM does not start",
        control: "unaltered it starts",
        run: fields,
    },
    Row {
        name: "no_argument_smuggles_an_option",
        attacker: "fabric admin",
        holds: "the arguments of drydock vm create and host serve",
        tries: "commas, line ends and options in name, switch, MAC address and accelerator",
        must: "refused by name",
        control: "a disk image and a store whose names look like options are files like any other",
        run: arguments,
    },
];

const ALONE: &[Row<World>] = &[Row {
    name: "programs_in_the_path_are_not_used",
    attacker: "fabric admin",
    holds: "the environment that agent and drydock are started with",
    tries: "puts wrappers for QEMU, its tools, swtpm and all else before the system's programs in PATH",
    must: "through creation, start, an export with copies, abort and stop none of them runs",
    control: "a wrapper that is called by its name leaves its trace",
    run: wrappers,
}];

pub(crate) fn run(suite: &mut Suite) {
    suite.group(
        "console",
        ROWS,
        || {
            let world = World::new()?;
            world.create_blank("closed", &["--memory", "128"])?;
            world.create_blank("open", &["--memory", "128", "--policy", "encryption-supported"])?;
            world.create_blank("off", &["--memory", "128"])?;
            world.admin(&["vm", "start", "closed"])?.ok()?;
            world.admin(&["vm", "start", "open"])?.ok()?;
            Ok(world)
        },
        |world| {
            for vm in ["closed", "open"] {
                world.admin(&["vm", "stop", vm, "--force"])?.ok()?;
            }
            world.close()
        },
    );
    suite.group("console_alone", ALONE, World::new, World::close);
}

const CHANNELS: [&str; 22] = [
    "vnc",
    "spice",
    "serial",
    "virtio-console",
    "tty",
    "screen",
    "screenshot",
    "screendump",
    "sendkey",
    "monitor",
    "qmp",
    "hmp",
    "exec",
    "gdb",
    "debug",
    "attach",
    "dump",
    "dump-guest-memory",
    "memory",
    "guest-agent",
    "guest-exec",
    "usb",
];

fn commands(world: &mut World) -> Result<()> {
    for channel in CHANNELS {
        let option = format!("--{channel}");
        for args in [vec!["vm", channel, "closed"], vec!["vm", "console", "closed", &option], vec!["host", channel]] {
            let done = world.admin(&args)?;
            ensure!(done.code == USAGE, "{args:?}: exit code {}: {}", done.code, done.stdout);
        }
    }
    let refused = world.admin(&["vm", "console", "closed"])?;
    ensure!(
        refused.code == REFUSED && refused.stderr.contains("has no console"),
        "{}: {}",
        refused.code,
        refused.stderr
    );
    ensure!(refused.stdout.is_empty(), "it showed something: {}", refused.stdout);
    let refused = world.admin(&["vm", "session", "closed"])?;
    ensure!(refused.code == REFUSED && refused.stdout.is_empty(), "a session: {}: {}", refused.code, refused.stderr);
    let mut console = Console::open(&mut world.admin_command(&["vm", "console", "open"])?)?;
    console.expect("BdsDxe", SHORT).context("the control").map(drop)
}

fn requests(world: &mut World) -> Result<()> {
    let before = world.admin_json(&["vm", "show", "closed"])?;
    let mut lines: Vec<String> = Vec::new();
    for op in CHANNELS.iter().flat_map(|channel| [format!("vm-{channel}"), (*channel).to_owned()]) {
        lines.push(json!({ "op": op, "name": "closed" }).to_string());
    }
    for command in [
        "qmp_capabilities",
        "human-monitor-command",
        "screendump",
        "dump-guest-memory",
        "pmemsave",
        "chardev-add",
        "gdbserver",
        "nbd-server-start",
        "object-add",
        "migrate",
        "send-key",
        "set_password",
    ] {
        lines.push(json!({ "execute": command, "arguments": { "command-line": "gdbserver tcp::1234" } }).to_string());
        lines.push(json!({ "op": command, "name": "closed", "arguments": {} }).to_string());
        lines.push(json!({ "op": "vm-show", "name": format!("closed\n{{\"execute\":\"{command}\"}}") }).to_string());
    }
    for request in [
        json!({ "op": "vm-console", "name": "closed" }),
        json!({ "op": "vm-console", "name": "closed", "force": true }),
        json!({ "op": "vm-console", "name": "closed", "policy": "encryption-supported" }),
        json!({ "op": "vm-console", "name": "../vms/closed" }),
        json!({ "op": "vm-console", "name": ["closed", "open"] }),
        json!({ "op": ["vm-console"], "name": "closed" }),
        json!({ "op": "vm-session", "name": "closed" }),
        json!({ "op": "vm-session", "name": "off" }),
        json!({ "op": "vm-session", "name": "closed", "console_profile": "2019" }),
        json!({ "op": "vm-start", "name": "off", "console_profile": "2019" }),
        json!({ "op": "vm-set-policy", "name": "closed", "policy": "encryption-supported" }),
        json!({ "op": "vm-set-policy", "name": "off", "policy": "encryption-supported" }),
        json!({ "op": "vm-start", "name": "off", "console": true }),
        json!({ "op": "vm-start", "name": "off", "qemu_args": ["-s"] }),
        json!({ "op": "recovery-import", "grant": null, "grant_name": null, "switch": "br0", "hours": 1, "install": false }),
        json!({ "op": "recovery-finish", "vm": "off", "stop": false }),
        json!({ "op": "garage-init" }),
        json!([]),
        json!(null),
        json!("vm-console"),
    ] {
        lines.push(request.to_string());
    }
    lines.push(r#"{"op":"vm-console","name":"closed","name":"open"}"#.into());
    lines.push(r#"{"op":"vm-show","op":"vm-console","name":"closed"}"#.into());
    for line in &lines {
        let answers = socket::send(world, format!("{line}\n").as_bytes())?;
        let last = answers.last().context("no answer")?;
        ensure!(answers.iter().all(|answer| *answer != json!("stream")), "a stream for {line}");
        ensure!(last.get("error").is_some(), "no error for {line}: {last}");
    }
    // One request a connection: what comes behind it is not read as another.
    let behind = format!("{}\n{}\n", json!({ "op": "vm-show", "name": "closed" }), lines.last().context("none")?);
    let answers = socket::send(world, behind.as_bytes())?;
    ensure!(answers.len() == 1 && answers[0].get("result").is_some(), "two answers: {answers:?}");
    for raw in [b"\x00\x01\x02\n".as_slice(), b"\xff\xfe\n", b"{\n", &[b'['; 100_000]] {
        let mut line = raw.to_vec();
        line.push(b'\n');
        let answers = socket::send(world, &line)?;
        let code = answers.last().and_then(|answer| answer["error"]["kind"].as_str());
        ensure!(code == Some("bad-input"), "{answers:?} for {:?}", &raw[..raw.len().min(8)]);
    }
    ensure!(world.admin_json(&["vm", "show", "closed"])? == before, "the VM changed");
    let stream = socket::first_answer(world, &json!({ "op": "vm-console", "name": "open" }))?;
    ensure!(stream == json!("stream"), "the control: {stream}");
    Ok(())
}

/// Sockets that listen or have a name, of this process, as `ss` shows them.
fn channels_of(world: &World, pid: u64) -> Result<Vec<String>> {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", world.netns(), "ss", "-H", "-a", "-n", "-p", "-t", "-u", "-x"]);
    let all = run_program(&mut command, b"", SHORT)?.ok()?.stdout;
    let mark = format!("pid={pid},");
    Ok(all
        .lines()
        .filter(|line| line.contains(&mark))
        // Nameless pairs: `u_str ESTAB 0 0 * 123 * 124`.
        .filter(|line| line.split_whitespace().nth(4) != Some("*"))
        .map(str::to_owned)
        .collect())
}

fn named_channels(world: &mut World) -> Result<()> {
    for vm in ["closed", "open"] {
        let pid = world.admin_json(&["vm", "show", vm])?["pid"].as_u64().context("no pid")?;
        let found = channels_of(world, pid)?;
        ensure!(found.is_empty(), "{vm} can be reached: {found:?}");
        let line = fs::read_to_string(format!("/proc/{pid}/cmdline"))?;
        let mut args = line.split('\0');
        ensure!(
            !args.any(|arg| ["-vnc", "-spice", "-monitor", "-serial", "-qmp", "-gdb", "-s", "-qtest"].contains(&arg)),
            "{vm} is started with a way in: {line}"
        );
    }
    let folder = world.fabric("own-qemu");
    fs::create_dir(&folder)?;
    let script = format!(
        "qemu-system-x86_64 -M none -nodefaults -S -vnc unix:{0}/vnc -qmp unix:{0}/qmp,server=on,wait=off & \
         until [ -S {0}/qmp ] && [ -S {0}/vnc ]; do sleep 0.1; done; echo pid $! >&2; wait",
        path(&folder)
    );
    // In the same network namespace, which is also one of sockets.
    let mut command = Command::new("ip");
    command.args(["netns", "exec", world.netns(), "sh", "-c", &script]);
    let (own, line) = Service::start("the attacker's QEMU", &mut command, "pid ", SHORT)?;
    let pid = line.trim_start_matches("pid ").trim().parse()?;
    let found = channels_of(world, pid)?;
    drop(own);
    ensure!(found.len() >= 2, "the control: monitor and VNC are not found: {found:?}");
    Ok(())
}

fn fields(world: &mut World) -> Result<()> {
    let file = world.store().join("vms/off/vm.json");
    let text = fs::read_to_string(&file)?;
    let good: Value = serde_json::from_str(&text)?;
    let mut altered: Vec<(String, Value)> = Vec::new();
    for place in ["", "/disks/0", "/nics/0", "/firmware"] {
        for field in
            ["console", "serial_port", "vnc", "spice", "qmp", "monitor", "gdb", "extra_args", "args", "chardev"]
        {
            let mut spec = good.clone();
            spec.pointer_mut(place).context("no such place")?[field] = json!("unix:/tmp/x,server=on");
            altered.push((format!("{place}/{field}"), spec));
        }
    }
    // A field that the file has not while it is the default.
    for profile in ["2019", "2019,server=on", "2016\n-s"] {
        let mut spec = good.clone();
        spec["console_profile"] = json!(profile);
        altered.push((format!("console_profile = {profile:?}"), spec));
    }
    const SMUGGLED: [&str; 7] =
        ["x,id=y", "x -s", "x\n-s", "-s", "x\0-s", "x\",\"driver\":\"socket", "unix:/tmp/x,server=on,wait=off"];
    for place in ["/name", "/disks/0/serial", "/nics/0/mac", "/nics/0/switch", "/firmware/code"] {
        for value in SMUGGLED {
            let mut spec = good.clone();
            *spec.pointer_mut(place).context("no such place")? = json!(value);
            altered.push((format!("{place} = {value:?}"), spec));
        }
    }
    for (place, value) in [
        ("/policy", json!("encryption-supported")),
        ("/policy", json!("none")),
        ("/disks/0/path", json!("nbd:unix:/tmp/x")),
        ("/disks/0/path", json!("/tmp/x\n-s")),
        ("/disks/0/format", json!("nbd")),
        ("/disks/0/format", json!("raw,file.driver=nbd")),
        ("/memory_mib", json!("128M -s")),
        ("/vcpus", json!("1,maxcpus=2")),
        ("/nested", json!("true,-s")),
        ("/firmware/code", json!("/tmp/x.fd,if=pflash")),
    ] {
        let mut spec = good.clone();
        *spec.pointer_mut(place).context("no such place")? = value;
        altered.push((place.to_owned(), spec));
    }
    for (what, spec) in &altered {
        fs::write(&file, spec.to_string())?;
        let done = world.admin(&["vm", "start", "off"])?;
        let code = done.code;
        ensure!([REFUSED, BAD_INPUT].contains(&code), "{what}: exit code {code}: {}{}", done.stdout, done.stderr);
    }
    fs::write(&file, text)?;
    world.admin(&["vm", "start", "off"])?.ok().context("the control")?;
    world.admin(&["vm", "stop", "off", "--force"])?.ok().map(drop)
}

fn arguments(world: &mut World) -> Result<()> {
    let disk = world.fabric("a,file.driver=nbd,id=x -s.raw");
    let mut bytes = vec![0; 1 << 20];
    bytes[512..517].copy_from_slice(b"plain");
    fs::write(&disk, &bytes)?;
    let protector = path(&world.offline("closed.protector.xml"));
    let create = |name: &str, switch: &str, mac: &str| {
        let disk = path(&disk);
        let mut args = vec!["vm", "create", "--disk", &disk, "--protector", &protector, "--memory", "128"];
        args.extend(["--switch", switch]);
        if !mac.is_empty() {
            args.extend(["--mac", mac]);
        }
        // Behind `--` no name is taken for an option of drydock's own.
        run_program(world.admin_command(&args)?.args(["--", name]), b"", SHORT)
    };
    for (name, switch, mac) in [
        ("x,debug-threads=on", SWITCH, ""),
        ("x\n-s", SWITCH, ""),
        ("-s", SWITCH, ""),
        ("x -gdb tcp::1234", SWITCH, ""),
        ("x", "br0,script=/tmp/x", ""),
        ("x", "br0\n-s", ""),
        ("x", "../br0", ""),
        ("x", SWITCH, "52:54:00:00:00:01,romfile=/tmp/x"),
        ("x", SWITCH, "52:54:00:00:00:01\n-s"),
    ] {
        let done = create(name, switch, mac)?;
        ensure!(
            [BAD_INPUT, NOT_FOUND].contains(&done.code),
            "{name:?} {switch:?} {mac:?}: {}: {}",
            done.code,
            done.stderr
        );
    }
    for accel in ["kvm,-s", "tcg -s", "tcg,thread=multi", "qtest"] {
        let store = path(&world.fabric("no-store"));
        let done = world.admin(&["host", "serve", "--local", "--store", &store, "--accel", accel])?;
        ensure!(done.code == USAGE, "--accel {accel}: {}: {}", done.code, done.stderr);
    }
    create("odd", SWITCH, "")?.ok().context("the control: a disk with an odd name")?;
    ensure!(world.disk("odd")?[512..].starts_with(b"plain"), "the control: its contents");
    world.admin(&["vm", "delete", "odd", "--yes"])?.ok()?;
    let host = world.add_agent("odd", "store,file.driver=nbd,id=x -s", true)?;
    let (disk, protector) = (path(&disk), protector.as_str());
    let create =
        ["vm", "create", "odd", "--disk", &disk, "--protector", protector, "--switch", SWITCH, "--memory", "128"];
    host.admin(&create)?.ok().context("the control: a store with an odd name")?;
    host.admin(&["vm", "start", "odd"])?.ok().context("the control: a start in it")?;
    host.admin(&["vm", "stop", "odd", "--force"])?.ok()?;
    host.close()
}

/// Wrappers that note their name and go on as the real ones; the folder and the note.
fn wrapped(world: &World) -> Result<(PathBuf, PathBuf)> {
    let (folder, trace) = (world.fabric("wrappers"), world.fabric("trace"));
    fs::create_dir(&folder)?;
    for program in [
        "qemu-system-x86_64",
        "qemu-img",
        "qemu-nbd",
        "qemu-io",
        "swtpm",
        "setpriv",
        "ip",
        "tpm2",
        "sh",
        "udevadm",
        "bridge",
    ] {
        let file = folder.join(program);
        let script = format!(
            "#!/bin/bash\necho {program} >> {}\nPATH=/usr/sbin:/usr/bin:/sbin:/bin exec {program} \"$@\"\n",
            path(&trace)
        );
        fs::write(&file, script)?;
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755))?;
    }
    Ok((folder, trace))
}

fn wrappers(world: &mut World) -> Result<()> {
    let (folder, trace) = wrapped(world)?;
    let before = std::env::var("PATH").context("no PATH")?;
    let hostile = format!("{}:{before}", path(&folder));
    world.create_blank("vmre", &["--memory", "1024", "--nested"])?;
    world.kill_agent()?;
    world.start_agent_with(&[("PATH", &hostile)])?;
    world.create_blank("dvm", &["--memory", "128"])?;
    let admin = |args: &[&str]| -> Result<()> {
        // `ip netns exec` is the test's own; what it runs gets the hostile folder.
        let mut command = world.admin_command(args)?;
        let program = command.get_program().to_owned();
        let rest: Vec<_> = command.get_args().map(ToOwned::to_owned).collect();
        command = Command::new(real(&program.to_string_lossy(), &before)?);
        command.args(rest).env("PATH", &hostile);
        run_program(&mut command, b"", SHORT)?.ok().map(drop)
    };
    admin(&["vm", "start", "dvm"])?;
    admin(&["vm", "stop", "dvm", "--force"])?;
    admin(&["recovery", "export", "dvm", "--to", "vmre", "--copy"])?;
    admin(&["recovery", "abort", "dvm"])?;
    admin(&["recovery", "export", "dvm", "--to", "vmre"])?;
    admin(&["recovery", "abort", "dvm"])?;
    admin(&["vm", "delete", "dvm", "--yes"])?;
    ensure!(!trace.exists(), "wrappers ran: {}", fs::read_to_string(&trace).unwrap_or_default());
    let mut command = Command::new("env");
    command.args(["qemu-img", "--version"]).env("PATH", &hostile);
    run_program(&mut command, b"", SHORT)?.ok()?;
    ensure!(fs::read_to_string(&trace).unwrap_or_default() == "qemu-img\n", "the control: the wrapper leaves no trace");
    Ok(())
}

fn real(program: &str, paths: &str) -> Result<PathBuf> {
    std::env::split_paths(paths)
        .map(|folder| folder.join(Path::new(program)))
        .find(|file| file.is_file())
        .with_context(|| format!("{program} is not installed"))
}
