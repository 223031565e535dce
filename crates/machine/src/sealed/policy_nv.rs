//! The active policy, measured into the vTPM before the guest starts, so that a guest can refuse to unlock its disk
//! unattended while a console may be open.
//!
//! A PCR does not work: the firmware clears the PCR bank at every start, after the last moment at which it could be
//! extended from outside. The policy NV index is of the type that can only be *extended* (TPM 2.0 Library, Part 2, 13.2,
//! `TPM_NT_EXTEND`), and is created again with each sealing:
//!
//! ```text
//! 0x01440001 = SHA-256( 32 zero bytes ‖ SHA-256("drydock policy: " ‖ policy) )
//! ```
//!
//! Anyone may read it and name it in a TPM policy (`TPM2_PolicyNV`). Extending, writing or removing it takes the platform
//! hierarchy, whose authorization the firmware sets to a random value before it starts any other code.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::error::{Error, Result};
use crate::spec::Policy;

/// In the range of NV indices that the TCG's registry leaves to the platform manufacturer.
const INDEX: u32 = 0x0144_0001;
/// Part 2, 7.4.
const RH_PLATFORM: u32 = 0x4000_000c;
/// `TPM_ST_NO_SESSIONS` and `TPM_ST_SESSIONS`: Part 2, 6.9.
const NO_SESSIONS: u16 = 0x8001;
const SESSIONS: u16 = 0x8002;
/// Part 2, 6.5.2.
const STARTUP: u32 = 0x144;
const SHUTDOWN: u32 = 0x145;
const NV_UNDEFINE_SPACE: u32 = 0x122;
const NV_DEFINE_SPACE: u32 = 0x12a;
const NV_EXTEND: u32 = 0x136;
/// `TPM_SU_CLEAR`.
const CLEAR: [u8; 2] = [0, 0];
const ALG_SHA256: u16 = 0x000b;
/// Part 2, 13.4: PPWRITE, an extend index, PPREAD, OWNERREAD, AUTHREAD, NO_DA, PLATFORMCREATE.
const ATTRIBUTES: u32 = 1 | 4 << 4 | 1 << 16 | 1 << 17 | 1 << 18 | 1 << 25 | 1 << 30;
const DIGEST: u16 = 32;
/// `TPM_RC_HANDLE` for the second handle: no such index exists.
const NO_SUCH_INDEX: u32 = 0x28b;
const HEADER: usize = 10;
/// Longer than any answer to these commands, in bytes.
const MAX_ANSWER: usize = 256;

/// Writes the policy NV index of a TPM that has no VM attached and was not started up yet.
pub(crate) async fn measure(tpm: &mut UnixStream, policy: Policy) -> Result<()> {
    accepted("TPM2_Startup", send(tpm, NO_SESSIONS, STARTUP, &CLEAR).await?)?;
    let platform = RH_PLATFORM.to_be_bytes();
    let index = INDEX.to_be_bytes();
    let undefine = [&platform[..], &index, &EMPTY_PASSWORD].concat();
    match send(tpm, SESSIONS, NV_UNDEFINE_SPACE, &undefine).await? {
        NO_SUCH_INDEX => {}
        code => accepted("TPM2_NV_UndefineSpace", code)?,
    }
    let public = [&index[..], &ALG_SHA256.to_be_bytes(), &ATTRIBUTES.to_be_bytes(), &[0, 0], &DIGEST.to_be_bytes()];
    let define = [&platform[..], &EMPTY_PASSWORD, &[0, 0], &sized(&public.concat())].concat();
    accepted("TPM2_NV_DefineSpace", send(tpm, SESSIONS, NV_DEFINE_SPACE, &define).await?)?;
    let extend = [&platform[..], &index, &EMPTY_PASSWORD, &sized(&event(policy))].concat();
    accepted("TPM2_NV_Extend", send(tpm, SESSIONS, NV_EXTEND, &extend).await?)?;
    accepted("TPM2_Shutdown", send(tpm, NO_SESSIONS, SHUTDOWN, &CLEAR).await?)
}

/// What the index is extended with.
fn event(policy: Policy) -> [u8; 32] {
    let text = format!("drydock policy: {policy}");
    let mut digest = [0; 32];
    digest.copy_from_slice(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, text.as_bytes()).as_ref());
    digest
}

/// An authorization area: one password session with an empty password. A TPM that was just started has no other
/// authorization set.
const EMPTY_PASSWORD: [u8; 13] = [0, 0, 0, 9, 0x40, 0, 0, 9, 0, 0, 0, 0, 0];

/// Prefixes `bytes` with their length in two bytes. Everything here is short.
fn sized(bytes: &[u8]) -> Vec<u8> {
    let length = u16::try_from(bytes.len()).unwrap_or(u16::MAX);
    [&length.to_be_bytes()[..], bytes].concat()
}

/// Sends a command and returns the response code.
async fn send(tpm: &mut UnixStream, tag: u16, command: u32, parameters: &[u8]) -> Result<u32> {
    let length = u32::try_from(HEADER + parameters.len()).unwrap_or(u32::MAX);
    let request = [&tag.to_be_bytes()[..], &length.to_be_bytes(), &command.to_be_bytes(), parameters].concat();
    tpm.write_all(&request).await.map_err(Error::system("talk to swtpm"))?;
    let mut header = [0; HEADER];
    tpm.read_exact(&mut header).await.map_err(Error::system("talk to swtpm"))?;
    let [_, _, l0, l1, l2, l3, c0, c1, c2, c3] = header;
    let rest = usize::try_from(u32::from_be_bytes([l0, l1, l2, l3])).ok().and_then(|all| all.checked_sub(HEADER));
    let Some(rest) = rest.filter(|rest| *rest <= MAX_ANSWER) else {
        return Err(Error::TpmProtocol { reason: "an answer has a wrong length" });
    };
    tpm.read_exact(&mut vec![0; rest]).await.map_err(Error::system("talk to swtpm"))?;
    Ok(u32::from_be_bytes([c0, c1, c2, c3]))
}

fn accepted(command: &'static str, code: u32) -> Result<()> {
    if code == 0 { Ok(()) } else { Err(Error::Tpm { command, code }) }
}
