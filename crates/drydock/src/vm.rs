//! `drydock vm …`: the VMs of one host, through its agent.

mod describe;
mod nic;

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, ValueEnum};
use host::api::{CreateNic, CreateVm, VmRequest, VmStatus};
use machine::{ConsoleProfile, Policy};
use outcome::{Error, Kind, Result};
use serde_json::{Value, json};

use self::nic::NicArg;
use crate::agent_call::{answer, call};
use crate::output::Output;
use crate::{console, files, prompt};

#[derive(Subcommand)]
pub(crate) enum VmCommand {
    /// Create a VM from disk images and a key protector.
    ///
    /// The agent copies the images into its store, makes the vTPM, and seals the VM's state. It needs the VM's key once,
    /// so the Host Guardian Service must be reachable. The VM is off afterwards: start it with `drydock vm start`.
    #[command(after_long_help = "Examples:\n  \
        drydock vm create web --disk web.qcow2 --protector web.protector.xml --nic bridge=br0 --memory 2048\n  \
        drydock vm create gw --disk gw.raw --protector gw.xml --nic bridge=br0 \\\n      \
        --nic bridge=br1,mac=52:54:00:12:34:56\n  \
        drydock vm create vmre --disk garage.qcow2 --protector vmre.xml --nic bridge=br0 --nested")]
    Create(Create),
    /// Start a VM.
    ///
    /// The agent obtains the VM's key from the Host Guardian Service (or from a local guardian, in a repair garage),
    /// seals the state again under a new key, and runs the VM.
    #[command(after_long_help = "Example:\n  drydock vm start web")]
    Start {
        /// Name of the VM.
        name: String,
    },
    /// Ask the guest to shut down, and wait until it has.
    ///
    /// A guest that does not react keeps running, and the command says so. `--force` cuts the power: use it when the
    /// guest hangs, and for an orphaned VM, which nothing else reaches.
    #[command(after_long_help = "Example:\n  drydock vm stop web")]
    Stop {
        /// Name of the VM.
        name: String,
        /// Cut the power instead.
        #[arg(long)]
        force: bool,
    },
    /// List the VMs of this host: state, policy, memory, owner.
    #[command(after_long_help = "Example:\n  drydock vm list")]
    List,
    /// Show one VM: its devices, its owner, and whether a recovery holds it.
    ///
    /// With `--exposure` it prints the exposure report of a running VM: users, sockets, files and devices of its
    /// processes, as the kernel and QEMU report them at this moment, and whether each rule holds. Run it to check what
    /// an attacker on this host could reach.
    #[command(after_long_help = "Examples:\n  drydock vm show web\n  drydock --json vm show web --exposure")]
    Show {
        /// Name of the VM.
        name: String,
        /// Show the exposure report of the running VM.
        #[arg(long, alias = "proof")]
        exposure: bool,
    },
    /// Write a VM's key protector to a file, for its owner.
    ///
    /// The owner needs the current one to let a guardian in, to shut one out, or to inspect it. Every start of the VM
    /// replaces it.
    #[command(after_long_help = "Example:\n  drydock vm protector web --out web.protector.xml")]
    Protector {
        /// Name of the VM.
        name: String,
        /// Where to write it.
        #[arg(long, short, value_name = "FILE")]
        out: PathBuf,
    },
    /// Store the owner's signed protector update: the VM changes to the new key protector at its next start.
    ///
    /// The owner makes the update with `drydock protector grant --change` or `drydock protector revoke --change`.
    #[command(after_long_help = "Examples:\n  \
        drydock vm set-protector web web.change\n  \
        drydock vm set-protector web --drop")]
    SetProtector {
        /// Name of the VM.
        name: String,
        /// The signed protector update.
        #[arg(required_unless_present = "drop", conflicts_with = "drop")]
        change: Option<PathBuf>,
        /// Discard a stored update that no start has used yet.
        #[arg(long)]
        drop: bool,
    },
    /// Change a VM's policy. Works in local mode only, in a repair garage; a guarded host refuses it.
    ///
    /// The private key of the VM's owner, or of a guardian that it was granted to, must be on this machine. A recovery
    /// does this by itself; `drydock recovery import --grant` and `drydock recovery finish` are the usual way.
    #[command(after_long_help = "Example:\n  drydock vm set-policy web encryption-supported")]
    SetPolicy {
        /// Name of the VM.
        name: String,
        /// The new policy.
        #[arg(value_enum)]
        policy: PolicyArg,
    },
    /// Delete a VM and its disks. They cannot be restored.
    #[command(after_long_help = "Example:\n  drydock vm delete web")]
    Delete {
        /// Name of the VM.
        name: String,
        /// Do not ask.
        #[arg(long)]
        yes: bool,
    },
    /// Migrate a running VM to another guarded host, with its disks and its vTPM, while it runs.
    ///
    /// Both hosts must obtain the VM's key from the Host Guardian Service, and the other host's agent must take
    /// migrations (`drydock host serve --migration-listen`). Until the VM is handed over it keeps running here, whatever
    /// fails. If the other host did not confirm the hand-over, find out whether the VM runs there; if it does not and
    /// never will, `--take-back` returns it to this host.
    #[command(after_long_help = "Examples:\n  \
        drydock vm migrate web --to host2.example:8444\n  \
        drydock vm migrate web --take-back")]
    Migrate {
        /// Name of the VM.
        name: String,
        /// Where the other host's agent takes migrations.
        #[arg(long, required_unless_present = "take_back", value_name = "HOST:PORT")]
        to: Option<String>,
        /// After a hand-over that the other host did not confirm: the VM does not run there and never will.
        #[arg(long, conflicts_with = "to")]
        take_back: bool,
        /// Do not ask.
        #[arg(long, requires = "take_back")]
        yes: bool,
    },
    /// Connect to the serial console of a VM; leave with Ctrl-].
    ///
    /// Only an encryption-supported VM has a console; for a shielded one the agent refuses it.
    #[command(after_long_help = "Example:\n  drydock vm console web")]
    Console {
        /// Name of the VM.
        name: String,
    },
    /// Open a session with a guest whose network is broken: standard input and output become the session.
    ///
    /// Only a VM with console profile 2019 has sessions. The guest runs an SSH server on the session and decides whom it
    /// lets in; all that passes through this host is encrypted. An admin of this host could still answer in the guest's
    /// place, so compare the host key with the guest's, as with any SSH server.
    ///
    /// A session ends with its input, with the guest's server, or when another session is opened: a VM has one at a
    /// time.
    #[command(after_long_help = "Examples:\n  \
        ssh -o ProxyCommand=\"drydock vm session web\" root@web\n  \
        from another machine, through the host:\n  \
        ssh -o ProxyCommand=\"ssh HOST drydock vm session web\" root@web")]
    Session {
        /// Name of the VM.
        name: String,
    },
}

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum PolicyArg {
    /// No console and no debugger, for anybody.
    Shielded,
    /// Encrypted at rest, with a console for the admins of the host.
    EncryptionSupported,
}

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum ConsoleProfileArg {
    /// Only the network reaches the guest, as in Windows Server 2016.
    #[value(name = "2016")]
    Server2016,
    /// Also sessions, which the guest may accept or refuse, as in Windows Server 2019.
    #[value(name = "2019")]
    Server2019,
}

