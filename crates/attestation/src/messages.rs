//! The JSON of MS-HGSA v2.0 (section 2.2.2). Where the specification has a `__type`, it comes first.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

/// MS-HGSA 2.2.1.1, AttestationOperationMode: TPM.
pub const MODE_TPM: u32 = 1;
/// MS-HGSA 2.2.1.1, AttestationOperationMode: HostKey.
pub const MODE_HOST_KEY: u32 = 3;
/// Functional level of the service: v2.0, the first with host keys.
pub const FUNCTIONAL_LEVEL: u32 = 2;

/// MS-HGSA 2.2.1.2, AttestationProvidedContentType: those that the two modes use.
pub mod provided {
    /// VirtualSecureModeIdentityKey: the key to certify.
    pub const IDENTITY_KEY: u32 = 0x1;
    /// RtpmContext: one step of the exchange of TPM mode.
    pub const RTPM_CONTEXT: u32 = 0x2;
    /// EndorsementKey: the public key itself, not a certificate of it. The fabric admin registered the key.
    pub const ENDORSEMENT_KEY: u32 = 0x4;
    /// HostKeyPublicKey.
    pub const HOST_KEY_PUBLIC: u32 = 0x8;
    /// HostKeySignature.
    pub const HOST_KEY_SIGNATURE: u32 = 0x9;
}

/// MS-HGSA 2.2.1.3, AttestationResultType: VSMIdentityEncryptionKeyCertificate. The other types certify keys
/// that Drydock's hosts do not have.
pub const RESULT_ENCRYPTION_CERTIFICATE: u32 = 0x1;

/// A typed item of a request or a reply (MS-HGSA 2.2.2.8 and 2.2.2.9).
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tuple {
    /// What the content is: its number in the enumeration of the message.
    #[serde(rename = "m_Item1")]
    pub kind: u32,
    /// Base64.
    #[serde(rename = "m_Item2")]
    pub content: String,
}

impl Tuple {
    /// An item of this kind with this content.
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

/// A host's request (MS-HGSA 2.2.2.1 with 2.2.2.18). The specification gives it no `__type`; one that a client sends is
/// ignored.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AttestationRequest {
    /// Base64 of a GUID that names the session, for logs only.
    #[serde(rename = "SessionId")]
    pub session_id: String,
    /// AttestationResultType.
    #[serde(rename = "RequestedContent")]
    pub requested: Vec<u32>,
    /// Evidence and keys.
    #[serde(rename = "ProvidedContent")]
    pub provided: Vec<Tuple>,
}

/// Why a measured boot was refused (MS-HGSA 2.2.2.13).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct EvaluationLog {
    /// Whether the check passed.
    #[serde(rename = "Result")]
    pub result: bool,
    /// Base64 of a GUID.
    #[serde(rename = "Reason")]
    pub reason: String,
}

