//! Any of the documents, read and written again: what fuzzing and properties need.

use zeroize::Zeroizing;

use crate::version::ApiVersion;
use crate::{payload, wire};

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
