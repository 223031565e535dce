//! Where the agent gets transport keys from: a Host Guardian Service, or guardians on this machine.

use key_protector::{Protector, Rolled};
use outcome::{Error, Result};

use crate::guarded::{Guarded, Unreleased};
use crate::local_guardians::LocalGuardians;
use crate::offline::OfflineKeys;

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
}
