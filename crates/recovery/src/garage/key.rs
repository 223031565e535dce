//! The garage's own key: made once, when the garage is provisioned, in its vTPM and usable only there. The tenant takes
//! its public half to the tenant host; from then on a request that this key did not sign is not accepted there.
//!
//! The fabric carries requests and grants, and could make a request of its own. It cannot sign it: the vTPM's state is
//! sealed, and the key never leaves it.

use std::fs;
use std::path::{Path, PathBuf};

use attestation::HostPublicKey;
use host::Store;
use image::Digest;
use outcome::{Context, Error, Kind, Result};
use tpm::{Tools, TpmError};

use crate::documents::signed_bytes;

const TCTI: &str = "device:/dev/tpmrm0";
const OTHER_VTPM: &str =
    "the garage's key belongs to the vTPM that made it: is this the same garage, and does it have /dev/tpmrm0?";
const MAX_FILE: u64 = 64 << 10;
/// ECDSA P-256 in ASN.1 has at most 72 bytes.
const MAX_SIGNATURE: u64 = 128;

/// The key's files: the public half and two blobs that only the vTPM that made them can use.
pub(crate) struct GarageKey {
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
    pub(crate) async fn ensure(store: &Store) -> Result<Self> {
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

    /// The garage's key, made earlier.
    ///
    /// # Errors
    /// `WrongState` when the garage has none yet.
    pub(crate) fn open(store: &Store) -> Result<Self> {
        let dir = Self::dir(store);
        if dir.exists() {
            return Ok(GarageKey { dir });
        }
        Err(Error::new(
            Kind::WrongState,
            "this garage has no key of its own yet, by which its owner would recognize it",
        )
        .remedy(
            "make it, take the file to the tenant host, and import it there: drydock garage init --out FILE; \
             drydock garage import FILE --name NAME",
        ))
    }

    /// Its public half.
    ///
    /// # Errors
    /// `BadInput` when the file is damaged.
    pub(crate) fn public(&self) -> Result<HostPublicKey> {
        let path = self.dir.join("key.pem");
        let bytes = durable::read_bounded(&path, MAX_FILE)
            .context(Kind::BadInput, || format!("cannot read {}", path.display()))?;
        HostPublicKey::from_file(&bytes).context(Kind::BadInput, || format!("{} is not a public key", path.display()))
    }

    /// Makes the vTPM ready to sign, which takes most of the time of a signature.
    ///
    /// # Errors
    /// `Internal` with the TPM's reason: another vTPM than the one that made the key.
    pub(crate) async fn load(&self) -> Result<LoadedKey> {
        let work = tempfile::tempdir().context(Kind::Internal, || "cannot make a temporary directory".into())?;
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
pub(crate) struct LoadedKey {
    work: tempfile::TempDir,
}

impl LoadedKey {
    /// Signs a request, in the vTPM.
    ///
    /// # Errors
    /// `Internal` with the TPM's reason.
    pub(crate) async fn sign(self, document: &[u8]) -> Result<Vec<u8>> {
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
    let command = args.first().unwrap_or(&"");
    Tools::new(Some(TCTI), dir).run("tpm2", args).await.map_err(|error| match error {
        TpmError::NoTool { source, .. } => Error::new(Kind::MissingTool, "cannot run `tpm2`")
            .caused_by(&source)
            .remedy("apt-get install tpm2-tools, in the garage"),
        TpmError::Failed { message, .. } => {
            Error::new(Kind::Internal, format!("the vTPM refused `tpm2 {command}`: {message}")).remedy(OTHER_VTPM)
        }
        error => Error::new(Kind::Internal, format!("`tpm2 {command}` did not complete"))
            .caused_by(&error)
            .remedy(OTHER_VTPM),
    })
}
