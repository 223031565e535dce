//! One error type for the agent and its clients: a stable kind, a message, a remedy, and what caused it.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What went wrong, in the few kinds a script can tell apart. The names and exit codes are stable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Something broke that should not: a bug, an I/O error.
    Internal,
    /// The security policy forbids it.
    Refused,
    /// A file or a field that was given is wrong, altered, stale or of another VM.
    BadInput,
    /// No VM, recovery, file or switch of that name.
    NotFound,
    /// Right request, wrong moment: the VM is running, a recovery is under way.
    WrongState,
    /// The Host Guardian Service did not release the key.
    KeyRelease,
    /// A program that is needed is not installed.
    MissingTool,
    /// Not enough disk space or memory.
    NoSpace,
    /// Somebody else is working on it.
    Busy,
    /// Stopped on request (Ctrl-C); run it again to go on.
    Interrupted,
    /// The agent does not answer.
    Unreachable,
}

impl Kind {
    /// The process exit code that the command line ends with; documented in `docs/exit-codes.md`.
    #[must_use]
    pub const fn exit_code(self) -> u8 {
        match self {
            Kind::Internal => 1,
            Kind::Refused => 3,
            Kind::BadInput => 4,
            Kind::NotFound => 5,
            Kind::WrongState => 6,
            Kind::KeyRelease => 7,
            Kind::MissingTool => 8,
            Kind::NoSpace => 9,
            Kind::Busy => 10,
            Kind::Unreachable => 11,
            Kind::Interrupted => 130,
        }
    }
}

/// An error that can cross the agent's socket: its causes are flattened to text there, and only there.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Error {
    pub kind: Kind,
    pub message: String,
    /// The next step, said to the person who reads it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
    /// The causes, outermost first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<String>,
}

pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Error { kind, message: message.into(), remedy: None, causes: Vec::new() }
    }

    /// A foreign error that says what went wrong by itself, with the chain of causes below it.
    pub fn of(kind: Kind, error: &(dyn std::error::Error + 'static)) -> Self {
        let mut lifted = Error::new(kind, error.to_string());
        if let Some(cause) = error.source() {
            lifted = lifted.caused_by(cause);
        }
        lifted
    }

    /// Adds the next step.
    #[must_use]
    pub fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }

    /// Adds the chain of causes below `cause`.
    #[must_use]
    pub fn caused_by(mut self, cause: &(dyn std::error::Error + 'static)) -> Self {
        let mut next = Some(cause);
        while let Some(error) = next {
            self.causes.push(error.to_string());
            next = error.source();
        }
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

/// Gives a foreign error its kind and says what was being done.
pub trait Context<T> {
    /// # Errors
    /// The original error, wrapped.
    fn context(self, kind: Kind, doing: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: std::error::Error + 'static> Context<T> for std::result::Result<T, E> {
    fn context(self, kind: Kind, doing: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|e| Error::new(kind, doing()).caused_by(&e))
    }
}

/// Adds the next step to a failure.
pub trait Next {
    /// # Errors
    /// The original error, with a remedy.
    fn or_next(self, remedy: impl FnOnce() -> String) -> Self;
}

impl<T> Next for Result<T> {
    fn or_next(self, remedy: impl FnOnce() -> String) -> Self {
        self.map_err(|error| error.remedy(remedy()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_distinct_and_never_zero() {
        let kinds = [
            Kind::Internal,
            Kind::Refused,
            Kind::BadInput,
            Kind::NotFound,
            Kind::WrongState,
            Kind::KeyRelease,
            Kind::MissingTool,
            Kind::NoSpace,
            Kind::Busy,
            Kind::Interrupted,
            Kind::Unreachable,
        ];
        let codes: std::collections::BTreeSet<u8> = kinds.iter().map(|k| k.exit_code()).collect();
        assert_eq!(codes.len(), kinds.len());
        assert!(!codes.contains(&0) && !codes.contains(&2), "0 is success and 2 is clap's usage error");
    }
}