#[derive(Args)]
pub(crate) struct Create {
    /// Name of the VM: 1 to 63 of a-z, 0-9 and '-'.
    pub name: String,
    /// A disk image (qcow2, raw or VHDX), which is copied into the store; the first one boots. Repeatable.
    #[arg(long = "disk", required = true, value_name = "IMAGE")]
    pub disks: Vec<PathBuf>,
    /// The key protector that the VM's owner made (`drydock protector new`).
    #[arg(long, value_name = "FILE")]
    pub protector: PathBuf,
    /// Who may see inside the VM. Sealed: nobody on a guarded host can change it.
    #[arg(long, value_enum, default_value = "shielded")]
    pub policy: PolicyArg,
    /// What reaches the VM out of band. Sealed: it cannot be changed later.
    #[arg(long, value_enum, default_value = "2016")]
    pub console_profile: ConsoleProfileArg,
    /// A network card on a Linux bridge. Repeatable, in the order in which the guest sees the cards.
    ///
    /// Without `mac` the address is derived from the VM's id. Either way it stays the same wherever the VM goes.
    #[arg(
        long = "nic",
        value_name = "bridge=NAME[,mac=ADDRESS]",
        required_unless_present = "switch",
        conflicts_with = "switch"
    )]
    pub nics: Vec<NicArg>,
    /// Short form of `--nic bridge=BRIDGE`, for one network card.
    #[arg(long, value_name = "BRIDGE")]
    pub switch: Option<String>,
    /// MAC address of the network card of --switch.
    #[arg(long, value_name = "ADDRESS", requires = "switch", conflicts_with = "nics")]
    pub mac: Option<String>,
    /// Memory in MiB.
    #[arg(long, default_value_t = 1024, value_name = "MIB")]
    pub memory: u32,
    /// Number of virtual CPUs.
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub vcpus: u32,
    /// Nested virtualization: let the guest run VMs itself. For a repair garage.
    #[arg(long)]
    pub nested: bool,
}

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

