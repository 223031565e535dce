//! What can be typed.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use key_protector::protector::MAX_OFFLINE_UNWRAPS;

#[derive(Parser)]
#[command(
    name = "drydock",
    version,
    about = "Recovery of shielded virtual machines on Linux/KVM",
    after_help = "A recovery, step by step:\n  \
        fabric admin, on the host:    drydock recovery export DVM --to VMRE\n  \
        tenant, in the garage VMRE:   drydock recovery import\n  \
        tenant, on the tenant host:   drydock recovery grant REQUEST --owner NAME\n  \
        tenant, in the garage:        drydock recovery import --grant GRANT\n                                \
        drydock vm start DVM; drydock vm console DVM\n                                \
        drydock recovery finish\n  \
        fabric admin, on the host:    drydock recovery reinstate DVM\n\n\
        Exit codes: 0 done, 1 internal, 2 usage, 3 refused, 4 bad input, 5 not found, 6 wrong state,\n\
        7 key not released, 8 missing tool, 9 no space, 10 busy, 11 agent unreachable, 130 interrupted."
)]
pub(crate) struct Cli {
    /// Print JSON: one object a line, `{"progress":…}` while working, `{"result":…}` or `{"error":…}` at the end.
    #[arg(long, global = true)]
    pub json: bool,
    /// No progress, only results and errors.
    #[arg(long, short, global = true)]
    pub quiet: bool,
    /// The agent's socket.
    #[arg(long, global = true, default_value = "/run/drydock/agent.sock")]
    pub socket: PathBuf,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Create, start, stop and look at VMs; open a console where the policy allows one.
    #[command(subcommand)]
    Vm(Vm),
    /// Guardians: pairs of signing and encryption certificates, kept as files in one folder.
    #[command(subcommand)]
    Guardian(Guardian),
    /// Repair garages: the key by which their owner knows them.
    #[command(subcommand)]
    Garage(Garage),
    /// Key protectors: who owns a VM and who can open it.
    #[command(subcommand)]
    Protector(Protector),
    /// The seven steps of a recovery.
    #[command(subcommand)]
    Recovery(Recovery),
    /// The Host Guardian Service: attests hosts and releases keys to them.
    #[command(subcommand)]
    Hgs(Hgs),
    /// The guarded-host agent.
    #[command(subcommand)]
    Host(Host),
    /// Check everything that a guarded host needs, and say how to get what is missing. Changes nothing.
    Doctor {
        #[command(flatten)]
        service: Service,
    },
}

#[derive(Clone, Copy, ValueEnum)]
pub enum PolicyArg {
    /// No console, no debugger, for nobody.
    Shielded,
    /// Encrypted at rest, with a console for whoever administrates the host.
    EncryptionSupported,
}

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum ConsoleProfileArg {
    /// Nothing beside the network, as Windows Server 2016 has it.
    #[value(name = "2016")]
    Server2016,
    /// Sessions beside the network that the guest lets in or not, as Windows Server 2019 has it.
    #[value(name = "2019")]
    Server2019,
}

