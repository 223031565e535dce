//! This host's TPM, through Debian's tpm2-tools. Everything is a file in a private folder that goes when this does;
//! none of it is secret for long: the one secret is the service's, for one challenge. What is sealed goes through pipes.

mod seal;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use attestation::tpm::{EkPublic, MAX_LOG, QUOTED};
use confine::PATH;
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::sync::{Mutex, MutexGuard};
use zeroize::Zeroizing;

pub use seal::{Counter, Sealed};

/// A hardware TPM takes up to half a minute for an RSA key.
const DEADLINE: Duration = Duration::from_secs(120);
/// Far above anything the tools write for us.
const MAX_OUTPUT: u64 = 64 << 10;
/// What Linux shows of the firmware's log.
pub const KERNEL_LOG: &str = "/sys/kernel/security/tpm0/binary_bios_measurements";
/// How tpm2-tools mark a credential file: a magic number and a version, before the two TPM2Bs.
const CREDENTIAL_HEADER: [u8; 8] = [0xba, 0xdc, 0xc0, 0xde, 0, 0, 0, 1];

/// Why this host's TPM gave no evidence.
#[derive(Debug, thiserror::Error)]
pub enum TpmError {
    #[error("{tool} cannot be run: is Debian's package tpm2-tools installed?")]
    NoTool { tool: &'static str, source: std::io::Error },
    #[error("{tool} failed: {message}")]
    Failed { tool: &'static str, message: String },
    #[error("{tool} did not finish in {} seconds", DEADLINE.as_secs())]
    TimedOut { tool: &'static str },
    #[error("{} cannot be read or written", .path.display())]
    File { path: PathBuf, source: std::io::Error },
    #[error("{} is larger than such a file can be", .path.display())]
    TooLarge { path: PathBuf },
    #[error("the TPM has no endorsement key of the default template")]
    EndorsementKey(#[source] attestation::Error),
    #[error("something that is not ours is at the TPM's NV index {index}")]
    ForeignCounter { index: String },
}

type Result<T> = std::result::Result<T, TpmError>;

/// A TPM with its endorsement key, and an attestation key once one was asked for.
pub struct HostTpm {
    tcti: Option<String>,
    event_log: PathBuf,
    folder: TempDir,
    endorsement_key: EkPublic,
    /// What an attestation leaves in the folder between its steps is its own.
    attesting: Mutex<()>,
}

impl HostTpm {
    /// Opens the TPM. `tcti` says where it is, in the words of tpm2-tools (`device:/dev/tpmrm0`, which is also the
    /// default); `event_log` is the firmware's, on Linux [`KERNEL_LOG`].
    ///
    /// # Errors
    /// `NoTool`, `Failed`, `EndorsementKey`.
    pub async fn open(tcti: Option<&str>, event_log: &Path) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("drydock-tpm-").tempdir();
        let folder = folder.map_err(file_error(&std::env::temp_dir()))?;
        let tools = Tools { tcti, folder: folder.path() };
        tools.run_flushed("tpm2_createek", &["-c", "ek.ctx", "-G", "rsa", "-u", "ek.pem", "-f", "pem"]).await?;
        let pem = tools.read("ek.pem")?;
        let endorsement_key = EkPublic::from_file(&pem).map_err(TpmError::EndorsementKey)?;
        Ok(HostTpm {
            tcti: tcti.map(str::to_owned),
            event_log: event_log.to_owned(),
            endorsement_key,
            folder,
            attesting: Mutex::default(),
        })
    }

    /// What `drydock hgs add-host --tpm` takes.
    #[must_use]
    pub fn endorsement_key(&self) -> &EkPublic {
        &self.endorsement_key
    }

    /// One attestation at a time: hold this from its first step to its last.
    pub(super) async fn attesting(&self) -> MutexGuard<'_, ()> {
        self.attesting.lock().await
    }

    /// Makes an attestation key for this one attestation: its TPM2B_PUBLIC.
    ///
    /// # Errors
    /// `Failed`, `TimedOut`, `File`.
    pub async fn make_attestation_key(&self) -> Result<Vec<u8>> {
        let tools = self.tools();
        let arguments = "-Q -C ek.ctx -c ak.ctx -G ecc -g sha256 -s ecdsa -u ak.pub -f tss -n ak.name";
        tools.run_flushed("tpm2_createak", &arguments.split(' ').collect::<Vec<_>>()).await?;
        tools.read("ak.pub")
    }

    /// The secret in a credential for this TPM's two keys.
    ///
    /// # Errors
    /// `Failed` when the credential is for others.
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
        // A session that stays takes one of a few places; a refusal matters more than a failure to end it.
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
        let qualifying = crate::hex::encode(qualifying);
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
        Tools { tcti: self.tcti.as_deref(), folder: self.folder.path() }
    }
}

struct Tools<'a> {
    tcti: Option<&'a str>,
    folder: &'a Path,
}

