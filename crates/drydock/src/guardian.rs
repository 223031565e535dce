//! `drydock guardian …`

use std::path::PathBuf;

use key_protector::{Guardian as Keys, GuardianPublic, KeyKind, Role};
use outcome::rfc3339;
use outcome::{Context, Kind, Result};
use serde_json::{Value, json};
use time::{Duration, OffsetDateTime};

use crate::cli::{Guardian, KeyFileArg, RoleArg};
use crate::keyring::{self, Keyring};
use crate::output::Output;

pub(crate) fn run(command: Guardian, out: &Output) -> Result<()> {
    match command {
        Guardian::New { name, role, format, days, passphrase_fd, folder } => {
            let keyring = Keyring::open(folder.guardians)?;
            keyring.must_be_new(&name)?;
            let role = match role {
                RoleArg::Owner => Role::Owner,
                RoleArg::Fabric => Role::Fabric,
            };
            let now = OffsetDateTime::now_utc();
            let keys = Keys::generate(
                &name,
                role,
                KeyKind::Rsa3072,
                now - Duration::minutes(5),
                now + Duration::days(i64::from(days)),
            )
            .context(Kind::Internal, || format!("cannot make the guardian '{name}'"))?;
            let file = write_keys(&keyring, &name, &keys, format, passphrase_fd)?;
            let value = view(keys.public());
            out.result(&value, || format!("{}\nprivate keys in {}", describe(keys.public()), file.display()));
            Ok(())
        }
        Guardian::Import { file, name, folder } => {
            let keyring = Keyring::open(folder.guardians)?;
            let public = keyring::read_public(&file)?;
            let name = name.unwrap_or_else(|| public.name().to_owned());
            keyring.must_be_new(&name)?;
            write(&keyring.path(&name, "xml")?, &public.to_xml())?;
            out.result(&view(&public), || {
                format!(
                    "{}\nCompare the fingerprint with its owner over another channel before you trust it.",
                    describe(&public)
                )
            });
            Ok(())
        }
        Guardian::Export { name, out: target, folder } => {
            let public = Keyring::open(folder.guardians)?.public(&name)?;
            let target = target.unwrap_or_else(|| PathBuf::from(format!("{name}.guardian.xml")));
            write(&target, &public.to_xml())?;
            out.result(&json!({ "file": target, "guardian": view(&public) }), || {
                format!("the public half of '{name}' is in {}", target.display())
            });
            Ok(())
        }
        Guardian::List { folder } => {
            let keyring = Keyring::open(folder.guardians)?;
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
                    crate::vm::short(&public.signing().fingerprint()),
                );
                rows.push(json!({ "name": entry.name, "private": entry.private, "guardian": view(&public) }));
            }
            if text.is_empty() {
                text = "no guardians; `drydock guardian new NAME` makes one".into();
            }
            out.result(&Value::Array(rows), || text);
            Ok(())
        }
        Guardian::Show { name, folder } => {
            let public = Keyring::open(folder.guardians)?.public(&name)?;
            out.result(&view(&public), || describe(&public));
            Ok(())
        }
    }
}

fn write_keys(
    keyring: &Keyring,
    name: &str,
    keys: &Keys,
    format: KeyFileArg,
    passphrase_fd: Option<i32>,
) -> Result<PathBuf> {
    match format {
        KeyFileArg::Pem => {
            let file = keyring.path(name, "pem")?;
            write(&file, keys.to_pem().as_bytes())?;
            Ok(file)
        }
        KeyFileArg::Pkcs12 => {
            let passphrase = keyring::new_passphrase(name, passphrase_fd, 8)?;
            let bytes = keys.to_pkcs12(&passphrase).context(Kind::Internal, || "cannot write PKCS#12".into())?;
            let file = keyring.path(name, "p12")?;
            // The public half beside it, so that showing a guardian asks for no passphrase.
            write(&keyring.path(name, "public")?, &keys.public().to_xml())?;
            write(&file, &bytes)?;
            Ok(file)
        }
    }
}

pub(crate) fn write(path: &std::path::Path, bytes: &[u8]) -> Result<()> {
    durable::write_atomic(path, bytes).context(Kind::Internal, || format!("cannot write {}", path.display()))
}

pub(crate) fn view(public: &GuardianPublic) -> Value {
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
        public.signing().fingerprint(),
        public.encryption().fingerprint(),
        rfc3339(public.not_after()),
    )
}