#[derive(Subcommand)]
pub(crate) enum Vm {
    /// Make a VM from a disk image and a key protector; needs the key once, so the HGS must answer.
    Create(VmCreate),
    /// Start a VM: the agent gets its key, seals its state anew and runs it.
    Start { name: String },
    /// Ask the guest to shut down and wait until it has.
    Stop {
        name: String,
        /// Cut the power instead.
        #[arg(long)]
        force: bool,
    },
    /// List the VMs of this host.
    List,
    /// Show one VM.
    Show {
        name: String,
        /// Show what it exposes while it runs (users, sockets, files, devices), as kernel and QEMU say now.
        #[arg(long)]
        proof: bool,
    },
    /// Write a VM's key protector into a file, for its owner: to grant it, revoke a guardian, or look at it.
    Protector {
        name: String,
        #[arg(long, short)]
        out: PathBuf,
    },
    /// Bring in what the owner made with `drydock protector grant --change` or `revoke --change`: the VM takes the new
    /// key protector at its next start.
    SetProtector {
        name: String,
        #[arg(required_unless_present = "drop", conflicts_with = "drop")]
        change: Option<PathBuf>,
        /// Take back a change that was not in force yet.
        #[arg(long)]
        drop: bool,
    },
    /// Change a VM's policy, where its owner's or a granted guardian's private key is: in local mode, never on a
    /// guarded host.
    SetPolicy {
        name: String,
        #[arg(value_enum)]
        policy: PolicyArg,
    },
    /// Delete a VM and its disks.
    Delete {
        name: String,
        /// Do not ask.
        #[arg(long)]
        yes: bool,
    },
    /// Move a running VM to another guarded host, its disks and its vTPM with it, while it runs.
    ///
    /// Both hosts must get the VM's key from the Host Guardian Service. Until the VM is handed over it runs on here,
    /// whatever happens.
    Migrate {
        name: String,
        /// Where the other host's agent takes migrations: HOST:PORT.
        #[arg(long, required_unless_present = "take_back")]
        to: Option<String>,
        /// After a hand-over that the other host did not confirm: the VM is not there and never will be.
        #[arg(long, conflicts_with = "to")]
        take_back: bool,
        /// Do not ask.
        #[arg(long, requires = "take_back")]
        yes: bool,
    },
    /// Connect to the serial console (leave with Ctrl-]); refused for a shielded VM.
    Console { name: String },
    /// Reach a guest whose network is broken, for VMs of console profile 2019: standard input and output become a session.
    ///
    /// The guest runs an SSH server on it and decides whom it lets in; what passes here is encrypted:
    ///
    /// ssh -o ProxyCommand="drydock vm session NAME" root@NAME
    ///
    /// From elsewhere, through the host: ProxyCommand="ssh HOST drydock vm session NAME". Who administrates the host could
    /// answer in the guest's place: compare the host key with the guest's, as with any SSH server.
    ///
    /// A session ends with its input, with the guest's server, or with the next session: there is one at a time.
    Session { name: String },
}

#[derive(Args)]
pub(crate) struct VmCreate {
    pub name: String,
    /// A disk image (qcow2, raw, VHDX), copied into the store; the first one boots. Repeatable.
    #[arg(long = "disk", required = true)]
    pub disks: Vec<PathBuf>,
    /// The key protector that the VM's owner made (`drydock protector new`).
    #[arg(long)]
    pub protector: PathBuf,
    #[arg(long, value_enum, default_value = "shielded")]
    pub policy: PolicyArg,
    /// What reaches the VM beside its network. Sealed: it stays what it is.
    #[arg(long, value_enum, default_value = "2016")]
    pub console_profile: ConsoleProfileArg,
    /// The virtual switch (a Linux bridge).
    #[arg(long)]
    pub switch: String,
    /// Memory in MiB.
    #[arg(long, default_value_t = 1024)]
    pub memory: u32,
    #[arg(long, default_value_t = 1)]
    pub vcpus: u32,
    /// Let the guest run VMs itself: for a repair garage.
    #[arg(long)]
    pub nested: bool,
    /// MAC address; derived from the VM's id when not given.
    #[arg(long)]
    pub mac: Option<String>,
}

