//! A folder of guardians: `NAME.pem` or `NAME.p12` with private keys, `NAME.xml` without.

use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};

use attestation::HostPublicKey;
use key_protector::{Guardian, GuardianPublic};
use outcome::{Context, Error, Kind, Next, Result};
use recovery::documents::KnownGarage;
use zeroize::Zeroizing;

const MAX_FILE: u64 = 1 << 20;
pub(crate) const GARAGE: &str = "garage";

pub(crate) struct Keyring {
    dir: PathBuf,
}

/// A guardian as it lies in the folder.
pub(crate) struct Entry {
    pub name: String,
    pub file: PathBuf,
    pub private: bool,
}

impl Keyring {
    pub(crate) fn open(folder: Option<PathBuf>) -> Result<Self> {
        let dir = match folder {
            Some(dir) => dir,
            None => {
                let home = std::env::var_os("HOME").ok_or_else(|| {
                    Error::new(Kind::BadInput, "HOME is not set").remedy("name the folder with --guardians")
                })?;
                PathBuf::from(home).join(".config/drydock/guardians")
            }
        };
        durable::private_dir(&dir).context(Kind::Internal, || format!("cannot make {}", dir.display()))?;
        Ok(Keyring { dir })
    }

    pub(crate) fn path(&self, name: &str, extension: &str) -> Result<PathBuf> {
        outcome::check_name_of(if extension == GARAGE { GARAGE } else { "guardian" }, name)?;
        Ok(self.dir.join(format!("{name}.{extension}")))
    }

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
            Error::new(Kind::NotFound, format!("there is no guardian '{name}' in {}", self.dir.display()))
                .remedy("drydock guardian list; make one with `guardian new`, take one in with `guardian import`")
        })
    }

    /// The tenant's garages: `NAME.garage`, a public key each.
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

    pub(crate) fn must_be_new(&self, name: &str) -> Result<()> {
        outcome::check_name_of("guardian", name)?;
        match self.entries()?.into_iter().find(|e| e.name == name) {
            None => Ok(()),
            Some(entry) => Err(Error::new(Kind::WrongState, format!("{} exists already", entry.file.display()))
                .remedy("choose another name; a guardian's keys are never overwritten")),
        }
    }

    /// The public half; asks for no passphrase where a public copy lies beside the PKCS#12 file.
    pub(crate) fn public(&self, name: &str) -> Result<GuardianPublic> {
        let entry = self.find(name)?;
        match entry.file.extension().and_then(|e| e.to_str()) {
            Some("xml") => read_public(&entry.file),
            Some("pem") => Ok(self.private(name, None)?.public().clone()),
            _ => read_public(&self.path(name, "public")?),
        }
    }

    pub(crate) fn private(&self, name: &str, passphrase_fd: Option<i32>) -> Result<Guardian> {
        let entry = self.find(name)?;
        let bytes = Zeroizing::new(read(&entry.file)?);
        match entry.file.extension().and_then(|e| e.to_str()) {
            Some("pem") => {
                refuse_open_to_others(&entry.file)?;
                let text = std::str::from_utf8(&bytes)
                    .context(Kind::BadInput, || format!("{} is not PEM", entry.file.display()))?;
                Guardian::from_pem(text)
                    .context(Kind::BadInput, || format!("{} is not a guardian in PEM", entry.file.display()))
            }
            Some("p12") => {
                let passphrase = passphrase(&format!("Passphrase of {name}: "), passphrase_fd)?;
                Guardian::from_pkcs12(&bytes, &passphrase)
                    .context(Kind::BadInput, || {
                        format!("{} does not open: wrong passphrase, or damaged", entry.file.display())
                    })
                    .or_next(|| "type it again; if it is right, restore the file from a backup".into())
            }
            _ => Err(Error::new(Kind::BadInput, format!("only the public half of '{name}' is here"))
                .remedy("run this where its private key is")),
        }
    }
}

