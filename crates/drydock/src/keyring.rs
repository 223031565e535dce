//! The directory of guardians: `NAME.pem` or `NAME.p12` with private keys, `NAME.xml` without; and `NAME.garage`, the
//! public keys of the tenant's garages. Also the options that name the directory and the owner in it.

use std::path::{Path, PathBuf};

use attestation::HostPublicKey;
use clap::Args;
use key_protector::{Guardian, GuardianPublic};
use outcome::{Context, Error, Kind, Next, Result};
use recovery::documents::KnownGarage;
use zeroize::Zeroizing;

use crate::files;
use crate::prompt;

/// The extension of a garage's public key.
pub(crate) const GARAGE: &str = "garage";

/// The directory of guardians.
#[derive(Args)]
pub(crate) struct KeyringArgs {
    /// Directory of guardians [default: ~/.config/drydock/guardians].
    #[arg(long, value_name = "DIRECTORY")]
    pub guardians: Option<PathBuf>,
}

/// The owner's private key.
#[derive(Args)]
pub(crate) struct OwnerArgs {
    /// Name of the owner guardian; its private key must be in the directory of guardians.
    #[arg(long, value_name = "NAME")]
    pub owner: String,
    /// Read the passphrase of its key from this file descriptor instead of asking.
    #[arg(long, value_name = "FD")]
    pub passphrase_fd: Option<i32>,
    #[command(flatten)]
    pub keyring: KeyringArgs,
}

/// An open directory of guardians.
pub(crate) struct Keyring {
    dir: PathBuf,
}

/// One guardian in the directory.
pub(crate) struct Entry {
    pub name: String,
    pub file: PathBuf,
    pub private: bool,
}

impl Keyring {
    /// Opens the directory, which is made if it does not exist.
    ///
    /// # Errors
    /// `BadInput` when no directory is named and `HOME` is not set; `Internal` when it cannot be made.
    pub(crate) fn open(args: KeyringArgs) -> Result<Self> {
        let dir = match args.guardians {
            Some(dir) => dir,
            None => {
                let home = std::env::var_os("HOME").ok_or_else(|| {
                    Error::new(Kind::BadInput, "HOME is not set")
                        .remedy("name the directory of guardians with --guardians")
                })?;
                PathBuf::from(home).join(".config/drydock/guardians")
            }
        };
        durable::private_dir(&dir).context(Kind::Internal, || format!("cannot make {}", dir.display()))?;
        Ok(Keyring { dir })
    }

    /// Where the file of `name` with this extension is, or would be.
    ///
    /// # Errors
    /// `BadInput` for what is not a valid name.
    pub(crate) fn path(&self, name: &str, extension: &str) -> Result<PathBuf> {
        outcome::check_name_of(if extension == GARAGE { "garage" } else { "guardian" }, name)?;
        Ok(self.dir.join(format!("{name}.{extension}")))
    }

    /// All guardians, by name.
    ///
    /// # Errors
    /// `Internal` when the directory cannot be read.
    pub(crate) fn entries(&self) -> Result<Vec<Entry>> {
        let mut all = Vec::new();
        let list =
            std::fs::read_dir(&self.dir).context(Kind::Internal, || format!("cannot list {}", self.dir.display()))?;
        for item in list.flatten() {
            let file = item.path();
            let (Some(name), Some(extension)) =
                (file.file_stem().and_then(|s| s.to_str()), file.extension().and_then(|s| s.to_str()))
            else {
                continue;
            };
            let private = match extension {
                "pem" | "p12" => true,
                "xml" => false,
                _ => continue,
            };
            all.push(Entry { name: name.to_owned(), private, file: file.clone() });
        }
        all.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(all)
    }

    fn find(&self, name: &str) -> Result<Entry> {
        outcome::check_name_of("guardian", name)?;
        self.entries()?.into_iter().find(|e| e.name == name).ok_or_else(|| {
            Error::new(Kind::NotFound, format!("there is no guardian '{name}' in {}", self.dir.display())).remedy(
                "list them: drydock guardian list; add one with `drydock guardian new` or `drydock guardian import`",
            )
        })
    }

