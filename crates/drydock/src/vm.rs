//! `drydock vm …`

use std::fs::File;
use std::io::{IsTerminal, Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use host::api::{CreateVm, PowerState, VmRequest, VmStatus};
use machine::proof::Proof;
use machine::{ConsoleProfile, Policy};
use outcome::{Context, Error, Kind, Result};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};
use serde_json::{Value, json};

use crate::agent_call::call;
use crate::cli::{ConsoleProfileArg, PolicyArg, Vm, VmCreate};
use crate::keyring;
use crate::output::Output;

/// Ctrl-], as telnet has it.
const ESCAPE: u8 = 0x1d;

impl From<PolicyArg> for Policy {
    fn from(arg: PolicyArg) -> Self {
        match arg {
            PolicyArg::Shielded => Policy::Shielded,
            PolicyArg::EncryptionSupported => Policy::EncryptionSupported,
        }
    }
}

impl From<ConsoleProfileArg> for ConsoleProfile {
    fn from(arg: ConsoleProfileArg) -> Self {
        match arg {
            ConsoleProfileArg::Server2016 => ConsoleProfile::Server2016,
            ConsoleProfileArg::Server2019 => ConsoleProfile::Server2019,
        }
    }
}

pub(crate) fn run(command: Vm, socket: &Path, out: &Output) -> Result<()> {
    match command {
        Vm::Create(args) => create(args, socket, out),
        Vm::Start { name } => show(&call(socket, &VmRequest::VmStart { name }, out)?, out),
        Vm::Stop { name, force } => show(&call(socket, &VmRequest::VmStop { name, force }, out)?, out),
        Vm::Show { name, proof: true } => proof(&name, socket, out),
        Vm::Show { name, proof: false } => show(&call(socket, &VmRequest::VmShow { name }, out)?, out),
        Vm::Protector { name, out: target } => protector(name, &target, socket, out),
        Vm::SetProtector { name, change, .. } => set_protector(name, change.as_deref(), socket, out),
        Vm::SetPolicy { name, policy } => {
            show(&call(socket, &VmRequest::VmSetPolicy { name, policy: policy.into() }, out)?, out)
        }
        Vm::List => {
            let value = call(socket, &VmRequest::VmList, out)?;
            let all: Vec<VmStatus> = parse(&value)?;
            out.result(&value, || table(&all));
            Ok(())
        }
        Vm::Delete { name, yes } => {
            if !yes {
                keyring::confirm(&format!("Delete {name} and its disks for good?"))?;
            }
            let value = call(socket, &VmRequest::VmDelete { name: name.clone() }, out)?;
            out.result(&value, || format!("{name} is deleted"));
            Ok(())
        }
        Vm::Migrate { name, to: Some(to), .. } => {
            let value = call(socket, &VmRequest::VmMigrate { name: name.clone(), to: to.clone() }, out)?;
            out.result(&value, || format!("{name} runs on {to}"));
            Ok(())
        }
        Vm::Migrate { name, to: None, yes, .. } => {
            if !yes {
                keyring::confirm(&format!("Is it certain that {name} does not run on the other host?"))?;
            }
            show(&call(socket, &VmRequest::VmTakeBack { name }, out)?, out)
        }
        Vm::Console { name } => console(&name, socket, out),
        Vm::Session { name } => session(name, socket, out),
    }
}

fn protector(name: String, target: &Path, socket: &Path, out: &Output) -> Result<()> {
    let value = call(socket, &VmRequest::VmProtector { name: name.clone() }, out)?;
    let document = value["protector"].as_str().unwrap_or_default();
    crate::guardian::write(target, document.as_bytes())?;
    out.result(&json!({ "file": target }), || {
        format!(
            "the key protector of {name} is in {}; it is in force until the next start\n\
             Its owner: drydock protector grant {0} --owner NAME --to GUARDIAN --out NEW --change CHANGE",
            target.display()
        )
    });
    Ok(())
}

