//! `drydock guardian …`: make guardians, and exchange their public halves.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, ValueEnum};
use key_protector::{Guardian, GuardianPublic, KeyKind, Role};
use outcome::{Context, Kind, Result, rfc3339};
use serde_json::{Value, json};
use time::{Duration, OffsetDateTime};

use crate::keyring::{self, Keyring, KeyringArgs};
use crate::output::Output;
use crate::{files, fingerprint, prompt};

/// Shorter passphrases for a key file are refused.
const LEAST_PASSPHRASE: usize = 8;

#[derive(Subcommand)]
pub(crate) enum GuardianCommand {
    /// Make a guardian with new keys.
    ///
    /// A tenant does this once on the tenant host, before the first VM: the owner guardian's private key decides who
    /// can open the tenant's VMs. Back the key file up, and keep it off the fabric.
    #[command(after_long_help = "Example:\n  drydock guardian new tenant --format pkcs12")]
    New(New),
    /// Import a public guardian: the metadata document of a Host Guardian Service, or a partner's export.
    ///
    /// Do this before you name the guardian in `drydock protector new` or `drydock protector grant`. Compare the
    /// fingerprint that the command prints with the one that the guardian's owner tells you out of band.
    #[command(after_long_help = "Example:\n  drydock guardian import fabric.guardian.xml")]
    Import {
        /// The metadata document (XML).
        file: PathBuf,
        /// Keep it under this name instead of its own.
        #[arg(long)]
        name: Option<String>,
        #[command(flatten)]
        keyring: KeyringArgs,
    },
    /// Write the public half of a guardian, for others to import.
    ///
    /// The file holds no secret, but whoever imports it must be able to tell that it is yours: give them the
    /// fingerprint of the signing certificate (`drydock guardian show`) out of band.
    #[command(after_long_help = "Example:\n  drydock guardian export tenant --out tenant.guardian.xml")]
    Export {
        /// Name of the guardian.
        name: String,
        /// Where to write it [default: NAME.guardian.xml].
        #[arg(long, short, value_name = "FILE")]
        out: Option<PathBuf>,
        #[command(flatten)]
        keyring: KeyringArgs,
    },
    /// List the guardians in the directory, and say whose private keys are there too.
    #[command(after_long_help = "Example:\n  drydock guardian list")]
    List {
        #[command(flatten)]
        keyring: KeyringArgs,
    },
    /// Show one guardian with the full fingerprints of its certificates, to compare them with somebody.
    #[command(after_long_help = "Example:\n  drydock guardian show fabric")]
    Show {
        /// Name of the guardian.
        name: String,
        #[command(flatten)]
        keyring: KeyringArgs,
    },
}

#[derive(Args)]
pub(crate) struct New {
    /// Name of the guardian, and of its file.
    pub name: String,
    /// What the guardian is for.
    #[arg(long, value_enum, default_value = "owner")]
    pub role: RoleArg,
    /// How its private keys are stored.
    #[arg(long, value_enum, default_value = "pem")]
    pub format: KeyFileArg,
    /// Lifetime of its certificates in days.
    #[arg(long, default_value_t = 3650)]
    pub days: u32,
    /// Read the passphrase from this file descriptor instead of asking (pkcs12).
    #[arg(long, value_name = "FD")]
    pub passphrase_fd: Option<i32>,
    #[command(flatten)]
    pub keyring: KeyringArgs,
}

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum RoleArg {
    /// A tenant, who owns VMs.
    Owner,
    /// A fabric: normally `drydock hgs init` makes this one.
    Fabric,
}

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum KeyFileArg {
    /// NAME.pem, not encrypted, readable by its owner only.
    Pem,
    /// NAME.p12, encrypted under a passphrase.
    Pkcs12,
}

pub(crate) fn run(command: GuardianCommand, out: &Output) -> Result<()> {
    match command {
        GuardianCommand::New(args) => new(args, out),
        GuardianCommand::Import { file, name, keyring } => import(&file, name, keyring, out),
        GuardianCommand::Export { name, out: target, keyring } => export(&name, target, keyring, out),
        GuardianCommand::List { keyring } => list(keyring, out),
        GuardianCommand::Show { name, keyring } => {
            let public = Keyring::open(keyring)?.public(&name)?;
            out.result(&to_json(&public), || describe(&public));
            Ok(())
        }
    }
}

