//! What can be typed after `drydock hgs`.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use hgs::{Check, HostKind};

#[derive(Subcommand)]
pub(crate) enum HgsCommand {
    /// Set up a Host Guardian Service: its guardian, its attestation and TLS keys, its store.
    ///
    /// Do this once, on a machine that the fabric's hosts can reach and their admins cannot log in to. A further node
    /// of the same service is made with `drydock hgs import`.
    #[command(after_long_help = "Examples:\n  \
        drydock hgs init --san hgs.example\n  \
        drydock hgs init --san hgs.example --mode tpm --store-file /etc/drydock/store.url")]
    Init(Init),
    /// Run the service until SIGTERM.
    ///
    /// Normally systemd runs it: contrib/systemd/drydock-hgs.service.
    #[command(after_long_help = "Example:\n  drydock hgs serve --listen 0.0.0.0:8443")]
    Serve {
        #[command(flatten)]
        dir: HgsDir,
        /// Address and port.
        #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:8443")]
        listen: SocketAddr,
        /// Serve plain HTTP; allowed on loopback addresses only, for a proxy that ends TLS.
        #[arg(long)]
        plain_http: bool,
    },
    /// Register a host that may attest: by the public key from `drydock host init`, or by its TPM's endorsement key.
    ///
    /// The running service notices it at once. Make sure that the key is the host's: whoever holds its private half
    /// obtains the keys of the VMs.
    #[command(after_long_help = "Examples:\n  \
        drydock hgs add-host host1 host1.pub.pem\n  \
        drydock hgs add-host host1 --tpm host1.ek.der")]
    AddHost {
        /// Your name for the host.
        name: String,
        /// The host's public key (PEM).
        #[arg(required_unless_present = "tpm", conflicts_with = "tpm")]
        key: Option<PathBuf>,
        /// The public half of its TPM's endorsement key (PEM or DER), for a service in TPM mode: on the host,
        /// `drydock host init --tpm`, or `tpm2_createek -c ek.ctx -G rsa -u ek.pem -f pem`.
        #[arg(long, value_name = "EK")]
        tpm: Option<PathBuf>,
        #[command(flatten)]
        dir: HgsDir,
    },
    /// Remove a host: it gets no key any more, from this moment.
    #[command(after_long_help = "Example:\n  drydock hgs remove-host host1")]
    RemoveHost {
        /// The name that it was registered under.
        name: String,
        #[command(flatten)]
        dir: HgsDir,
    },
    /// Show hosts, guardians, checks, and the protectors that still depend on an old guardian.
    #[command(after_long_help = "Example:\n  drydock hgs status")]
    Status {
        #[command(flatten)]
        dir: HgsDir,
    },
    /// Make a new fabric guardian. It becomes the primary one when the service is restarted.
    ///
    /// Do this before the certificates of the current guardian expire. Old guardians keep opening what was granted to
    /// them until they are retired, so owners have time to grant the new one.
    #[command(after_long_help = "Example:\n  drydock hgs rotate\n  systemctl restart drydock-hgs\n  \
        drydock hgs guardian --out fabric.guardian.xml")]
    Rotate {
        #[command(flatten)]
        dir: HgsDir,
        /// Lifetime of its certificates in days.
        #[arg(long, default_value_t = 5 * 365)]
        days: u16,
    },
    /// Destroy the key of an old guardian; refused while protectors in use depend on it.
    ///
    /// Do this after all owners have granted the new guardian and their VMs have been started with it once.
    /// `drydock hgs status` lists what is left.
    #[command(after_long_help = "Example:\n  drydock hgs retire 6f1c…")]
    Retire {
        /// Fingerprint of its signing certificate (`drydock hgs status`).
        fingerprint: String,
        /// Retire it even if VMs can then no longer be started.
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        dir: HgsDir,
    },
    /// Accept a measured boot as known good: the event log of a host that you trust.
    ///
    /// Copy the log from the host, right after a boot that you trust:
    /// /sys/kernel/security/tpm0/binary_bios_measurements. Other hosts with the same firmware, boot loader and Secure
    /// Boot keys pass with it too.
    #[command(after_long_help = "Example:\n  drydock hgs add-baseline r740-2026-11 host1.measurements")]
    AddBaseline {
        /// Your name for the baseline.
        name: String,
        /// The event log.
        log: PathBuf,
        /// PCRs to compare: 0 firmware, 2 option ROMs, 4 boot loaders, 7 Secure Boot keys.
        #[arg(long, value_delimiter = ',', default_values_t = [0, 2, 4, 7])]
        pcrs: Vec<u32>,
        #[command(flatten)]
        dir: HgsDir,
    },
    /// Remove a baseline: boots that only it accepted do not pass any more.
    #[command(after_long_help = "Example:\n  drydock hgs remove-baseline r740-2025-03")]
    RemoveBaseline {
        /// Name of the baseline.
        name: String,
        #[command(flatten)]
        dir: HgsDir,
    },
    /// Switch a check of measured boots on. A new service has all of them on.
    #[command(after_long_help = "Example:\n  drydock hgs add-policy known-good")]
    AddPolicy {
        /// The check.
        #[arg(value_enum)]
        check: CheckArg,
        #[command(flatten)]
        dir: HgsDir,
    },
    /// Switch a check of measured boots off: hosts that would fail it pass.
    #[command(after_long_help = "Example:\n  drydock hgs remove-policy no-debug-mode")]
    RemovePolicy {
        /// The check.
        #[arg(value_enum)]
        check: CheckArg,
        #[command(flatten)]
        dir: HgsDir,
    },
    /// Check the service itself, and say for everything that is wrong what to do.
    ///
    /// Run it after a change, and regularly: it warns a month before the guardian's certificates expire.
    #[command(after_long_help = "Example:\n  drydock hgs trace")]
    Trace {
        #[command(flatten)]
        dir: HgsDir,
    },
    /// Show what the service released and refused, after checking that nobody altered the log.
    #[command(
        args_conflicts_with_subcommands = true,
        after_long_help = "Examples:\n  drydock hgs audit --last 20\n  drydock hgs audit verify --kept HASH"
    )]
    Audit {
        #[command(subcommand)]
        command: Option<AuditCommand>,
        #[command(flatten)]
        dir: HgsDir,
        /// How many of the newest rows to show.
        #[arg(long, default_value_t = 50, value_name = "N")]
        last: u32,
    },
    /// Write the service's keys and settings into one file, encrypted under a passphrase.
    ///
    /// Use it as a backup, and to make a further node. Hosts, policy and log are in the store, not in this file.
    #[command(after_long_help = "Example:\n  drydock hgs export --out hgs.keys")]
    Export {
        #[command(flatten)]
        dir: HgsDir,
        /// A new file.
        #[arg(long, short, value_name = "FILE")]
        out: PathBuf,
        /// Read the passphrase from this file descriptor instead of asking.
        #[arg(long, value_name = "FD")]
        passphrase_fd: Option<i32>,
    },
    /// Make a service's directory from what `drydock hgs export` wrote.
    ///
    /// For a further node on the same PostgreSQL, or to replace a lost one.
    #[command(after_long_help = "Example, on the new node:\n  drydock hgs import hgs.keys")]
    Import(Import),
    /// Refuse stale protectors, or only report them in the audit log.
    ///
    /// A protector is stale if it is older than the last one that was rolled for its VM. That happens after a restore
    /// from a backup, which the owner then permits (`drydock protector permit-stale`), and when somebody runs an old
    /// copy of a VM.
    #[command(after_long_help = "Example:\n  drydock hgs strict on")]
    Strict {
        /// Whether they are refused.
        #[arg(value_enum)]
        state: OnOff,
        #[command(flatten)]
        dir: HgsDir,
    },
    /// Accept an owner's permit to start a VM from a backup where stale protectors are refused.
    #[command(after_long_help = "Example:\n  drydock hgs permit web.permit")]
    Permit {
        /// What `drydock protector permit-stale` wrote.
        file: PathBuf,
        #[command(flatten)]
        dir: HgsDir,
    },
    /// Write the fabric guardian's public half, for tenants to import.
    ///
    /// Tell tenants the fingerprint out of band: it is how they recognize your fabric.
    #[command(after_long_help = "Example:\n  drydock hgs guardian --out fabric.guardian.xml")]
    Guardian {
        #[command(flatten)]
        dir: HgsDir,
        /// Where to write it.
        #[arg(long, short, value_name = "FILE")]
        out: PathBuf,
    },
}