impl Tools<'_> {
    async fn run(&self, tool: &'static str, arguments: &[&str]) -> Result<()> {
        self.pipe(tool, arguments, &[]).await.map(drop)
    }

    /// Gives the tool `input`, a few bytes, and returns what it says.
    async fn pipe(&self, tool: &'static str, arguments: &[&str], input: &[u8]) -> Result<Zeroizing<Vec<u8>>> {
        let mut command = Command::new(tool);
        command.env("PATH", PATH);
        command.args(arguments).current_dir(self.folder).kill_on_drop(true);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        if let Some(tcti) = self.tcti {
            command.env("TPM2TOOLS_TCTI", tcti);
        }
        // The tools' libraries log to the standard error in colours and many lines.
        command.env("TSS2_LOG", "all+NONE");
        let mut child = command.spawn().map_err(|source| TpmError::NoTool { tool, source })?;
        let talk = async {
            if let Some(mut pipe) = child.stdin.take() {
                // A tool that failed before it read says why itself.
                let _ = pipe.write_all(input).await;
            }
            child.wait_with_output().await
        };
        let output = tokio::time::timeout(DEADLINE, talk).await.map_err(|_| TpmError::TimedOut { tool })?;
        let output = output.map_err(|source| TpmError::NoTool { tool, source })?;
        if output.status.success() {
            return Ok(Zeroizing::new(output.stdout));
        }
        let text = String::from_utf8_lossy(&output.stderr);
        let message = text.lines().next().unwrap_or("without a word").chars().take(200).collect();
        Err(TpmError::Failed { tool, message })
    }

    /// Takes the keys out of the TPM that the tool left in it, also when it failed. Behind a resource manager there
    /// are none; a TPM without one has three places.
    async fn run_flushed(&self, tool: &'static str, arguments: &[&str]) -> Result<()> {
        let done = self.run(tool, arguments).await;
        let flushed = self.run("tpm2_flushcontext", &["-t"]).await;
        done.and(flushed)
    }

    fn read(&self, name: &str) -> Result<Vec<u8>> {
        read(&self.folder.join(name), MAX_OUTPUT)
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let path = self.folder.join(name);
        fs::write(&path, bytes).map_err(file_error(&path))
    }

    fn remove(&self, name: &str) -> Result<()> {
        let path = self.folder.join(name);
        fs::remove_file(&path).map_err(file_error(&path))
    }
}

fn read(path: &Path, limit: u64) -> Result<Vec<u8>> {
    use std::io::Read as _;
    let mut bytes = Vec::new();
    let file = fs::File::open(path).map_err(file_error(path))?;
    file.take(limit + 1).read_to_end(&mut bytes).map_err(file_error(path))?;
    if bytes.len() as u64 > limit {
        return Err(TpmError::TooLarge { path: path.to_owned() });
    }
    Ok(bytes)
}

fn file_error(path: &Path) -> impl FnOnce(std::io::Error) -> TpmError {
    let path = path.to_owned();
    move |source| TpmError::File { path, source }
}