fn set_protector(name: String, change: Option<&Path>, socket: &Path, out: &Output) -> Result<()> {
    let change = match change {
        None => None,
        Some(file) => Some(
            String::from_utf8(keyring::read(file)?)
                .context(Kind::BadInput, || format!("{} is not a change of a key protector", file.display()))?,
        ),
    };
    let next = match change {
        Some(_) => format!("{name} takes its new key protector at its next start"),
        None => format!("{name} keeps its key protector"),
    };
    let value = call(socket, &VmRequest::VmSetProtector { name, change }, out)?;
    out.result(&value, || next);
    Ok(())
}

fn create(args: VmCreate, socket: &Path, out: &Output) -> Result<()> {
    let protector = String::from_utf8(keyring::read(&args.protector)?)
        .context(Kind::BadInput, || format!("{} is not a key protector", args.protector.display()))?;
    let absolute = |path: &PathBuf| {
        path.canonicalize().map_err(|e| {
            Error::new(Kind::NotFound, format!("there is no disk image {}", path.display()))
                .caused_by(&e)
                .remedy("name an existing disk image")
        })
    };
    let request = VmRequest::VmCreate(CreateVm {
        name: args.name,
        memory_mib: args.memory,
        vcpus: args.vcpus,
        disks: args.disks.iter().map(absolute).collect::<Result<_>>()?,
        switch: args.switch,
        mac: args.mac,
        nested: args.nested,
        policy: args.policy.into(),
        console_profile: args.console_profile.into(),
        protector,
    });
    show(&call(socket, &request, out)?, out)
}

fn parse<T: serde::de::DeserializeOwned>(value: &Value) -> Result<T> {
    serde_json::from_value(value.clone()).context(Kind::Internal, || "the agent's answer has another shape".into())
}

fn show(value: &Value, out: &Output) -> Result<()> {
    let vm: VmStatus = parse(value)?;
    out.result(value, || describe(&vm));
    Ok(())
}

fn proof(name: &str, socket: &Path, out: &Output) -> Result<()> {
    let value = call(socket, &VmRequest::VmProof { name: name.to_owned() }, out)?;
    let proof: Proof = parse(&value)?;
    out.result(&value, || describe_proof(name, &proof));
    Ok(())
}

fn describe_proof(name: &str, proof: &Proof) -> String {
    let mut text = format!("{name}: {}, QEMU {} under {}\n", proof.policy, proof.qemu_version, proof.accelerator);
    for process in [&proof.qemu, &proof.swtpm] {
        let user = process.uids.first().copied().unwrap_or_default();
        let digest = short(process.program_sha256.as_deref().unwrap_or_default());
        text += &format!(
            "  process {:<8} {} (sha256 {digest}), user {user}, {} descriptors\n",
            process.pid,
            process.program.display(),
            process.descriptors.len(),
        );
    }
    for statement in &proof.holds {
        text += &format!("  {:<5} {statement}\n", if statement.holds { "yes" } else { "NO" });
    }
    text
}

fn state(vm: &VmStatus) -> &'static str {
    match vm.state {
        PowerState::Off => "off",
        PowerState::Busy => "busy",
        PowerState::Running => "running",
        PowerState::Orphaned => "orphaned",
    }
}

