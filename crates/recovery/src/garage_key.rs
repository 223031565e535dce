//! The garage's own key: made once, when the garage is provisioned, in its vTPM and usable only there. The tenant takes
//! its public half to the tenant host; from then on a request that this key did not sign is none of theirs.
//!
//! The fabric carries requests and grants, and could make a request of its own. It cannot sign it: the vTPM's state is
//! sealed, and the key never leaves it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use attestation::HostPublicKey;
use host::store::Store;
use image::Digest;
use outcome::{Context, Error, Kind, Next, Result};
use tokio::process::Command;

/// What is signed begins with this: the key signs nothing else.
const DOMAIN: &[u8] = b"drydock-garage-request\0";
const TCTI: &str = "device:/dev/tpmrm0";
const MAX_FILE: u64 = 64 << 10;
/// ECDSA P-256 in ASN.1 has at most 72 bytes.
const MAX_SIGNATURE: u64 = 128;

/// The bytes that the garage's key signs for a request.
pub fn signed_bytes(document: &[u8]) -> Vec<u8> {
    [DOMAIN, document].concat()
}

/// The key's files: the public half and two blobs that only the vTPM that made them can use.
pub struct GarageKey {
    dir: PathBuf,
}

impl GarageKey {
    fn dir(store: &Store) -> PathBuf {
        store.root().join("garage-key")
    }

    /// The garage's key, made now if there is none.
    ///
    /// # Errors
    /// `MissingTool` without tpm2-tools, `Internal` with the TPM's reason.
    pub async fn ensure(store: &Store) -> Result<Self> {
        let dir = Self::dir(store);
        if !dir.exists() {
            let fresh = store.root().join("garage-key.new");
            let _ = fs::remove_dir_all(&fresh);
            durable::private_dir(&fresh).context(Kind::Internal, || format!("cannot make {}", fresh.display()))?;
            primary(&fresh).await?;
            tpm(
                &fresh,
                &[
                    "create",
                    "-Q",
                    "-C",
                    "primary.ctx",
                    "-g",
                    "sha256",
                    "-G",
                    "ecc256:ecdsa",
                    "-a",
                    ATTRIBUTES,
                    "-u",
                    "key.pub",
                    "-r",
                    "key.priv",
                ],
            )
            .await?;
            load(&fresh).await?;
            tpm(&fresh, &["readpublic", "-Q", "-c", "key.ctx", "-f", "pem", "-o", "key.pem"]).await?;
            clear_contexts(&fresh);
            fs::rename(&fresh, &dir)
                .and_then(|()| durable::sync_parent(&dir))
                .context(Kind::Internal, || format!("cannot keep the garage's key in {}", dir.display()))?;
        }
        Ok(GarageKey { dir })
    }

    /// # Errors
    /// `WrongState` when the garage has none yet.
    pub fn open(store: &Store) -> Result<Self> {
        let dir = Self::dir(store);
        if dir.exists() {
            return Ok(GarageKey { dir });
        }
        Err(Error::new(Kind::WrongState, "this garage has no key of its own yet, by which its owner would know it")
            .remedy(
                "make it, take the file to the tenant host, and import it there: drydock garage init --out FILE; \
             drydock garage import FILE --name NAME",
            ))
    }

    /// # Errors
    /// `BadInput` when the file is damaged.
    pub fn public(&self) -> Result<HostPublicKey> {
        let path = self.dir.join("key.pem");
        let bytes = durable::read_bounded(&path, MAX_FILE)
            .context(Kind::BadInput, || format!("cannot read {}", path.display()))?;
        HostPublicKey::from_file(&bytes).context(Kind::BadInput, || format!("{} is not a public key", path.display()))
    }

    /// Makes the vTPM ready to sign, which takes most of the time of a signature.
    ///
    /// # Errors
    /// `Internal` with the TPM's reason: another vTPM than the one that made the key.
    pub async fn load(&self) -> Result<LoadedKey> {
        let work = tempfile::tempdir().context(Kind::Internal, || "cannot make a temporary folder".into())?;
        let copied = ["key.pub", "key.priv"]
            .iter()
            .try_for_each(|name| fs::copy(self.dir.join(name), work.path().join(name)).map(drop));
        copied.context(Kind::BadInput, || format!("the garage's key in {} is not complete", self.dir.display()))?;
        primary(work.path()).await?;
        load(work.path()).await?;
        Ok(LoadedKey { work })
    }
}

/// The garage's key in its vTPM, ready to sign once.
pub struct LoadedKey {
    work: tempfile::TempDir,
}

impl LoadedKey {
    /// Signs a request, in the vTPM.
    ///
    /// # Errors
    /// `Internal` with the TPM's reason.
    pub async fn sign(self, document: &[u8]) -> Result<Vec<u8>> {
        let work = self.work;
        let digest = Digest::of(&signed_bytes(document));
        fs::write(work.path().join("digest"), digest.as_bytes())
            .context(Kind::Internal, || "cannot write a temporary file".into())?;
        tpm(
            work.path(),
            &[
                "sign",
                "-Q",
                "-c",
                "key.ctx",
                "-g",
                "sha256",
                "-s",
                "ecdsa",
                "-d",
                "-f",
                "plain",
                "-o",
                "signature",
                "digest",
            ],
        )
        .await?;
        durable::read_bounded(&work.path().join("signature"), MAX_SIGNATURE)
            .context(Kind::Internal, || "the vTPM gave no signature".into())
    }
}

const ATTRIBUTES: &str = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|sign";

/// The storage key that wraps ours: the same whenever it is made from the same vTPM.
async fn primary(dir: &Path) -> Result<()> {
    tpm(dir, &["createprimary", "-Q", "-C", "o", "-g", "sha256", "-G", "ecc256", "-c", "primary.ctx"]).await
}

async fn load(dir: &Path) -> Result<()> {
    tpm(dir, &["load", "-Q", "-C", "primary.ctx", "-u", "key.pub", "-r", "key.priv", "-c", "key.ctx"]).await
}

fn clear_contexts(dir: &Path) {
    for name in ["primary.ctx", "key.ctx"] {
        let _ = fs::remove_file(dir.join(name));
    }
}

async fn tpm(dir: &Path, args: &[&str]) -> Result<()> {
    let output = Command::new("tpm2")
        .args(args)
        .current_dir(dir)
        .env("PATH", confine::PATH)
        .env("TPM2TOOLS_TCTI", TCTI)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .context(Kind::MissingTool, || "cannot run `tpm2`".into())
        .or_next(|| "apt-get install tpm2-tools, in the garage".into())?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let last = said.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("it said nothing");
    Err(Error::new(Kind::Internal, format!("the vTPM refused `tpm2 {}`: {last}", args.first().unwrap_or(&""))).remedy(
        "the garage's key belongs to the vTPM that made it: is this the same garage, and does it have /dev/tpmrm0?",
    ))
}