/// Every reply of the attestation service. Serde writes the tag first, as the specification demands.
///
/// `Message` in the errors is ours: a sentence for the person who reads the host's log. Clients decide on `__type`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "__type")]
pub enum Reply {
    /// The host passed (MS-HGSA 2.2.2.7).
    #[serde(rename = "HealthCertificateReply:#Microsoft.Windows.RemoteAttestation.Core")]
    HealthCertificate {
        /// The certificate, an AttestationResultType.
        #[serde(rename = "Content")]
        content: Vec<Tuple>,
    },
    /// What the service is (MS-HGSA 2.2.2.10).
    #[serde(rename = "ServiceInfoReply:#Microsoft.Windows.RemoteAttestation.Core")]
    ServiceInfo {
        /// Its functional level.
        #[serde(rename = "FunctionalLevel")]
        functional_level: u32,
        /// Its AttestationOperationMode.
        #[serde(rename = "OperationMode")]
        operation_mode: u32,
        /// All levels that it speaks.
        #[serde(rename = "SupportedFunctionalLevels")]
        supported_functional_levels: Vec<u32>,
    },
    /// The host is to continue (MS-HGSA 2.2.2.6). The specification has it for v1.0 only and names nothing else for a
    /// second step in v2.0.
    #[serde(rename = "TpmReplyContinue:#Microsoft.Windows.RemoteAttestation.Core")]
    TpmContinue {
        /// Base64 of a [`Context`](crate::tpm::Context).
        #[serde(rename = "RtpmActiveContext")]
        context: String,
    },
    /// The host was not started as the policy demands (MS-HGSA 2.2.2.16).
    #[serde(rename = "PolicyEvaluationErrorReply:#Microsoft.Windows.RemoteAttestation.Core")]
    PolicyEvaluationError {
        /// The checks that failed.
        #[serde(rename = "Reasons")]
        reasons: Vec<EvaluationLog>,
        /// Whether to try again.
        #[serde(rename = "Retryable")]
        retryable: bool,
        /// Why, for a person.
        #[serde(rename = "Message", default)]
        message: String,
    },
    /// The TPM's evidence was refused (MS-HGSA 2.2.2.19).
    #[serde(rename = "RtpmErrorReply:#Microsoft.Windows.RemoteAttestation.Core")]
    RtpmError {
        /// Whether to try again.
        #[serde(rename = "Retryable")]
        retryable: bool,
        /// Why, for a person.
        #[serde(rename = "Message", default)]
        message: String,
    },
    /// The firmware's event log was refused (MS-HGSA 2.2.2.20).
    #[serde(rename = "TcgLogValidationErrorReply:#Microsoft.Windows.RemoteAttestation.Core")]
    TcgLogValidationError {
        /// Whether to try again.
        #[serde(rename = "Retryable")]
        retryable: bool,
        /// Why, for a person.
        #[serde(rename = "Message", default)]
        message: String,
    },
    /// The service is in another mode (MS-HGSA 2.2.2.14).
    #[serde(rename = "OperationModeErrorReply:#Microsoft.Windows.RemoteAttestation.Core")]
    OperationModeError {
        /// Its AttestationOperationMode.
        #[serde(rename = "ExpectedOperationMode")]
        expected_operation_mode: u32,
        /// Whether to try again.
        #[serde(rename = "Retryable")]
        retryable: bool,
    },
    /// The request is malformed (MS-HGSA 2.2.2.15).
    #[serde(rename = "PayloadErrorReply:#Microsoft.Windows.RemoteAttestation.Core")]
    PayloadError {
        /// Whether to try again.
        #[serde(rename = "Retryable")]
        retryable: bool,
        /// Why, for a person.
        #[serde(rename = "Message", default)]
        message: String,
    },
    /// The host is not registered, or not the one that is (MS-HGSA 2.2.2.21).
    #[serde(rename = "UnauthorizedErrorReply:#Microsoft.Windows.RemoteAttestation.Core")]
    UnauthorizedError {
        /// Whether to try again.
        #[serde(rename = "Retryable")]
        retryable: bool,
        /// Why, for a person.
        #[serde(rename = "Message", default)]
        message: String,
    },
    /// The service could not decide (MS-HGSA 2.2.2.22).
    #[serde(rename = "UnavailableErrorReply:#Microsoft.Windows.RemoteAttestation.Core")]
    UnavailableError {
        /// Whether to try again.
        #[serde(rename = "Retryable")]
        retryable: bool,
    },
}

impl AttestationRequest {
    /// A request for the certificate that is issued here, over this key in DER, with the evidence of one mode.
    pub(crate) fn for_certificate<const N: usize>(
        session_id: &[u8; 16],
        identity: &[u8],
        evidence: [Tuple; N],
    ) -> Self {
        let mut provided = vec![Tuple::new(provided::IDENTITY_KEY, identity)];
        provided.extend(evidence);
        AttestationRequest {
            session_id: STANDARD.encode(session_id),
            requested: vec![RESULT_ENCRYPTION_CERTIFICATE],
            provided,
        }
    }
}

impl Reply {
    /// The description of this implementation: v2.0, in one mode.
    #[must_use]
    pub fn service_info(operation_mode: u32) -> Self {
        Reply::ServiceInfo {
            functional_level: FUNCTIONAL_LEVEL,
            operation_mode,
            supported_functional_levels: vec![FUNCTIONAL_LEVEL],
        }
    }
}
