//! The TPM of this host: its keys, its quotes, the firmware's log.
//!
//! The tools' files are in a private directory that is removed with the [`HostTpm`]. None of them is secret for long:
//! the one secret is the service's, for one challenge. What is sealed goes through pipes.

use std::path::{Path, PathBuf};

use attestation::tpm::{EkPublic, MAX_LOG, QUOTED};
use data_encoding::HEXLOWER;
use tempfile::TempDir;
use tokio::sync::{Mutex, MutexGuard};

use crate::tools::{Result, Tools, TpmError, file_error, read};

/// Where Linux exposes the firmware's log.
pub const KERNEL_LOG: &str = "/sys/kernel/security/tpm0/binary_bios_measurements";
/// What tpm2-tools expect before the two TPM2Bs in a credential file: a magic number and a version.
const CREDENTIAL_HEADER: [u8; 8] = [0xba, 0xdc, 0xc0, 0xde, 0, 0, 0, 1];

/// A TPM with its endorsement key, and the attestation key that [`make_attestation_key`](Self::make_attestation_key)
/// made last.
pub struct HostTpm {
    pub(crate) tcti: Option<String>,
    event_log: PathBuf,
    dir: TempDir,
    endorsement_key: EkPublic,
    /// The files that an attestation leaves in the directory between its steps belong to it alone.
    attesting: Mutex<()>,
}

impl HostTpm {
    /// Opens the TPM. `tcti` names it as tpm2-tools do (`device:/dev/tpmrm0`, which is also the default); `event_log`
    /// is the file with the firmware's log, on Linux [`KERNEL_LOG`].
    ///
    /// # Errors
    /// `NoTool`, `Failed`, `TimedOut`, `File`, `EndorsementKey`.
    pub async fn open(tcti: Option<&str>, event_log: &Path) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("drydock-tpm-").tempdir();
        let dir = dir.map_err(file_error(&std::env::temp_dir()))?;
        let tools = Tools::new(tcti, dir.path());
        tools.run_flushed("tpm2_createek", &["-c", "ek.ctx", "-G", "rsa", "-u", "ek.pem", "-f", "pem"]).await?;
        let pem = tools.read("ek.pem")?;
        let endorsement_key = EkPublic::from_file(&pem).map_err(TpmError::EndorsementKey)?;
        Ok(HostTpm {
            tcti: tcti.map(str::to_owned),
            event_log: event_log.to_owned(),
            endorsement_key,
            dir,
            attesting: Mutex::default(),
        })
    }

    /// What `drydock hgs add-host --tpm` takes.
    #[must_use]
    pub fn endorsement_key(&self) -> &EkPublic {
        &self.endorsement_key
    }

    /// One attestation at a time: hold this from its first step to its last.
    pub async fn attesting(&self) -> MutexGuard<'_, ()> {
        self.attesting.lock().await
    }

    /// Makes an attestation key for this one attestation and returns its TPM2B_PUBLIC.
    ///
    /// # Errors
    /// `Failed`, `TimedOut`, `File`.
    pub async fn make_attestation_key(&self) -> Result<Vec<u8>> {
        let tools = self.tools();
        let arguments = "-Q -C ek.ctx -c ak.ctx -G ecc -g sha256 -s ecdsa -u ak.pub -f tss -n ak.name";
        tools.run_flushed("tpm2_createak", &arguments.split(' ').collect::<Vec<_>>()).await?;
        tools.read("ak.pub")
    }

    /// Opens a credential that was made for this TPM's two keys and returns the secret in it.
    ///
    /// # Errors
    /// `Failed` when the credential is for other keys; `TimedOut`, `File`.
    pub async fn activate(&self, credential: &[u8]) -> Result<Vec<u8>> {
        let tools = self.tools();
        tools.write("credential", &[&CREDENTIAL_HEADER, credential].concat())?;
        tools.run("tpm2_startauthsession", &["--policy-session", "-S", "session.ctx"]).await?;
        let activated = async {
            tools.run("tpm2_policysecret", &["-S", "session.ctx", "-c", "e"]).await?;
            let arguments = "-Q -c ak.ctx -C ek.ctx -i credential -o secret -P session:session.ctx";
            tools.run_flushed("tpm2_activatecredential", &arguments.split(' ').collect::<Vec<_>>()).await
        }
        .await;
        // A session that is left open occupies one of a few slots. A refusal matters more than a failure to end it.
        let ended = tools.run("tpm2_flushcontext", &["session.ctx"]).await;
        activated.and(ended)?;
        let secret = tools.read("secret")?;
        tools.remove("secret")?;
        Ok(secret)
    }

    /// TPMS_ATTEST and TPMT_SIGNATURE over the PCRs that the service wants.
    ///
    /// # Errors
    /// `Failed`, `TimedOut`, `File`.
    pub async fn quote(&self, qualifying: &[u8; 32]) -> Result<(Vec<u8>, Vec<u8>)> {
        let tools = self.tools();
        let pcrs = format!("sha256:{}", QUOTED.map(|pcr| pcr.to_string()).join(","));
        let qualifying = HEXLOWER.encode(qualifying);
        let arguments = ["-Q", "-c", "ak.ctx", "-l", &pcrs, "-q", &qualifying, "-m", "attest", "-s", "signature"];
        tools.run_flushed("tpm2_quote", &arguments).await?;
        Ok((tools.read("attest")?, tools.read("signature")?))
    }

    /// The firmware's log.
    ///
    /// # Errors
    /// `File`, `TooLarge`.
    pub fn event_log(&self) -> Result<Vec<u8>> {
        read(&self.event_log, MAX_LOG as u64)
    }

    fn tools(&self) -> Tools<'_> {
        Tools::new(self.tcti.as_deref(), self.dir.path())
    }
}
