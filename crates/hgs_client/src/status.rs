//! The outcomes of attestation under the names that admins of guarded fabrics know, and what to do about each.

use attestation::messages::EvaluationLog;
use attestation::tpm::Check;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// The outcome of an attestation: AttestationStatus.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// The host has a health certificate.
    Passed,
    /// The host is not set up to ask this service.
    NotConfigured,
    /// The service does not know the host.
    UnauthorizedHost,
    /// The host was started in a way that the service's policy does not allow.
    InsecureHostConfiguration,
    /// The host's TPM or its evidence cannot be used.
    TpmError,
    /// The firmware's log does not match what the TPM measured.
    TcgLogValidation,
    /// The service was unreachable or could not decide. This may resolve itself.
    TransientError,
    /// The health certificate has expired.
    Expired,
    /// Refused for another reason.
    AttestationFailed,
}

impl Status {
    /// Every outcome.
    pub const ALL: [Status; 9] = [
        Status::Passed,
        Status::NotConfigured,
        Status::UnauthorizedHost,
        Status::InsecureHostConfiguration,
        Status::TpmError,
        Status::TcgLogValidation,
        Status::TransientError,
        Status::Expired,
        Status::AttestationFailed,
    ];

    /// Its name; stable.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Status::Passed => "Passed",
            Status::NotConfigured => "NotConfigured",
            Status::UnauthorizedHost => "UnauthorizedHost",
            Status::InsecureHostConfiguration => "InsecureHostConfiguration",
            Status::TpmError => "TpmError",
            Status::TcgLogValidation => "TcgLogValidation",
            Status::TransientError => "TransientError",
            Status::Expired => "Expired",
            Status::AttestationFailed => "AttestationFailed",
        }
    }

    /// What to do about it, as one sentence.
    #[must_use]
    pub fn remedy(self) -> &'static str {
        match self {
            Status::Passed => "nothing to do",
            Status::NotConfigured => "start the agent with the address and the CA of the service (--hgs, --hgs-ca)",
            Status::UnauthorizedHost => {
                "have the fabric admin run `drydock hgs add-host` with this host's key file or endorsement key"
            }
            Status::InsecureHostConfiguration => "see the sub-statuses: each names what to change on this host",
            Status::TpmError => {
                "check that the TPM is on, that tpm2-tools are installed, and that /dev/tpmrm0 can be opened"
            }
            Status::TcgLogValidation => {
                "restart the host: something was measured into the TPM after the firmware's log ended, or the log was changed"
            }
            Status::TransientError => "try again; if that does not help, check the network and the service's log",
            Status::Expired => "attest again; if that fails, check both clocks",
            Status::AttestationFailed => "use the same version of drydock on this host and on the service",
        }
    }
}

/// Which check of a measured boot failed: AttestationSubStatus.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SubStatus {
    /// Secure Boot was off.
    SecureBoot,
    /// The firmware was in debug mode.
    DebugMode,
    /// The Secure Boot keys are in no baseline.
    SecureBootSettings,
    /// Firmware or boot loader are in no baseline.
    KnownGood,
    /// A check that only the service knows.
    Other,
}

impl SubStatus {
    /// The check that a service's reason names (MS-HGSA 2.2.2.13).
    pub(crate) fn of(reason: &EvaluationLog) -> Self {
        let guid = STANDARD.decode(&reason.reason).unwrap_or_default();
        match Check::ALL.into_iter().find(|check| check.guid().as_slice() == guid) {
            Some(Check::SecureBoot) => SubStatus::SecureBoot,
            Some(Check::NoDebugMode) => SubStatus::DebugMode,
            Some(Check::SecureBootSettings) => SubStatus::SecureBootSettings,
            Some(Check::KnownGood) => SubStatus::KnownGood,
            None => SubStatus::Other,
        }
    }

    /// Its name; stable.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            SubStatus::SecureBoot => "SecureBoot",
            SubStatus::DebugMode => "DebugMode",
            SubStatus::SecureBootSettings => "SecureBootSettings",
            SubStatus::KnownGood => "KnownGood",
            SubStatus::Other => "Other",
        }
    }

    /// What to do about it, as one sentence.
    #[must_use]
    pub fn remedy(self) -> &'static str {
        match self {
            SubStatus::SecureBoot => "turn Secure Boot on in the firmware's setup and restart the host",
            SubStatus::DebugMode => "turn firmware debugging off in the firmware's setup and restart the host",
            SubStatus::SecureBootSettings => {
                "enroll the fabric's Secure Boot keys, or have the fabric admin add a baseline with these: `drydock hgs add-baseline`"
            }
            SubStatus::KnownGood => {
                "if you updated firmware or boot loader, have the fabric admin run `drydock hgs add-baseline`; if not, reinstall the host"
            }
            SubStatus::Other => "ask the fabric admin, who finds the reason with `drydock hgs audit`",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(content: &[u8]) -> EvaluationLog {
        EvaluationLog { result: false, reason: STANDARD.encode(content) }
    }

    #[test]
    fn every_outcome_has_a_name_of_its_own_and_a_remedy() {
        let names: std::collections::BTreeSet<&str> = Status::ALL.into_iter().map(Status::name).collect();
        assert_eq!(names.len(), Status::ALL.len());
        assert!(Status::ALL.into_iter().all(|status| !status.remedy().is_empty()));
        for published in ["Passed", "UnauthorizedHost", "InsecureHostConfiguration", "TransientError", "TpmError"] {
            assert!(names.contains(published), "{published}");
        }
    }

    #[test]
    fn reasons_are_the_published_guids_and_unknown_ones_are_kept_apart() {
        for (guid, expected) in [
            ("6a460ee1-62ea-416f-ae6c-04e29634506d", SubStatus::SecureBoot),
            ("20188fda-d40b-460d-b078-2e7898a42ae9", SubStatus::DebugMode),
            ("756dc455-9528-479a-a86a-c646417316c9", SubStatus::SecureBootSettings),
            ("81f110ba-53c5-4064-9d64-51029fa24f49", SubStatus::KnownGood),
            ("75ad09c9-7254-4d00-96f3-3b09d0aaac54", SubStatus::Other),
        ] {
            let guid = uuid::Uuid::parse_str(guid).expect("a GUID").to_bytes_le();
            assert_eq!(SubStatus::of(&reason(&guid)), expected);
        }
        for strange in [reason(b""), reason(&[0; 17]), EvaluationLog { result: false, reason: "?".to_owned() }] {
            assert_eq!(SubStatus::of(&strange), SubStatus::Other);
        }
    }
}