/// The folder of guardians.
#[derive(Args)]
pub(crate) struct Folder {
    /// Folder of guardians [default: ~/.config/drydock/guardians].
    #[arg(long)]
    pub guardians: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum RoleArg {
    Owner,
    Fabric,
}

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum KeyFileArg {
    /// NAME.pem, readable by its owner only.
    Pem,
    /// NAME.p12, under a passphrase.
    Pkcs12,
}

#[derive(Subcommand)]
pub(crate) enum Guardian {
    /// Make a guardian with new keys.
    New {
        name: String,
        #[arg(long, value_enum, default_value = "owner")]
        role: RoleArg,
        #[arg(long, value_enum, default_value = "pem")]
        format: KeyFileArg,
        /// Lifetime of its certificates in days.
        #[arg(long, default_value_t = 3650)]
        days: u32,
        /// Read the passphrase from this file descriptor instead of asking (pkcs12).
        #[arg(long)]
        passphrase_fd: Option<i32>,
        #[command(flatten)]
        folder: Folder,
    },
    /// Take in somebody's public guardian: an HGS's metadata document, a partner's export.
    Import {
        file: PathBuf,
        /// Keep it under this name instead of its own.
        #[arg(long)]
        name: Option<String>,
        #[command(flatten)]
        folder: Folder,
    },
    /// Write a guardian's public half, for others to import.
    Export {
        name: String,
        /// Where to write it [default: NAME.guardian.xml].
        #[arg(long, short)]
        out: Option<PathBuf>,
        #[command(flatten)]
        folder: Folder,
    },
    /// List the guardians in the folder.
    List {
        #[command(flatten)]
        folder: Folder,
    },
    /// Show one guardian.
    Show {
        name: String,
        #[command(flatten)]
        folder: Folder,
    },
}

#[derive(Subcommand)]
pub(crate) enum Garage {
    /// In the garage, once: make its own key in its vTPM and write the public half.
    Init {
        #[arg(long, short)]
        out: PathBuf,
    },
    /// On the tenant host, once: take in a garage's public half, over a way you trust.
    Import {
        file: PathBuf,
        /// Your name for it.
        #[arg(long)]
        name: String,
        #[command(flatten)]
        folder: Folder,
    },
    /// On the tenant host: list the garages whose requests can be granted.
    List {
        #[command(flatten)]
        folder: Folder,
    },
}

/// The owner's private key.
#[derive(Args)]
pub(crate) struct Owner {
    /// Name of the owner guardian in the folder.
    #[arg(long)]
    pub owner: String,
    /// Read its passphrase from this file descriptor instead of asking.
    #[arg(long)]
    pub passphrase_fd: Option<i32>,
    #[command(flatten)]
    pub folder: Folder,
}

#[derive(Subcommand)]
pub(crate) enum Protector {
    /// Make a key protector with a new transport key.
    New {
        #[command(flatten)]
        owner: Owner,
        /// A guardian that may open it, by name: the fabric's. Repeatable.
        #[arg(long = "guardian", required = true)]
        allowed: Vec<String>,
        /// How often a host may start the VM without the Host Guardian Service after each start with it, if the
        /// fabric runs its agent with --offline.
        ///
        /// For when all nodes of the service are out of reach. What is given away: the host keeps the VM's transport
        /// key, sealed to itself. A host that was taken off the service's list, or stolen, and is kept from hearing of
        /// it can start the VM that often once more; in host-key mode, whoever has the host's disk reads the key.
        #[arg(long, value_name = "N", default_value_t = 0,
            value_parser = clap::value_parser!(u32).range(..=i64::from(MAX_OFFLINE_UNWRAPS)))]
        offline_unwraps: u32,
        #[arg(long, short)]
        out: PathBuf,
    },
    /// Say who owns a protector, who can open it, and until when.
    Show { file: PathBuf },
    /// Let one more guardian open it (same transport key).
    Grant {
        file: PathBuf,
        #[command(flatten)]
        owner: Owner,
        /// The guardian to let in, by name.
        #[arg(long)]
        to: String,
        #[arg(long, short)]
        out: PathBuf,
        /// For a VM that exists: also write the signed change from FILE, its protector now, to the new one, for
        /// `drydock vm set-protector`.
        #[arg(long)]
        change: Option<PathBuf>,
    },
    /// Shut a guardian out: a new transport key, so that what is sealed from now on stays closed to it.
    Revoke {
        file: PathBuf,
        #[command(flatten)]
        owner: Owner,
        /// The guardian to shut out, by name or by certificate fingerprint.
        #[arg(long)]
        from: String,
        #[arg(long, short)]
        out: PathBuf,
        /// For a VM that exists: also write the signed change from FILE, its protector now, to the new one, for
        /// `drydock vm set-protector`.
        #[arg(long)]
        change: Option<PathBuf>,
    },
    /// Check every signature in it.
    Verify { file: PathBuf },
    /// Permit a Host Guardian Service that refuses stale protectors to take this one once: after the VM was restored
    /// from a backup. The file goes to the fabric admin, who gives it to `drydock hgs permit`.
    PermitStale {
        /// The protector of the restored VM.
        file: PathBuf,
        #[command(flatten)]
        owner: Owner,
        /// Hours until the permit ends.
        #[arg(long, default_value_t = 24, value_parser = clap::value_parser!(u32).range(1..=24 * 30))]
        hours: u32,
        #[arg(long, short)]
        out: PathBuf,
    },
}

