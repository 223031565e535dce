//! Where the agent gets transport keys from: a Host Guardian Service, or guardians on this machine.

use key_protector::{Protector, Rolled};
use machine::VmSpec;
use outcome::{Error, Result};

use crate::guarded::{Guarded, Unreleased};
use crate::local_guardians::LocalGuardians;
use crate::offline::{self, OfflineKeys};
use crate::vm_dir::VmDir;

/// Both ways to open a protector. Either way the answer is already rolled: the transport key that opened the
/// state is never used again to seal it.
pub enum KeySource {
    /// A guarded host: the key comes over the network, after attestation.
    Hgs(Box<Guarded>),
    /// Local mode: guardians whose private keys are on this machine. How the repair garage runs a VM.
    Local(LocalGuardians),
}

impl KeySource {
    /// Unwraps the protector's transport key and rolls it.
    ///
    /// # Errors
    /// `KeyRelease` with the HGS's or the protector's reason.
    pub async fn roll(&self, protector: &Protector) -> Result<Rolled> {
        self.release(protector).await.map_err(Error::from)
    }

    /// The same, with what a failure means for a key that this host keeps.
    pub(crate) async fn release(&self, protector: &Protector) -> std::result::Result<Rolled, Unreleased> {
        match self {
            KeySource::Hgs(guarded) => guarded.roll(protector).await,
            KeySource::Local(local) => local.roll(protector).map_err(Unreleased::Unclear),
        }
    }

    /// Where a guarded host keeps keys for starts without the service, also while it keeps none.
    pub(crate) fn offline_keys(&self) -> Option<OfflineKeys<'_>> {
        match self {
            KeySource::Hgs(guarded) => Some(OfflineKeys(guarded.proof())),
            KeySource::Local(_) => None,
        }
    }

    /// Whether the fabric lets this host keep keys. Guardians on this machine need no such thing.
    pub(crate) fn keeps_offline(&self) -> bool {
        matches!(self, KeySource::Hgs(guarded) if guarded.keeps_offline())
    }

    /// Whether keys come from guardians on this machine.
    #[must_use]
    pub fn is_local(&self) -> bool {
        matches!(self, KeySource::Local(_))
    }

    /// After a roll: keeps the new key if owner and fabric allow it, and nothing older in any case. A failure does not
    /// stop the VM: its next start merely needs the service. Returns how many starts the key is good for.
    pub(crate) async fn keep_offline_key(&self, dir: &VmDir, spec: &VmSpec, rolled: &Rolled) -> Option<u32> {
        let allowed = self.keeps_offline() && offline::allowed(&rolled.egress_protector) > 0;
        if allowed && let Some(keys) = self.offline_keys() {
            match keys.keep(dir, spec.id, rolled).await {
                Ok(left) => return Some(left),
                Err(error) => {
                    tracing::warn!(vm = dir.name(), %error, causes = ?error.causes, "no key is kept for offline starts");
                }
            }
        }
        self.drop_offline_key(dir, spec).await;
        None
    }

    /// The same as [`KeySource::forget_offline_key`] where a failure must not stop the caller.
    pub(crate) async fn drop_offline_key(&self, dir: &VmDir, spec: &VmSpec) {
        if let Some(keys) = self.offline_keys()
            && let Err(error) = keys.forget(dir, spec.id).await
        {
            tracing::warn!(vm = dir.name(), %error, causes = ?error.causes, "a kept key could not be forgotten");
        }
    }

    /// Forgets a key that was kept for starts without the Host Guardian Service: the VM leaves this host, or returns to
    /// an earlier state.
    ///
    /// # Errors
    /// When its file cannot be removed, or this host's TPM does not comply.
    pub async fn forget_offline_key(&self, dir: &VmDir) -> Result<()> {
        match self.offline_keys() {
            Some(keys) => keys.forget(dir, dir.spec()?.id).await,
            None => Ok(()),
        }
    }
}
