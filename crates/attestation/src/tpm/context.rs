//! The remote TPM Context of MS-HGSA 2.2.2.25 to 2.2.2.27, which wraps what the specification leaves to the
//! implementation.
//!
//! ```text
//! Size | Version = 1 | DataBlobCount | Reserved | EncStateObject: length, bytes | DataBlob: kind, length, bytes | …
//! ```
//! All numbers are 32 bits, little endian. The specification gives neither the state nor a blob a length; here
//! both have one.

use super::event_log::MAX_LOG;
use super::reader::Reader;

const VERSION: u32 = 1;
const HEADER: usize = 16;
/// More than any step of the exchange has.
const MAX_BLOBS: u32 = 8;
/// A log, a quote and their frames.
const MAX_CONTEXT: usize = MAX_LOG + (16 << 10);
const MAX_STATE: usize = 1024;

/// What a data blob holds. The numbers are ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blob {
    /// Host: TPM2B_PUBLIC of the attestation key.
    AttestationKey,
    /// Service: TPM2B_ID_OBJECT, then TPM2B_ENCRYPTED_SECRET.
    Credential,
    /// Service: 32 bytes.
    Nonce,
    /// Host: the secret that was in the credential.
    Secret,
    /// Host: TPMS_ATTEST.
    Quote,
    /// Host: TPMT_SIGNATURE.
    Signature,
    /// Host: the firmware's event log.
    EventLog,
}

impl Blob {
    const ALL: [Blob; 7] = [
        Blob::AttestationKey,
        Blob::Credential,
        Blob::Nonce,
        Blob::Secret,
        Blob::Quote,
        Blob::Signature,
        Blob::EventLog,
    ];

    fn number(self) -> u32 {
        match self {
            Blob::AttestationKey => 0x4444_0001,
            Blob::Credential => 0x4444_0002,
            Blob::Nonce => 0x4444_0003,
            Blob::Secret => 0x4444_0004,
            Blob::Quote => 0x4444_0005,
            Blob::Signature => 0x4444_0006,
            Blob::EventLog => 0x4444_0007,
        }
    }

    fn from_number(number: u32) -> Option<Self> {
        Blob::ALL.into_iter().find(|blob| blob.number() == number)
    }
}

/// One step of the exchange.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Context {
    /// What the service wants back unchanged: sealed, so that it need not remember it.
    pub state: Vec<u8>,
    blobs: Vec<(Blob, Vec<u8>)>,
}

impl Context {
    /// A step with this state and these blobs.
    #[must_use]
    pub fn new(state: Vec<u8>, blobs: Vec<(Blob, Vec<u8>)>) -> Self {
        Context { state, blobs }
    }

    /// The blob of this kind.
    #[must_use]
    pub fn blob(&self, kind: Blob) -> Option<&[u8]> {
        self.blobs.iter().find(|(found, _)| *found == kind).map(|(_, bytes)| bytes.as_slice())
    }

    /// Whether it carries nothing: how a host asks what the service wants.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.state.is_empty() && self.blobs.is_empty()
    }

    /// The bytes of MS-HGSA 2.2.2.25; `None` when there are more than [`parse`](Self::parse) accepts.
    #[must_use]
    pub fn write(&self) -> Option<Vec<u8>> {
        let mut body = Vec::new();
        body.extend_from_slice(&u32::try_from(self.state.len()).ok()?.to_le_bytes());
        body.extend_from_slice(&self.state);
        for (kind, bytes) in &self.blobs {
            body.extend_from_slice(&kind.number().to_le_bytes());
            body.extend_from_slice(&u32::try_from(bytes.len()).ok()?.to_le_bytes());
            body.extend_from_slice(bytes);
        }
        let size = HEADER + body.len();
        if size > MAX_CONTEXT {
            return None;
        }
        let mut context = Vec::with_capacity(size);
        for number in [u32::try_from(size).ok()?, VERSION, u32::try_from(self.blobs.len()).ok()?, 0] {
            context.extend_from_slice(&number.to_le_bytes());
        }
        context.extend_from_slice(&body);
        Some(context)
    }

    /// Reads a context; `None` for anything but this layout with known blobs, each at most once.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        if bytes.len() > MAX_CONTEXT {
            return None;
        }
        let mut reader = Reader::new(bytes);
        let size = usize::try_from(reader.le32()?).ok()?;
        let (version, count) = (reader.le32()?, reader.le32()?);
        // Reserved: a receiver ignores it.
        reader.le32()?;
        if size != bytes.len() || version != VERSION || count > MAX_BLOBS {
            return None;
        }
        let length = usize::try_from(reader.le32()?).ok().filter(|length| *length <= MAX_STATE)?;
        let mut context = Context { state: reader.bytes(length)?.to_vec(), blobs: Vec::new() };
        for _ in 0..count {
            let kind = Blob::from_number(reader.le32()?)?;
            let length = usize::try_from(reader.le32()?).ok()?;
            let bytes = reader.bytes(length)?;
            if context.blob(kind).is_some() {
                return None;
            }
            context.blobs.push((kind, bytes.to_vec()));
        }
        reader.end()?;
        Some(context)
    }
}