#[derive(Subcommand)]
pub(crate) enum Recovery {
    /// Step 1, fabric admin: export the damaged VM onto an RG disk and attach that to the repair garage.
    ///
    /// Its disks are attached too, as overlays: the export takes the same time for 1 GiB and 1 TiB, the originals stay
    /// untouched, and only what the repair changes is written.
    ///
    /// For a garage on another host, the RG disk is a file with the disks on it, which its admins carry there and back.
    Export {
        vm: String,
        /// The repair garage, on this host.
        #[arg(long, required_unless_present = "to_file")]
        to: Option<String>,
        /// A new file, for a repair garage on another host.
        #[arg(long, value_name = "PATH", conflicts_with_all = ["to", "copy", "restart_garage"])]
        to_file: Option<PathBuf>,
        /// Copy the disks onto the RG disk instead.
        #[arg(long)]
        copy: bool,
        /// Shut the damaged VM down first if it runs.
        #[arg(long)]
        stop: bool,
        /// Restart the repair garage if it must be, for nested virtualization.
        #[arg(long)]
        restart_garage: bool,
    },
    /// Fabric admin, on the host of a garage that is not the VM's host: attach the RG disk that was exported to a file.
    Attach {
        file: PathBuf,
        /// The repair garage.
        #[arg(long)]
        to: String,
        /// Restart the repair garage if it must be, for nested virtualization.
        #[arg(long)]
        restart_garage: bool,
    },
    /// And there, when the owner has finished: take it out again, to be carried back.
    Detach {
        /// The damaged VM.
        vm: String,
    },
    /// Steps 2 and 4, tenant in the garage: import the VM and write a request; with --grant, lower its policy.
    Import {
        /// Where to write the recovery request [default: NAME.recovery-request].
        #[arg(long, short)]
        out: Option<PathBuf>,
        /// The owner's answer to the request.
        #[arg(long)]
        grant: Option<PathBuf>,
        /// The virtual switch inside the garage.
        #[arg(long, default_value = "br0")]
        switch: String,
        /// Hours that the recovery guardian lives.
        #[arg(long, default_value_t = 24)]
        hours: u32,
        /// Install missing packages with apt-get.
        #[arg(long)]
        install: bool,
    },
    /// Step 3, tenant host, offline: answer a request with the owner's key.
    Grant {
        request: PathBuf,
        #[command(flatten)]
        owner: Owner,
        /// Where to write the grant [default: NAME.recovery-grant].
        #[arg(long, short)]
        out: Option<PathBuf>,
        /// Do not ask.
        #[arg(long)]
        yes: bool,
    },
    /// Step 6, tenant in the garage: raise the policy, hand the VM back, destroy what was temporary.
    Finish {
        /// The VM; not needed when there is one recovery.
        vm: Option<String>,
        /// Shut it down first if it runs.
        #[arg(long)]
        stop: bool,
    },
    /// Step 7, fabric admin: verify what came back, put it in the VM's place and start it.
    Reinstate {
        vm: String,
        /// The RG disk that came back from a garage on another host [default: the file that was exported].
        #[arg(long, value_name = "FILE")]
        from: Option<PathBuf>,
        /// Keep the VM as it was before its repair, until `commit` or `rollback`.
        #[arg(long)]
        keep_original: bool,
    },
    /// After `reinstate --keep-original`: all is well, merge the repair and let the original go.
    Commit { vm: String },
    /// After `reinstate --keep-original`: bring back the VM as it was before its repair, and drop the repair.
    Rollback {
        vm: String,
        /// Shut the repaired VM down first if it runs.
        #[arg(long)]
        stop: bool,
    },
    /// Where a recovery stands and what comes next.
    Status { vm: Option<String> },
    /// Give a recovery up: the VM is as it was before the export. On the host of a garage that is not the VM's host:
    /// take the RG disk out of the garage, as it is.
    Abort { vm: String },
}

#[derive(Args)]
pub(crate) struct HgsDir {
    /// The service's folder.
    #[arg(long, default_value = "/var/lib/drydock-hgs")]
    pub dir: PathBuf,
}

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum ModeArg {
    HostKey,
    Tpm,
}

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum CheckArg {
    /// Secure Boot was on.
    SecureBoot,
    /// No firmware debugger.
    NoDebugMode,
    /// PCR 7 is in a baseline.
    SecureBootSettings,
    /// The baseline's other PCRs fit.
    KnownGood,
}