/// Reads what `drydock garage init` wrote.
pub(crate) fn garage_key(file: &Path) -> Result<HostPublicKey> {
    HostPublicKey::from_file(&read(file)?)
        .context(Kind::BadInput, || format!("{} is not a garage's public key", file.display()))
        .or_next(|| "name the file that `drydock garage init --out FILE` wrote in the garage".into())
}

pub(crate) fn refuse_open_to_others(path: &Path) -> Result<()> {
    use std::os::unix::fs::MetadataExt;
    let mode = std::fs::metadata(path).context(Kind::Internal, || format!("cannot read {}", path.display()))?.mode();
    if mode & 0o077 == 0 {
        return Ok(());
    }
    Err(Error::new(
        Kind::Refused,
        format!("{} holds secrets and others may read it (mode {:o})", path.display(), mode & 0o777),
    )
    .remedy(format!("chmod 600 {}", path.display())))
}

pub(crate) fn read(path: &Path) -> Result<Vec<u8>> {
    durable::read_bounded(path, MAX_FILE).map_err(|e| {
        let kind = if e.kind() == std::io::ErrorKind::NotFound { Kind::NotFound } else { Kind::BadInput };
        Error::new(kind, format!("cannot read {}", path.display()))
            .caused_by(&e)
            .remedy("name an existing, readable file")
    })
}

pub(crate) fn read_public(path: &Path) -> Result<GuardianPublic> {
    GuardianPublic::parse(&read(path)?)
        .context(Kind::BadInput, || format!("{} is not a guardian's metadata document", path.display()))
        .or_next(|| "name what `drydock guardian export` or `drydock hgs guardian` wrote".into())
}

/// Reads a passphrase from a descriptor, or asks on the terminal. Never from an argument or the environment.
pub(crate) fn passphrase(prompt: &str, fd: Option<i32>) -> Result<Zeroizing<String>> {
    if let Some(fd) = fd {
        let path = format!("/dev/fd/{fd}");
        let mut text = Zeroizing::new(String::new());
        std::fs::File::open(&path)
            .and_then(|file| file.take(4096).read_to_string(&mut text))
            .context(Kind::BadInput, || format!("cannot read a passphrase from descriptor {fd}"))?;
        return Ok(Zeroizing::new(text.trim_end_matches(['\r', '\n']).to_owned()));
    }
    if !std::io::stdin().is_terminal() {
        return Err(Error::new(Kind::BadInput, "a passphrase is needed and there is no terminal to ask on")
            .remedy("give it on a descriptor: --passphrase-fd N"));
    }
    rpassword::prompt_password(prompt).map(Zeroizing::new).context(Kind::BadInput, || "cannot read a passphrase".into())
}

/// The same for a passphrase that something is encrypted under from now on: of a length, and typed twice.
pub(crate) fn new_passphrase(what: &str, fd: Option<i32>, least: usize) -> Result<Zeroizing<String>> {
    let passphrase = passphrase(&format!("New passphrase for {what}: "), fd)?;
    if passphrase.chars().count() < least {
        return Err(Error::new(Kind::BadInput, format!("the passphrase is shorter than {least} characters"))
            .remedy("choose a longer one; four random words are good"));
    }
    if fd.is_none() && *passphrase != *self::passphrase("Again: ", None)? {
        return Err(Error::new(Kind::BadInput, "the two passphrases differ").remedy("run the command again"));
    }
    Ok(passphrase)
}

/// Asks a yes-or-no question; anything but `yes` is no.
pub(crate) fn confirm(question: &str) -> Result<()> {
    if !std::io::stdin().is_terminal() {
        return Err(
            Error::new(Kind::BadInput, format!("{question} There is no terminal to ask on")).remedy("say --yes")
        );
    }
    eprint!("{question} Type 'yes': ");
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).context(Kind::BadInput, || "cannot read an answer".into())?;
    if answer.trim() == "yes" { Ok(()) } else { Err(Error::new(Kind::Interrupted, "not confirmed; nothing was done")) }
}