fn table(all: &[VmStatus]) -> String {
    if all.is_empty() {
        return "no VMs; `drydock vm create` makes one".into();
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

fn describe(vm: &VmStatus) -> String {
    let mut text = format!(
        "{}: {}, {}\n  id          {}\n  console     profile {}\n  memory      {} MiB, {} vCPU{}\n  network     {}\n  disks       {}\n  generation  {}\n  owner       {} ({})\n",
        vm.name,
        state(vm),
        vm.policy,
        vm.id,
        vm.console_profile,
        vm.memory_mib,
        vm.vcpus,
        if vm.nested { ", nested virtualization" } else { "" },
        vm.switch.iter().zip(&vm.mac).map(|(s, m)| format!("{s} {m}")).collect::<Vec<_>>().join(", "),
        vm.disks.join(", "),
        vm.generation,
        vm.owner,
        short(&vm.owner_fingerprint),
    );
    if let Some(offline) = &vm.offline {
        text += &format!(
            "  offline     {}{} starts left without the Host Guardian Service\n",
            if offline.started { "this was one; " } else { "" },
            offline.remaining,
        );
    }
    if let Some(hold) = &vm.recovery {
        text += &format!("  recovery    {}: {}\n", hold.recovery_id, hold.reason);
    }
    if let Some(handed_over) = &vm.handed_over {
        text += &format!("  handed over to {}, and may run there\n", handed_over.to);
    }
    text
}

/// The first half of a fingerprint: enough for people to compare.
pub(crate) fn short(fingerprint: &str) -> &str {
    fingerprint.get(..16).unwrap_or(fingerprint)
}

fn console(name: &str, socket: &Path, out: &Output) -> Result<()> {
    let (stream, early) = host::client::stream(socket, &VmRequest::VmConsole { name: name.to_owned() })?;
    out.note(&format!("Connected to the console of {name}; leave with Ctrl-]."));
    let raw = RawTerminal::enter();
    let mut to_guest = stream.try_clone().context(Kind::Internal, || "cannot share the console".into())?;
    // Ends with the process: a blocked read of the terminal cannot be taken back.
    std::thread::spawn(move || {
        let mut stdin = std::io::stdin();
        let mut buffer = [0u8; 256];
        while let Ok(n) = stdin.read(&mut buffer) {
            let typed = &buffer[..n];
            let end = typed.iter().position(|b| *b == ESCAPE);
            if n == 0 || to_guest.write_all(&typed[..end.unwrap_or(n)]).is_err() || end.is_some() {
                break;
            }
        }
        let _ = to_guest.shutdown(std::net::Shutdown::Both);
    });
    let mut from_guest = stream;
    let mut stdout = std::io::stdout();
    let mut buffer = [0u8; 4096];
    let mut shown = stdout.write_all(&early).and_then(|()| stdout.flush());
    while shown.is_ok() {
        match from_guest.read(&mut buffer) {
            Ok(n) if n > 0 => shown = stdout.write_all(&buffer[..n]).and_then(|()| stdout.flush()),
            _ => break,
        }
    }
    drop(raw);
    out.note("");
    Ok(())
}

/// Not `io::copy`: it would splice, and a pipe that is spliced into is locked while nothing comes, for its reader too.
fn carry(from: &mut impl Read, to: &mut impl Write) -> std::io::Result<()> {
    let mut buffer = [0u8; 16 << 10];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(read) => to.write_all(&buffer[..read])?,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Raw bytes, as `ssh` wants them of a ProxyCommand.
fn session(name: String, socket: &Path, out: &Output) -> Result<()> {
    let lost = || "cannot share the session".to_owned();
    let (mut from_guest, early) = host::client::stream(socket, &VmRequest::VmSession { name })?;
    if std::io::stdin().is_terminal() {
        out.note("What comes is for an SSH client: drydock vm session --help");
    }
    let mut to_guest = from_guest.try_clone().context(Kind::Internal, lost)?;
    // Not through the standard library's buffers: a client waits for every byte.
    let mut input = File::from(std::io::stdin().as_fd().try_clone_to_owned().context(Kind::Internal, lost)?);
    let mut output = File::from(std::io::stdout().as_fd().try_clone_to_owned().context(Kind::Internal, lost)?);
    // Ends with the process, as the console's.
    std::thread::spawn(move || {
        let _ = carry(&mut input, &mut to_guest);
        let _ = to_guest.shutdown(std::net::Shutdown::Write);
    });
    let shown = output.write_all(&early).and_then(|()| carry(&mut from_guest, &mut output));
    match shown {
        // Whoever reads may have had enough.
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(error).context(Kind::Internal, || "the session broke off".into())
        }
        _ => Ok(()),
    }
}

/// The terminal passes every key on while this lives.
struct RawTerminal {
    before: Termios,
}

impl RawTerminal {
    fn enter() -> Option<Self> {
        let stdin = std::io::stdin();
        if !stdin.is_terminal() {
            return None;
        }
        let before = tcgetattr(stdin.as_fd()).ok()?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(stdin.as_fd(), OptionalActions::Now, &raw).ok()?;
        Some(RawTerminal { before })
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        let _ = tcsetattr(std::io::stdin().as_fd(), OptionalActions::Now, &self.before);
    }
}
