//! The names that callers still use, until host follows. Remove this file with them.

use std::path::Path;

use key_protector::TransportKey;

use crate::engine::exposure::ExposureReport;
use crate::engine::{RunningVm, StartOptions};
use crate::error::{Error, LuksFault, Result};
use crate::sealed::SealedRecord;
use crate::spec::VmSpec;

pub use crate::engine::RunningVm as Running; // until host follows
pub use crate::sealed::slot as state; // until host follows

/// Now [`crate::exposure`].
pub mod proof {
    pub use crate::engine::exposure::ExposureReport as Proof; // until host follows
}

/// Now [`crate::HOT_PORTS`].
pub mod qemu {
    pub use crate::engine::HOT_PORTS; // until recovery and tests follow
}

impl RunningVm {
    /// Now [`RunningVm::start_incoming`].
    ///
    /// # Errors
    /// Its errors.
    #[doc(hidden)]
    pub async fn incoming(
        spec: &VmSpec,
        slot: &Path,
        key: &TransportKey,
        record: &SealedRecord,
        options: StartOptions,
    ) -> Result<Self> {
        Self::start_incoming(spec, slot, key, record, options).await
    }

    /// Now [`RunningVm::exposure`].
    ///
    /// # Errors
    /// Its errors.
    #[doc(hidden)]
    pub async fn proof(&self) -> Result<ExposureReport> {
        self.exposure().await
    }

    /// Now [`RunningVm::resume`].
    ///
    /// # Errors
    /// Its errors.
    #[doc(hidden)]
    pub async fn go_on(&self) -> Result<()> {
        self.resume().await
    }
}

impl Error {
    /// Match [`Error::Vars`] instead.
    #[doc(hidden)]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Vars { fault: LuksFault::Key, .. } => "vars-sealed",
            Self::Vars { fault: LuksFault::Format(_), .. } => "vars-format",
            _ => "other",
        }
    }
}