pub(crate) fn run(command: VmCommand, socket: &Path, out: &Output) -> Result<()> {
    let request = match command {
        VmCommand::Create(args) => VmRequest::VmCreate(create(args)?),
        VmCommand::Start { name } => VmRequest::VmStart { name },
        VmCommand::Stop { name, force } => VmRequest::VmStop { name, force },
        VmCommand::Show { name, exposure: false } => VmRequest::VmShow { name },
        VmCommand::SetPolicy { name, policy } => VmRequest::VmSetPolicy { name, policy: policy.into() },
        VmCommand::Migrate { name, to: None, yes, .. } => {
            if !yes {
                prompt::confirm(&format!("Is it certain that {name} does not run on the other host?"))?;
            }
            VmRequest::VmTakeBack { name }
        }
        VmCommand::Migrate { name, to: Some(to), .. } => return migrate(name, to, socket, out),
        VmCommand::Show { name, exposure: true } => return exposure(name, socket, out),
        VmCommand::Protector { name, out: target } => return protector(name, &target, socket, out),
        VmCommand::SetProtector { name, change, .. } => return set_protector(name, change.as_deref(), socket, out),
        VmCommand::List => return list(socket, out),
        VmCommand::Delete { name, yes } => return delete(name, yes, socket, out),
        VmCommand::Console { name } => return console::console(&name, socket, out),
        VmCommand::Session { name } => return console::session(name, socket, out),
    };
    // These answer with the VM as it is now.
    let value = call(socket, &request, out)?;
    let vm: VmStatus = answer(&value)?;
    out.result(&value, || describe::vm(&vm));
    Ok(())
}

fn create(args: Create) -> Result<CreateVm> {
    let protector = files::read_text(&args.protector, "a key protector")?;
    let image = |path: &PathBuf| {
        path.canonicalize().map_err(|e| {
            Error::new(Kind::NotFound, format!("the disk image {} does not exist", path.display()))
                .caused_by(&e)
                .remedy("name an existing disk image")
        })
    };
    Ok(CreateVm {
        name: args.name,
        memory_mib: args.memory,
        vcpus: args.vcpus,
        disks: args.disks.iter().map(image).collect::<Result<_>>()?,
        nics: args.nics.into_iter().map(CreateNic::from).collect(),
        // As it is: an agent of the previous release understands this form.
        switch: args.switch,
        mac: args.mac,
        nested: args.nested,
        policy: args.policy.into(),
        console_profile: args.console_profile.into(),
        protector,
    })
}

fn list(socket: &Path, out: &Output) -> Result<()> {
    let value = call(socket, &VmRequest::VmList, out)?;
    let all: Vec<VmStatus> = answer(&value)?;
    out.result(&value, || describe::table(&all));
    Ok(())
}

fn delete(name: String, yes: bool, socket: &Path, out: &Output) -> Result<()> {
    if !yes {
        prompt::confirm(&format!("Delete {name} and its disks permanently?"))?;
    }
    let value = call(socket, &VmRequest::VmDelete { name: name.clone() }, out)?;
    out.result(&value, || format!("{name} is deleted"));
    Ok(())
}

fn migrate(name: String, to: String, socket: &Path, out: &Output) -> Result<()> {
    let value: Value = call(socket, &VmRequest::VmMigrate { name: name.clone(), to: to.clone() }, out)?;
    out.result(&value, || format!("{name} runs on {to}"));
    Ok(())
}

fn exposure(name: String, socket: &Path, out: &Output) -> Result<()> {
    let value = call(socket, &VmRequest::VmProof { name: name.clone() }, out)?;
    let report = answer(&value)?;
    out.result(&value, || describe::exposure(&name, &report));
    Ok(())
}

fn protector(name: String, target: &Path, socket: &Path, out: &Output) -> Result<()> {
    let value = call(socket, &VmRequest::VmProtector { name: name.clone() }, out)?;
    let document = value["protector"].as_str().unwrap_or_default();
    files::write(target, document.as_bytes())?;
    out.result(&json!({ "file": target }), || {
        format!(
            "the key protector of {name} is in {}; the next start of the VM replaces it\n\
             To change it, the owner: drydock protector grant {0} --owner NAME --to GUARDIAN --out NEW --change UPDATE",
            target.display()
        )
    });
    Ok(())
}

fn set_protector(name: String, change: Option<&Path>, socket: &Path, out: &Output) -> Result<()> {
    let change = change.map(|file| files::read_text(file, "a signed protector update")).transpose()?;
    let next = match change {
        Some(_) => format!("{name} changes to its new key protector at its next start"),
        None => format!("{name} keeps its key protector"),
    };
    let value = call(socket, &VmRequest::VmSetProtector { name, change }, out)?;
    out.result(&value, || next);
    Ok(())
}