#[derive(Subcommand)]
pub(crate) enum AuditCommand {
    /// Check the log, and print its last hash, to be kept elsewhere.
    ///
    /// With a hash that was kept earlier it also finds rows that were cut off at the end.
    #[command(after_long_help = "Example:\n  drydock hgs audit verify --kept HASH")]
    Verify {
        #[command(flatten)]
        dir: HgsDir,
        /// A hash that was kept.
        #[arg(long, value_name = "HASH")]
        kept: Option<String>,
    },
}

/// Where the service is.
#[derive(Args)]
pub(crate) struct HgsDir {
    /// The service's directory.
    #[arg(long, value_name = "DIRECTORY", default_value = "/var/lib/drydock-hgs")]
    pub dir: PathBuf,
}

#[derive(Args)]
pub(crate) struct Init {
    #[command(flatten)]
    pub dir: HgsDir,
    /// Name of its fabric guardian.
    #[arg(long, default_value = "fabric")]
    pub name: String,
    /// Host names and addresses for its TLS certificate. Repeatable.
    #[arg(long = "san", value_name = "NAME", default_values = ["localhost", "127.0.0.1"])]
    pub san: Vec<String>,
    /// How hosts attest.
    #[arg(long, value_enum, default_value = "host-key")]
    pub mode: ModeArg,
    #[command(flatten)]
    pub store: StoreArgs,
    /// Refuse stale protectors instead of only reporting them; see `drydock hgs strict`.
    #[arg(long)]
    pub strict: bool,
}

