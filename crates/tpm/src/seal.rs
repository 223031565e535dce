//! Secrets that this host's TPM releases only after the boot chain in which they were sealed, and only while a counter
//! in the TPM has the value that it had then.
//!
//! After one step of the counter, nothing that was sealed before can be opened by any program: copies of the files are
//! worthless. A counter that is removed and defined again starts above every value that the TPM ever had, so it never
//! returns to an old one (TPM 2.0 Library, Part 3, TPM2_NV_Increment).

use aws_lc_rs::digest::{SHA256, digest};
use data_encoding::HEXLOWER;
use tempfile::TempDir;
use uuid::Uuid;
use zeroize::Zeroizing;

use crate::host_tpm::HostTpm;
use crate::tools::{Result, Tools, TpmError, file_error};

/// Firmware, its option ROMs, boot loader, Secure Boot: what the service's baselines are about.
const PCRS: &str = "sha256:0,2,4,7";
/// Without a password: anyone with access to the TPM can step a counter, and then nothing opens.
const ATTRIBUTES: &str = "authread|authwrite|no_da|nt=counter";
/// TPMA_NV of these attributes.
const ATTRIBUTE_BITS: u32 = 0x0204_0014;
/// TPMA_NV_WRITTEN: the counter was stepped once.
const WRITTEN: u32 = 1 << 29;
const SHA256_ID: u16 = 0x000b;
const COUNTER_LEN: u16 = 8;

/// A counter in the TPM, by its NV index in the range of the machine's owner (TCG Registry of Reserved TPM 2.0 Handles
/// and Localities).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counter(u32);

impl Counter {
    /// The counter of a VM, always the same one. Should two VMs share a counter, a start of one only invalidates the
    /// other's sealed secret.
    #[must_use]
    pub const fn of(vm: Uuid) -> Self {
        let [a, b, c, ..] = vm.into_bytes();
        Counter(0x0180_0000 | u32::from_be_bytes([0, a & 0x3f, b, c]))
    }

    /// Its NV index, as tpm2-tools take it.
    #[must_use]
    pub fn index(self) -> String {
        format!("{:#010x}", self.0)
    }

    /// The Name of the index if it was defined as [`HostTpm::step`] does it (TPM 2.0 Library, Part 1, 16).
    fn name(self, attributes: u32) -> String {
        let public = [
            &self.0.to_be_bytes()[..],
            &SHA256_ID.to_be_bytes(),
            &attributes.to_be_bytes(),
            // No policy.
            &[0, 0],
            &COUNTER_LEN.to_be_bytes(),
        ]
        .concat();
        let name = [&SHA256_ID.to_be_bytes()[..], digest(&SHA256, &public).as_ref()].concat();
        HEXLOWER.encode(&name)
    }
}

/// A sealed secret: a key object's public part, and its private part that only the TPM reads.
pub struct Sealed {
    /// TPM2B_PUBLIC.
    pub public: Vec<u8>,
    /// TPM2B_PRIVATE.
    pub private: Vec<u8>,
}

impl HostTpm {
    /// The counter's value; none if it was never stepped.
    ///
    /// # Errors
    /// `ForeignCounter`, `Failed`, `TimedOut`.
    pub async fn counter(&self, counter: Counter) -> Result<Option<u64>> {
        let work = Work::new(self)?;
        match work.state(counter).await? {
            State::Stepped => work.value(counter).await.map(Some),
            State::Missing | State::New => Ok(None),
        }
    }

    /// Steps the counter, which is defined now if it does not exist, and returns its new value.
    ///
    /// # Errors
    /// `ForeignCounter` when something else has its index, `Failed` when the TPM has no room for it; `TimedOut`.
    pub async fn step(&self, counter: Counter) -> Result<u64> {
        let work = Work::new(self)?;
        let index = counter.index();
        if matches!(work.state(counter).await?, State::Missing) {
            work.tools().run("tpm2_nvdefine", &["-Q", "-C", "o", "-s", "8", "-a", ATTRIBUTES, &index]).await?;
        }
        work.tools().run("tpm2_nvincrement", &["-C", &index, &index]).await?;
        work.value(counter).await
    }

    /// Removes the counter, which invalidates everything that was sealed under it. One that does not exist is fine.
    ///
    /// # Errors
    /// `ForeignCounter`, `Failed`, `TimedOut`.
    pub async fn retire(&self, counter: Counter) -> Result<()> {
        let work = Work::new(self)?;
        match work.state(counter).await? {
            State::Missing => Ok(()),
            State::New | State::Stepped => work.tools().run("tpm2_nvundefine", &["-C", "o", &counter.index()]).await,
        }
    }

    /// Seals a secret of at most 128 bytes, to be opened while the counter's value is `at`.
    ///
    /// # Errors
    /// `Failed`, `TimedOut`, `File`.
    pub async fn seal(&self, secret: &[u8], counter: Counter, at: u64) -> Result<Sealed> {
        let work = Work::new(self)?;
        work.primary().await?;
        work.in_session(&[], async || work.policy(counter, at).await).await?;
        let arguments = "-Q -C primary.ctx -P session:session.ctx -i - -u seal.pub -r seal.priv -L policy \
                         -a fixedtpm|fixedparent|noda";
        let arguments: Vec<&str> = arguments.split_whitespace().collect();
        work.in_session(&["--hmac-session", "--tpmkey-context", "primary.ctx"], async || {
            // Encrypted in transit: a TPM is a chip on a bus.
            work.tools().run("tpm2_sessionconfig", &["session.ctx", "--enable-decrypt"]).await?;
            work.tools().pipe("tpm2_create", &arguments, secret).await.map(drop)
        })
        .await?;
        Ok(Sealed { public: work.tools().read("seal.pub")?, private: work.tools().read("seal.priv")? })
    }