fn new(args: New, out: &Output) -> Result<()> {
    let New { name, role, format, days, passphrase_fd, keyring } = args;
    let keyring = Keyring::open(keyring)?;
    keyring.must_be_new(&name)?;
    let role = match role {
        RoleArg::Owner => Role::Owner,
        RoleArg::Fabric => Role::Fabric,
    };
    let now = OffsetDateTime::now_utc();
    // A few minutes back: for machines whose clocks are behind this one's.
    let (since, until) = (now - Duration::minutes(5), now + Duration::days(i64::from(days)));
    let guardian = Guardian::generate(&name, role, KeyKind::Rsa3072, since, until)
        .context(Kind::Internal, || format!("cannot make the guardian '{name}'"))?;
    let file = write_keys(&keyring, &name, &guardian, format, passphrase_fd)?;
    let public = guardian.public();
    out.result(&to_json(public), || format!("{}\nprivate keys in {}", describe(public), file.display()));
    Ok(())
}

fn write_keys(
    keyring: &Keyring,
    name: &str,
    guardian: &Guardian,
    format: KeyFileArg,
    passphrase_fd: Option<i32>,
) -> Result<PathBuf> {
    match format {
        KeyFileArg::Pem => {
            let file = keyring.path(name, "pem")?;
            files::write(&file, guardian.to_pem().as_bytes())?;
            Ok(file)
        }
        KeyFileArg::Pkcs12 => {
            let passphrase = prompt::new_passphrase(name, passphrase_fd, LEAST_PASSPHRASE)?;
            let bytes = guardian.to_pkcs12(&passphrase).context(Kind::Internal, || "cannot write PKCS#12".into())?;
            let file = keyring.path(name, "p12")?;
            // A public copy next to it, so that showing a guardian asks for no passphrase.
            files::write(&keyring.path(name, "public")?, &guardian.public().to_xml())?;
            files::write(&file, &bytes)?;
            Ok(file)
        }
    }
}

fn import(file: &Path, name: Option<String>, keyring: KeyringArgs, out: &Output) -> Result<()> {
    let keyring = Keyring::open(keyring)?;
    let public = keyring::read_public(file)?;
    let name = name.unwrap_or_else(|| public.name().to_owned());
    keyring.must_be_new(&name)?;
    files::write(&keyring.path(&name, "xml")?, &public.to_xml())?;
    out.result(&to_json(&public), || {
        format!(
            "{}\nBefore you trust it, compare the fingerprints with its owner out of band: by telephone, for example.",
            describe(&public)
        )
    });
    Ok(())
}

fn export(name: &str, target: Option<PathBuf>, keyring: KeyringArgs, out: &Output) -> Result<()> {
    let public = Keyring::open(keyring)?.public(name)?;
    let target = target.unwrap_or_else(|| PathBuf::from(format!("{name}.guardian.xml")));
    files::write(&target, &public.to_xml())?;
    out.result(&json!({ "file": target, "guardian": to_json(&public) }), || {
        format!(
            "the public half of '{name}' is in {}\n  signing certificate {}",
            target.display(),
            fingerprint::grouped(&public.signing().fingerprint())
        )
    });
    Ok(())
}

fn list(keyring: KeyringArgs, out: &Output) -> Result<()> {
    let keyring = Keyring::open(keyring)?;
    let mut rows = Vec::new();
    let mut text = String::new();
    for entry in keyring.entries()? {
        let public = keyring.public(&entry.name)?;
        text += &format!(
            "{:<20} {:<9} {:<8} until {}  {}\n",
            entry.name,
            public.role().as_str(),
            if entry.private { "private" } else { "public" },
            rfc3339(public.not_after()),
            fingerprint::hint(&public.signing().fingerprint()),
        );
        rows.push(json!({ "name": entry.name, "private": entry.private, "guardian": to_json(&public) }));
    }
    if text.is_empty() {
        text = "no guardians; make one: drydock guardian new NAME".into();
    }
    out.result(&Value::Array(rows), || text);
    Ok(())
}

/// A guardian in a command's result.
pub(crate) fn to_json(public: &GuardianPublic) -> Value {
    json!({
        "name": public.name(),
        "role": public.role().as_str(),
        "signing_fingerprint": public.signing().fingerprint(),
        "encryption_fingerprint": public.encryption().fingerprint(),
        "not_after": rfc3339(public.not_after()),
    })
}

fn describe(public: &GuardianPublic) -> String {
    format!(
        "guardian '{}' ({})\n  signing certificate     {}\n  encryption certificate  {}\n  valid until             {}",
        public.name(),
        public.role().as_str(),
        fingerprint::grouped(&public.signing().fingerprint()),
        fingerprint::grouped(&public.encryption().fingerprint()),
        rfc3339(public.not_after()),
    )
}
