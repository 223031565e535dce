//! Key protection: MS-KPS.

pub(crate) mod payload;
pub(crate) mod release;
pub(crate) mod roll;
pub(crate) mod wire;

use zeroize::Zeroizing;

/// The documents of key protection that one side reads from the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Document {
    RollRequest,
    RollResponse,
    Error,
    /// What the transport keys are wrapped in, once decrypted.
    PayloadV1,
    PayloadV2,
}

impl Document {
    /// All of them.
    pub const ALL: [Document; 5] =
        [Document::RollRequest, Document::RollResponse, Document::Error, Document::PayloadV1, Document::PayloadV2];

    /// Reads `bytes` as service or client would and writes down what was understood; `None` for what they refuse.
    #[must_use]
    pub fn respell(self, bytes: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        let payload = |version| {
            let (ingress, egress) = payload::read(version, bytes)?;
            Some(payload::write(version, &ingress, &egress))
        };
        match self {
            Document::RollRequest => wire::Request::read(bytes).ok().map(|document| document.write().into()),
            Document::RollResponse => wire::Response::read(bytes).ok().map(|document| document.write().into()),
            Document::Error => wire::ErrorDocument::read(bytes).ok().map(|document| document.write().into()),
            Document::PayloadV1 => payload(ApiVersion::V1),
            Document::PayloadV2 => payload(ApiVersion::V2),
        }
    }
}

/// Which of the two forms of `rolltransportkey` was called (MS-KPS 2.2.3.10).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ApiVersion {
    V1,
    V2,
}

impl ApiVersion {
    /// Reads the version part of the path, `v1.0` or `v2.0`.
    pub(crate) fn from_path(text: &str) -> Option<Self> {
        match text {
            "v1.0" => Some(ApiVersion::V1),
            "v2.0" => Some(ApiVersion::V2),
            _ => None,
        }
    }

    pub(crate) fn number(self) -> u32 {
        match self {
            ApiVersion::V1 => 1,
            ApiVersion::V2 => 2,
        }
    }
}