    /// Opens what [`HostTpm::seal`] made.
    ///
    /// # Errors
    /// `Failed` in another TPM, after another boot, or when the counter has another value; `TimedOut`, `File`.
    pub async fn unseal(&self, sealed: &Sealed, counter: Counter, at: u64) -> Result<Zeroizing<Vec<u8>>> {
        let work = Work::new(self)?;
        work.tools().write("seal.pub", &sealed.public)?;
        work.tools().write("seal.priv", &sealed.private)?;
        work.primary().await?;
        let load = ["-Q", "-C", "primary.ctx", "-u", "seal.pub", "-r", "seal.priv", "-c", "seal.ctx"];
        work.tools().run_flushed("tpm2_load", &load).await?;
        work.in_session(&["--policy-session", "--tpmkey-context", "primary.ctx"], async || {
            work.tools().run("tpm2_sessionconfig", &["session.ctx", "--enable-encrypt"]).await?;
            work.policy(counter, at).await?;
            work.tools().pipe("tpm2_unseal", &["-c", "seal.ctx", "-p", "session:session.ctx"], &[]).await
        })
        .await
    }
}

/// What exists at a counter's index.
enum State {
    Missing,
    /// Defined, and not stepped: it has no value yet.
    New,
    Stepped,
}

/// The directory of one operation: VMs are started at the same time.
struct Work<'a> {
    tcti: Option<&'a str>,
    dir: TempDir,
}

impl<'a> Work<'a> {
    fn new(tpm: &'a HostTpm) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("drydock-tpm-").tempdir();
        Ok(Work { tcti: tpm.tcti.as_deref(), dir: dir.map_err(file_error(&std::env::temp_dir()))? })
    }

    fn tools(&self) -> Tools<'_> {
        Tools::new(self.tcti, self.dir.path())
    }

    /// The storage key: derived from the TPM's seed each time, always the same.
    async fn primary(&self) -> Result<()> {
        let arguments = ["-Q", "-C", "o", "-g", "sha256", "-G", "ecc256", "-c", "primary.ctx"];
        self.tools().run_flushed("tpm2_createprimary", &arguments).await
    }

    /// Runs `work` with a session and ends the session whatever the outcome: a TPM has few slots for sessions.
    async fn in_session<T>(&self, kind: &[&str], work: impl AsyncFnOnce() -> Result<T>) -> Result<T> {
        let start = [&["-S", "session.ctx"], kind].concat();
        self.tools().run_flushed("tpm2_startauthsession", &start).await?;
        let done = work().await;
        let ended = self.tools().run_flushed("tpm2_flushcontext", &["session.ctx"]).await;
        done.and_then(|done| ended.map(|()| done))
    }

    /// The policy: this boot, and the counter at one value. In a trial session that need not be its present value.
    async fn policy(&self, counter: Counter, at: u64) -> Result<()> {
        let index = counter.index();
        self.tools().write("at", &at.to_be_bytes())?;
        self.tools().run("tpm2_policypcr", &["-Q", "-S", "session.ctx", "-l", PCRS]).await?;
        let arguments = ["-Q", "-S", "session.ctx", "-C", &index, "-i", "at", "-L", "policy", &index, "eq"];
        self.tools().run("tpm2_policynv", &arguments).await
    }

    async fn state(&self, counter: Counter) -> Result<State> {
        let listed = self.tools().pipe("tpm2_getcap", &["handles-nv-index"], &[]).await?;
        let listed = String::from_utf8_lossy(&listed);
        let mut handles = listed.lines().filter_map(|line| u32::from_str_radix(line.strip_prefix("- 0x")?, 16).ok());
        if !handles.any(|handle| handle == counter.0) {
            return Ok(State::Missing);
        }
        let public = self.tools().pipe("tpm2_nvreadpublic", &[&counter.index()], &[]).await?;
        let public = String::from_utf8_lossy(&public);
        let name = public.lines().find_map(|line| line.trim().strip_prefix("name: ")).unwrap_or_default();
        if name == counter.name(ATTRIBUTE_BITS) {
            Ok(State::New)
        } else if name == counter.name(ATTRIBUTE_BITS | WRITTEN) {
            Ok(State::Stepped)
        } else {
            Err(TpmError::ForeignCounter { index: counter.index() })
        }
    }

    async fn value(&self, counter: Counter) -> Result<u64> {
        let index = counter.index();
        let tool = "tpm2_nvread";
        let value = self.tools().pipe(tool, &["-C", &index, "-s", "8", &index], &[]).await?;
        let value = value.as_slice().try_into().map(u64::from_be_bytes);
        value.map_err(|_| TpmError::Failed { tool, message: "not the eight bytes of a counter".into() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counters_name_is_the_tpms() {
        // The names that swtpm reports for an index with these attributes, before and after its first step.
        let counter = Counter(0x0180_abcd);
        assert_eq!(
            counter.name(ATTRIBUTE_BITS),
            "000bd554e668889c832e1509ed2d348cbdd456f5ea908acf97429a073d1e2dab9a19"
        );
        assert_eq!(
            counter.name(ATTRIBUTE_BITS | WRITTEN),
            "000b053ca6d48e67c27b8d1d7703a7e5bba0d173a515b0924dc9504692fd7337a2d0"
        );
    }

    #[test]
    fn counters_stay_in_the_owners_range() {
        for id in [[0; 16], [0xff; 16], [0x5a; 16]] {
            let Counter(index) = Counter::of(Uuid::from_bytes(id));
            assert!((0x0180_0000..0x01c0_0000).contains(&index), "{index:#x}");
        }
    }
}
