//! How every part of Drydock reports to whoever runs it.
//!
//! | Module | Subject |
//! |---|---|
//! | [`error`] | the kinds of failure, their exit codes, and the remedy that a message ends with |
//! | [`name`] | which names an object can have |
//! | [`time`] | how an instant is written |
//! | [`wire`] | progress, and the lines in which an agent answers |
//!
//! Nothing here knows about VMs, keys or recoveries: this crate is at the bottom, every other crate can depend on it, and
//! it depends on none.
//!
//! ```
//! use outcome::{Context, Kind, Next, Result};
//!
//! fn read(path: &str) -> Result<String> {
//!     std::fs::read_to_string(path)
//!         .context(Kind::NotFound, || format!("cannot read {path}"))
//!         .or_next(|| "name an existing file".into())
//! }
//!
//! let error = read("/no/such/file").unwrap_err();
//! assert_eq!(error.kind.exit_code(), 5);
//! assert_eq!(error.remedy.as_deref(), Some("name an existing file"));
//! assert_eq!(error.causes.len(), 1);
//! ```
#![warn(missing_docs)]

pub mod error;
pub mod name;
pub mod time;
pub mod wire;

pub use error::{Context, Error, Kind, Next, Result};
pub use name::{check_name, check_name_of};
pub use time::rfc3339;
pub use wire::{Events, Progress};
