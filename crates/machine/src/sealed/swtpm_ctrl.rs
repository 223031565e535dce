//! swtpm's control channel: the part that moves a vTPM's state from one key to another in memory.
//!
//! A request is a big-endian command number and its parameters; an answer begins with a TPM result code
//! (swtpm_ioctls(3), `include/swtpm/tpm_ioctl.h` in swtpm's sources).

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use zeroize::Zeroizing;

use crate::error::{Error, Result};

const CMD_INIT: u32 = 2;
const CMD_SHUTDOWN: u32 = 3;
const CMD_GET_STATEBLOB: u32 = 12;
const CMD_SET_STATEBLOB: u32 = 13;
const BLOB_PERMANENT: u32 = 1;
/// In a request: the state in plain text.
const STATE_DECRYPTED: u32 = 1;
/// In an answer: the state is still encrypted.
const STATE_ENCRYPTED: u32 = 2;
/// The most that swtpm itself takes, in bytes.
const MAX_STATE: u32 = 512 * 1024;
/// A new TPM computes RSA keys, which takes a while under nested emulation.
const DEADLINE: Duration = Duration::from_secs(120);

/// The only client of an swtpm.
pub(crate) struct Control(UnixStream);

impl Control {
    pub(crate) fn new(stream: UnixStream) -> Self {
        Self(stream)
    }

    /// Starts the TPM: it reads its state, or creates a new one if it has none.
    pub(crate) async fn init(&mut self) -> Result<()> {
        self.command("CMD_INIT", CMD_INIT, &0u32.to_be_bytes()).await
    }

    /// Stops the TPM; its state is then on disk.
    pub(crate) async fn shutdown(&mut self) -> Result<()> {
        self.command("CMD_SHUTDOWN", CMD_SHUTDOWN, &[]).await
    }

    /// The permanent state of a started TPM, in plain text.
    pub(crate) async fn permanent_state(&mut self) -> Result<Zeroizing<Vec<u8>>> {
        let mut request = Vec::new();
        for field in [STATE_DECRYPTED, BLOB_PERMANENT, 0] {
            request.extend_from_slice(&field.to_be_bytes());
        }
        self.command("CMD_GET_STATEBLOB", CMD_GET_STATEBLOB, &request).await?;
        let flags = self.read_u32().await?;
        let total = self.read_u32().await?;
        let length = self.read_u32().await?;
        if flags & STATE_ENCRYPTED != 0 {
            return Err(Error::TpmProtocol { reason: "the state arrived encrypted" });
        }
        if length != total || length == 0 || length > MAX_STATE {
            return Err(Error::TpmProtocol { reason: "the state has an invalid length" });
        }
        let mut state = Zeroizing::new(vec![0; length as usize]);
        self.within(async |s: &mut UnixStream| s.read_exact(&mut state).await.map(|_| ())).await?;
        Ok(state)
    }

    /// Gives a TPM that is not started yet the permanent state that it will start with.
    pub(crate) async fn set_permanent_state(&mut self, state: &[u8]) -> Result<()> {
        let length = u32::try_from(state.len())
            .ok()
            .filter(|n| *n <= MAX_STATE)
            .ok_or(Error::TpmProtocol { reason: "the state has an invalid length" })?;
        let mut request = Zeroizing::new(Vec::with_capacity(12 + state.len()));
        for field in [0, BLOB_PERMANENT, length] {
            request.extend_from_slice(&field.to_be_bytes());
        }
        request.extend_from_slice(state);
        self.command("CMD_SET_STATEBLOB", CMD_SET_STATEBLOB, &request).await
    }

    /// Sends a command and reads the result code. In one write: swtpm waits half a second for the whole request.
    async fn command(&mut self, name: &'static str, number: u32, parameters: &[u8]) -> Result<()> {
        let mut request = Zeroizing::new(Vec::with_capacity(4 + parameters.len()));
        request.extend_from_slice(&number.to_be_bytes());
        request.extend_from_slice(parameters);
        self.within(async |s: &mut UnixStream| s.write_all(&request).await).await?;
        match self.read_u32().await? {
            0 => Ok(()),
            code => Err(Error::Tpm { command: name, code }),
        }
    }

    async fn read_u32(&mut self) -> Result<u32> {
        self.within(async |s: &mut UnixStream| s.read_u32().await).await
    }

    async fn within<T>(&mut self, work: impl AsyncFnOnce(&mut UnixStream) -> std::io::Result<T>) -> Result<T> {
        tokio::time::timeout(DEADLINE, work(&mut self.0))
            .await
            .map_err(|_| Error::Deadline { what: "the vTPM", seconds: DEADLINE.as_secs() })?
            .map_err(Error::system("talk to swtpm"))
    }
}