#[derive(Subcommand)]
pub(crate) enum Hgs {
    /// Make a service: its guardian, its attestation and TLS keys, its store.
    Init {
        #[command(flatten)]
        dir: HgsDir,
        /// Name of its fabric guardian.
        #[arg(long, default_value = "fabric")]
        name: String,
        /// Host names and addresses for its TLS certificate. Repeatable.
        #[arg(long = "san", default_values = ["localhost", "127.0.0.1"])]
        san: Vec<String>,
        /// How hosts attest: by a key in a file, or by their TPM and how they were started.
        #[arg(long, value_enum, default_value = "host-key")]
        mode: ModeArg,
        #[command(flatten)]
        store: StoreArgs,
        /// Refuse stale protectors instead of only reporting them; see `drydock hgs strict`.
        #[arg(long)]
        strict: bool,
    },
    /// Run it.
    Serve {
        #[command(flatten)]
        dir: HgsDir,
        #[arg(long, default_value = "127.0.0.1:8443")]
        listen: SocketAddr,
        /// Plain HTTP; on loopback only.
        #[arg(long)]
        plain_http: bool,
    },
    /// Trust a host: its public key from `drydock host init`, or with --tpm its TPM's endorsement key.
    AddHost {
        name: String,
        #[arg(required_unless_present = "tpm", conflicts_with = "tpm")]
        key: Option<PathBuf>,
        /// The endorsement key's public half (PEM or DER), for a service in TPM mode: on the host,
        /// `tpm2_createek -c ek.ctx -G rsa -u ek.pem -f pem`.
        #[arg(long, value_name = "EK")]
        tpm: Option<PathBuf>,
        #[command(flatten)]
        dir: HgsDir,
    },
    /// Trust a host no longer.
    RemoveHost {
        name: String,
        #[command(flatten)]
        dir: HgsDir,
    },
    /// Hosts, guardian, certificates.
    Status {
        #[command(flatten)]
        dir: HgsDir,
    },
    /// Make a new fabric guardian, the primary one when the service is started next. Old ones go on opening what was
    /// granted to them until they are retired.
    Rotate {
        #[command(flatten)]
        dir: HgsDir,
        /// Its lifetime.
        #[arg(long, default_value_t = 5 * 365)]
        days: u16,
    },
    /// Destroy the key of an old guardian; refused while protectors in use depend on it.
    Retire {
        /// Fingerprint of its signing certificate (`drydock hgs status`).
        fingerprint: String,
        /// Also when the VMs of these protectors can then no longer be started.
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        dir: HgsDir,
    },
    /// Take a boot for known good: the event log of a host that is believed
    /// (/sys/kernel/security/tpm0/binary_bios_measurements).
    AddBaseline {
        name: String,
        log: PathBuf,
        /// PCRs to compare: 0 firmware, 2 option ROMs, 4 boot loaders, 7 Secure Boot keys.
        #[arg(long, value_delimiter = ',', default_values_t = [0, 2, 4, 7])]
        pcrs: Vec<u32>,
        #[command(flatten)]
        dir: HgsDir,
    },
    /// Take a boot for known good no longer.
    RemoveBaseline {
        name: String,
        #[command(flatten)]
        dir: HgsDir,
    },
    /// Make a check of measured boots from now on; a new service makes all of them.
    AddPolicy {
        #[arg(value_enum)]
        check: CheckArg,
        #[command(flatten)]
        dir: HgsDir,
    },
    /// Make a check no longer.
    RemovePolicy {
        #[arg(value_enum)]
        check: CheckArg,
        #[command(flatten)]
        dir: HgsDir,
    },
    /// Check the service itself, and say of each thing that is wrong what to do.
    Trace {
        #[command(flatten)]
        dir: HgsDir,
    },
    /// Show what it released and refused, after checking that no row was changed, taken out or put in by others.
    #[command(args_conflicts_with_subcommands = true)]
    Audit {
        #[command(subcommand)]
        command: Option<Audit>,
        #[command(flatten)]
        dir: HgsDir,
        /// How many of the newest rows.
        #[arg(long, default_value_t = 50)]
        last: u32,
    },
    /// Write the service's keys and settings into one file, encrypted under a passphrase: a backup, or what a further
    /// node is made of. Hosts, policy and log are in the store and not in this file.
    Export {
        #[command(flatten)]
        dir: HgsDir,
        #[arg(long, short)]
        out: PathBuf,
        /// Read the passphrase from this file descriptor instead of asking.
        #[arg(long)]
        passphrase_fd: Option<i32>,
    },
    /// Make a service's folder from what `export` wrote: a further node on the same PostgreSQL, or a lost one.
    Import {
        file: PathBuf,
        #[command(flatten)]
        dir: HgsDir,
        #[command(flatten)]
        store: StoreArgs,
        /// Read the passphrase from this file descriptor instead of asking.
        #[arg(long)]
        passphrase_fd: Option<i32>,
    },
    /// Refuse protectors that are older than the last one that was rolled for their VM, or only report them.
    Strict {
        #[arg(value_enum)]
        state: OnOff,
        #[command(flatten)]
        dir: HgsDir,
    },
    /// Take an owner's permit (`drydock protector permit-stale`) to start a VM from a backup where stale protectors are
    /// refused.
    Permit {
        file: PathBuf,
        #[command(flatten)]
        dir: HgsDir,
    },
    /// Write the fabric guardian's public half, for tenants to import.
    Guardian {
        #[command(flatten)]
        dir: HgsDir,
        #[arg(long, short)]
        out: PathBuf,
    },
}