#[derive(Args)]
pub(crate) struct Import {
    /// What `drydock hgs export` wrote.
    pub file: PathBuf,
    #[command(flatten)]
    pub dir: HgsDir,
    #[command(flatten)]
    pub store: StoreArgs,
    /// Read the passphrase from this file descriptor instead of asking.
    #[arg(long, value_name = "FD")]
    pub passphrase_fd: Option<i32>,
}

/// Where the service keeps hosts, policy and log.
#[derive(Args)]
pub(crate) struct StoreArgs {
    /// A PostgreSQL database that several nodes can share: postgres://USER@HOST/DATABASE [default: SQLite in the
    /// directory].
    ///
    /// The URL must not contain a password, which every user of the machine could see; use --store-file for that.
    #[arg(long, value_name = "URL", conflicts_with = "store_file")]
    pub store: Option<String>,
    /// The same URL, read from a file that only its owner may read.
    #[arg(long, value_name = "FILE")]
    pub store_file: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum ModeArg {
    /// By a key in a file.
    HostKey,
    /// By their TPM, and by how they were started.
    Tpm,
}

impl From<ModeArg> for HostKind {
    fn from(arg: ModeArg) -> Self {
        match arg {
            ModeArg::HostKey => HostKind::HostKey,
            ModeArg::Tpm => HostKind::Tpm,
        }
    }
}

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum CheckArg {
    /// Secure Boot was on.
    SecureBoot,
    /// No firmware debugger was on.
    NoDebugMode,
    /// PCR 7 matches a baseline.
    SecureBootSettings,
    /// The other PCRs of a baseline match too.
    KnownGood,
}

impl From<CheckArg> for Check {
    fn from(arg: CheckArg) -> Self {
        match arg {
            CheckArg::SecureBoot => Check::SecureBoot,
            CheckArg::NoDebugMode => Check::NoDebugMode,
            CheckArg::SecureBootSettings => Check::SecureBootSettings,
            CheckArg::KnownGood => Check::KnownGood,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum OnOff {
    /// Refuse them.
    On,
    /// Release the key, and report it in the audit log.
    Off,
}
