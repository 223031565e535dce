//! The JSON of MS-HGSA v2.0 (section 2.2.2). `__type`, where the specification has one, comes first.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

/// MS-HGSA 2.2.1.1, AttestationOperationMode: TPM.
pub const MODE_TPM: u32 = 1;
/// MS-HGSA 2.2.1.1, AttestationOperationMode: HostKey.
pub const MODE_HOST_KEY: u32 = 3;
/// Functional level that the service speaks: v2.0, the first with host keys.
pub const FUNCTIONAL_LEVEL: u32 = 2;

/// MS-HGSA 2.2.1.2, AttestationProvidedContentType: the ones that the two modes use.
pub mod provided {
    pub const IDENTITY_KEY: u32 = 0x1;
    pub const RTPM_CONTEXT: u32 = 0x2;
    /// The public key itself rather than a certificate of it: the fabric admin registered the key.
    pub const ENDORSEMENT_KEY: u32 = 0x4;
    pub const HOST_KEY_PUBLIC: u32 = 0x8;
    pub const HOST_KEY_SIGNATURE: u32 = 0x9;
}

/// MS-HGSA 2.2.1.3, AttestationResultType: VSMIdentityEncryptionKeyCertificate. The other types certify keys
/// that Drydock's hosts do not have.
pub const RESULT_ENCRYPTION_CERTIFICATE: u32 = 0x1;

/// MS-HGSA 2.2.2.8 and 2.2.2.9.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tuple {
    #[serde(rename = "m_Item1")]
    pub kind: u32,
    /// Base64.
    #[serde(rename = "m_Item2")]
    pub content: String,
}

impl Tuple {
    #[must_use]
    pub fn new(kind: u32, content: &[u8]) -> Self {
        Tuple { kind, content: STANDARD.encode(content) }
    }

    /// The content; `None` when it is not base64.
    #[must_use]
    pub fn decode(&self) -> Option<Vec<u8>> {
        STANDARD.decode(&self.content).ok()
    }
}

/// MS-HGSA 2.2.2.1 with 2.2.2.18. The specification gives it no `__type`; one that a client sends is ignored.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AttestationRequest {
    /// Base64 of a GUID that names the session, for logs only.
    #[serde(rename = "SessionId")]
    pub session_id: String,
    /// AttestationResultType.
    #[serde(rename = "RequestedContent")]
    pub requested: Vec<u32>,
    #[serde(rename = "ProvidedContent")]
    pub provided: Vec<Tuple>,
}

/// MS-HGSA 2.2.2.13.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct EvaluationLog {
    #[serde(rename = "Result")]
    pub result: bool,
    /// Base64 of a GUID.
    #[serde(rename = "Reason")]
    pub reason: String,
}

/// Everything the attestation service answers. Serde writes the tag first, as the specification demands.
///
/// `Message` in the errors is ours: a sentence for whoever reads the host's log. Clients decide on `__type`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "__type")]
pub enum Reply {
    /// MS-HGSA 2.2.2.7.
    #[serde(rename = "HealthCertificateReply:#Microsoft.Windows.RemoteAttestation.Core")]
    HealthCertificate {
        #[serde(rename = "Content")]
        content: Vec<Tuple>,
    },
    /// MS-HGSA 2.2.2.10.
    #[serde(rename = "ServiceInfoReply:#Microsoft.Windows.RemoteAttestation.Core")]
    ServiceInfo {
        #[serde(rename = "FunctionalLevel")]
        functional_level: u32,
        #[serde(rename = "OperationMode")]
        operation_mode: u32,
        #[serde(rename = "SupportedFunctionalLevels")]
        supported_functional_levels: Vec<u32>,
    },
    /// MS-HGSA 2.2.2.6. The specification has it for v1.0 only and names nothing else for a second step in v2.0.
    #[serde(rename = "TpmReplyContinue:#Microsoft.Windows.RemoteAttestation.Core")]
    TpmContinue {
        /// Base64 of a [`Context`](crate::tpm::Context).
        #[serde(rename = "RtpmActiveContext")]
        context: String,
    },
    /// MS-HGSA 2.2.2.16.
    #[serde(rename = "PolicyEvaluationErrorReply:#Microsoft.Windows.RemoteAttestation.Core")]
    PolicyEvaluationError {
        #[serde(rename = "Reasons")]
        reasons: Vec<EvaluationLog>,
        #[serde(rename = "Retryable")]
        retryable: bool,
        #[serde(rename = "Message", default)]
        message: String,
    },
    /// MS-HGSA 2.2.2.19.
    #[serde(rename = "RtpmErrorReply:#Microsoft.Windows.RemoteAttestation.Core")]
    RtpmError {
        #[serde(rename = "Retryable")]
        retryable: bool,
        #[serde(rename = "Message", default)]
        message: String,
    },
    /// MS-HGSA 2.2.2.20.
    #[serde(rename = "TcgLogValidationErrorReply:#Microsoft.Windows.RemoteAttestation.Core")]
    TcgLogValidationError {
        #[serde(rename = "Retryable")]
        retryable: bool,
        #[serde(rename = "Message", default)]
        message: String,
    },
    /// MS-HGSA 2.2.2.14.
    #[serde(rename = "OperationModeErrorReply:#Microsoft.Windows.RemoteAttestation.Core")]
    OperationModeError {
        #[serde(rename = "ExpectedOperationMode")]
        expected_operation_mode: u32,
        #[serde(rename = "Retryable")]
        retryable: bool,
    },
    /// MS-HGSA 2.2.2.15.
    #[serde(rename = "PayloadErrorReply:#Microsoft.Windows.RemoteAttestation.Core")]
    PayloadError {
        #[serde(rename = "Retryable")]
        retryable: bool,
        #[serde(rename = "Message", default)]
        message: String,
    },
    /// MS-HGSA 2.2.2.21.
    #[serde(rename = "UnauthorizedErrorReply:#Microsoft.Windows.RemoteAttestation.Core")]
    UnauthorizedError {
        #[serde(rename = "Retryable")]
        retryable: bool,
        #[serde(rename = "Message", default)]
        message: String,
    },
    /// MS-HGSA 2.2.2.22.
    #[serde(rename = "UnavailableErrorReply:#Microsoft.Windows.RemoteAttestation.Core")]
    UnavailableError {
        #[serde(rename = "Retryable")]
        retryable: bool,
    },
}

impl Reply {
    /// What this implementation is: v2.0, in one mode.
    #[must_use]
    pub fn service_info(operation_mode: u32) -> Self {
        Reply::ServiceInfo {
            functional_level: FUNCTIONAL_LEVEL,
            operation_mode,
            supported_functional_levels: vec![FUNCTIONAL_LEVEL],
        }
    }
}