#[derive(Subcommand)]
pub(crate) enum Audit {
    /// Check the log, and show the hash to keep elsewhere.
    Verify {
        #[command(flatten)]
        dir: HgsDir,
        /// A hash that was kept: finds rows that were cut off at the end, too.
        #[arg(long, value_name = "HASH")]
        kept: Option<String>,
    },
}

/// Where the service keeps hosts, policy and log.
#[derive(Args)]
pub(crate) struct StoreArgs {
    /// A PostgreSQL that several nodes can share, postgres://USER@HOST/DATABASE; SQLite in the folder otherwise. A
    /// password is never an argument: put such a URL into a file.
    #[arg(long, value_name = "URL", conflicts_with = "store_file")]
    pub store: Option<String>,
    /// The same, from a file that nobody else may read.
    #[arg(long, value_name = "FILE")]
    pub store_file: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum OnOff {
    On,
    Off,
}

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum AccelArg {
    Kvm,
    Tcg,
}

#[derive(Subcommand)]
pub(crate) enum Host {
    /// Make this host's attestation key, or with --tpm take its TPM's endorsement key; the public half goes to
    /// `drydock hgs add-host`.
    Init {
        #[arg(long, default_value = "/var/lib/drydock")]
        store: PathBuf,
        /// Where to write the public key.
        #[arg(long, short)]
        out: PathBuf,
        /// For a service in TPM mode.
        #[arg(long)]
        tpm: bool,
    },
    /// Attest once and say what came of it: the first part of every start of a VM.
    Attest {
        #[command(flatten)]
        service: Service,
    },
    /// Run the agent: on a guarded host with --hgs, in a repair garage with --local.
    Serve {
        #[command(flatten)]
        service: Service,
        /// Keys come from guardians on this machine.
        #[arg(long, conflicts_with = "hgs", required_unless_present = "hgs")]
        local: bool,
        /// Do not probe for KVM.
        #[arg(long, value_enum)]
        accel: Option<AccelArg>,
        /// Keep the keys of VMs whose owners allow it (`drydock protector new --offline-unwraps`), sealed to this host,
        /// and start those VMs with them while no Host Guardian Service answers.
        #[arg(long, requires = "hgs")]
        offline: bool,
        /// Take VMs that other hosts of this fabric migrate here, on this address and port.
        #[arg(long, value_name = "ADDRESS:PORT", conflicts_with = "local")]
        migration_listen: Option<SocketAddr>,
    },
}

/// The Host Guardian Service, and how this host proves itself to it.
#[derive(Args)]
pub(crate) struct Service {
    #[arg(long, default_value = "/var/lib/drydock")]
    pub(crate) store: PathBuf,
    /// The service's URL; several times for several nodes of it, which are asked in turn when one does not answer.
    #[arg(long)]
    pub(crate) hgs: Vec<String>,
    /// The CA that its TLS certificate must come from (PEM).
    #[arg(long, requires = "hgs")]
    pub(crate) hgs_ca: Option<PathBuf>,
    /// Prove how this host was started, with its TPM, instead of holding a key.
    #[arg(long, requires = "hgs")]
    pub(crate) tpm: bool,
}
