//! Any of the documents, read and written again, for fuzz targets and properties.

use zeroize::Zeroizing;

use crate::payload;
use crate::version::ApiVersion;
use crate::wire::{ErrorDocument, RollRequest, RollResponse};

/// The documents of key protection that one side reads from the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Document {
    /// What a host asks.
    RollRequest,
    /// What it gets.
    RollResponse,
    /// Why it gets nothing.
    Error,
    /// Two transport keys in version 1 of the interface, once decrypted.
    PayloadV1,
    /// The same in version 2.
    PayloadV2,
}

impl Document {
    /// Every kind.
    pub const ALL: [Document; 5] =
        [Document::RollRequest, Document::RollResponse, Document::Error, Document::PayloadV1, Document::PayloadV2];

    /// Reads `bytes` as service or client would and writes what was understood; `None` for what they refuse.
    #[must_use]
    pub fn respell(self, bytes: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        let payload = |version| {
            let (ingress, egress) = payload::read(version, bytes)?;
            Some(payload::write(version, &ingress, &egress))
        };
        match self {
            Document::RollRequest => RollRequest::read(bytes).ok().map(|document| document.write().into()),
            Document::RollResponse => RollResponse::read(bytes).ok().map(|document| document.write().into()),
            Document::Error => ErrorDocument::read(bytes).ok().map(|document| document.write().into()),
            Document::PayloadV1 => payload(ApiVersion::V1),
            Document::PayloadV2 => payload(ApiVersion::V2),
        }
    }
}