    /// The tenant's garages, by name.
    ///
    /// # Errors
    /// `BadInput` when the file of one does not hold a public key.
    pub(crate) fn garages(&self) -> Result<Vec<KnownGarage>> {
        let mut found = Vec::new();
        let list =
            std::fs::read_dir(&self.dir).context(Kind::Internal, || format!("cannot list {}", self.dir.display()))?;
        for file in list.flatten().map(|item| item.path()).filter(|file| file.extension().is_some_and(|e| e == GARAGE))
        {
            let name = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            found.push(KnownGarage { name, key: garage_key(&file)? });
        }
        found.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(found)
    }

    /// Refuses a name that is taken: keys are never overwritten.
    ///
    /// # Errors
    /// `WrongState` when a guardian has that name.
    pub(crate) fn must_be_new(&self, name: &str) -> Result<()> {
        outcome::check_name_of("guardian", name)?;
        match self.entries()?.into_iter().find(|e| e.name == name) {
            None => Ok(()),
            Some(entry) => Err(Error::new(Kind::WrongState, format!("{} already exists", entry.file.display()))
                .remedy("choose another name; a guardian's keys are never overwritten")),
        }
    }

    /// The public half. Needs no passphrase: a PKCS#12 file has a public copy, `NAME.public`.
    ///
    /// # Errors
    /// `NotFound`, or `BadInput` for a damaged file.
    pub(crate) fn public(&self, name: &str) -> Result<GuardianPublic> {
        let entry = self.find(name)?;
        match entry.file.extension().and_then(|e| e.to_str()) {
            Some("xml") => read_public(&entry.file),
            Some("pem") => Ok(self.private(name, None)?.public().clone()),
            _ => read_public(&self.path(name, "public")?),
        }
    }

    /// The guardian with its private keys; asks for the passphrase of a PKCS#12 file, or reads it from `passphrase_fd`.
    ///
    /// # Errors
    /// `NotFound`; `Refused` when others may read the key; `BadInput` for a damaged file or a wrong passphrase.
    pub(crate) fn private(&self, name: &str, passphrase_fd: Option<i32>) -> Result<Guardian> {
        let entry = self.find(name)?;
        let bytes = Zeroizing::new(files::read(&entry.file)?);
        match entry.file.extension().and_then(|e| e.to_str()) {
            Some("pem") => {
                files::refuse_open_to_others(&entry.file)?;
                let text = std::str::from_utf8(&bytes)
                    .context(Kind::BadInput, || format!("{} is not PEM", entry.file.display()))?;
                Guardian::from_pem(text)
                    .context(Kind::BadInput, || format!("{} is not a guardian in PEM", entry.file.display()))
            }
            Some("p12") => {
                let passphrase = prompt::passphrase(&format!("Passphrase of {name}: "), passphrase_fd)?;
                Guardian::from_pkcs12(&bytes, &passphrase)
                    .context(Kind::BadInput, || {
                        format!("cannot open {}: wrong passphrase, or the file is damaged", entry.file.display())
                    })
                    .or_next(|| "type it again; if it is right, restore the file from a backup".into())
            }
            _ => Err(Error::new(Kind::BadInput, format!("this machine has only the public half of '{name}'"))
                .remedy("run the command on the machine that has its private key")),
        }
    }
}

/// Reads what `drydock garage init` wrote.
///
/// # Errors
/// `BadInput` when it is something else.
pub(crate) fn garage_key(file: &Path) -> Result<HostPublicKey> {
    HostPublicKey::from_file(&files::read(file)?)
        .context(Kind::BadInput, || format!("{} is not a garage's public key", file.display()))
        .or_next(|| "name the file that `drydock garage init --out FILE` wrote in the garage".into())
}

/// Reads a guardian's metadata document.
///
/// # Errors
/// `BadInput` when it is something else.
pub(crate) fn read_public(path: &Path) -> Result<GuardianPublic> {
    GuardianPublic::parse(&files::read(path)?)
        .context(Kind::BadInput, || format!("{} is not a guardian's metadata document", path.display()))
        .or_next(|| "name what `drydock guardian export` or `drydock hgs guardian` wrote".into())
}
