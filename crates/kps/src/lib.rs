//! Key protection (MS-KPS): its messages, and the layers in which transport keys travel. No I/O, no clock.

mod document;
mod payload;
pub mod release;
mod version;
pub mod wire;

pub use document::Document;
pub use version::ApiVersion;
