//! One error type for the agent and its clients: a stable kind, a message, a remedy, and the causes.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What went wrong, in the few kinds that a script can tell apart. Names and exit codes are stable and documented in
/// `docs/exit-codes.md`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Something broke that should not: an I/O error, a bug.
    Internal,
    /// The security policy forbids it.
    Refused,
    /// A file or a field that was given is wrong, altered, stale or of another VM.
    BadInput,
    /// No VM, recovery, file, bridge or RG disk of that name.
    NotFound,
    /// Right request, wrong moment: the VM is running, a recovery is under way.
    WrongState,
    /// The Host Guardian Service did not release the key, or could not be asked.
    KeyRelease,
    /// A program or the firmware is not installed.
    MissingTool,
    /// Not enough disk space or memory.
    NoSpace,
    /// Another command is working on the same VM, or another process on the same file.
    Busy,
    /// Stopped on request (Ctrl-C); running it again resumes it.
    Interrupted,
    /// No agent answers on the socket.
    Unreachable,
}

impl Kind {
    /// Every kind, in the order of the exit codes.
    pub const ALL: [Kind; 11] = [
        Kind::Internal,
        Kind::Refused,
        Kind::BadInput,
        Kind::NotFound,
        Kind::WrongState,
        Kind::KeyRelease,
        Kind::MissingTool,
        Kind::NoSpace,
        Kind::Busy,
        Kind::Unreachable,
        Kind::Interrupted,
    ];

    /// The name in JSON, for example `bad-input`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Internal => "internal",
            Kind::Refused => "refused",
            Kind::BadInput => "bad-input",
            Kind::NotFound => "not-found",
            Kind::WrongState => "wrong-state",
            Kind::KeyRelease => "key-release",
            Kind::MissingTool => "missing-tool",
            Kind::NoSpace => "no-space",
            Kind::Busy => "busy",
            Kind::Unreachable => "unreachable",
            Kind::Interrupted => "interrupted",
        }
    }

    /// The exit code of the process.
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

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How `std::process::ExitStatus::code` reports the exit code.
impl From<Kind> for i32 {
    fn from(kind: Kind) -> i32 {
        kind.exit_code().into()
    }
}

/// An error that can cross the agent's socket: its causes are flattened to text.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Error {
    /// What a script acts on.
    pub kind: Kind,
    /// What went wrong, in one sentence without a full stop, for people. It does not repeat the causes.
    pub message: String,
    /// What the person who reads it can do next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
    /// The causes, outermost first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<String>,
}

/// The result of whatever a command does.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error without remedy or causes.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Error { kind, message: message.into(), remedy: None, causes: Vec::new() }
    }

    /// An error of another crate whose message can stand alone, with the chain of causes below it.
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

/// Gives an error of another crate its kind, and says what failed because of it.
pub trait Context<T> {
    /// Replaces the error; the original becomes its first cause. `doing` makes the message.
    ///
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
    /// Adds the remedy that `remedy` makes.
    ///
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
    #![allow(clippy::unwrap_used)]

    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn exit_codes_are_distinct_and_never_zero() {
        let codes: BTreeSet<u8> = Kind::ALL.iter().map(|kind| kind.exit_code()).collect();
        assert_eq!(codes.len(), Kind::ALL.len());
        assert!(!codes.contains(&0) && !codes.contains(&2), "0 is success and 2 is clap's usage error");
    }

    #[test]
    fn a_name_is_what_json_has() {
        for kind in Kind::ALL {
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.name());
            assert_eq!(serde_json::from_value::<Kind>(kind.name().into()).unwrap(), kind);
        }
    }

    /// The table of `docs/exit-codes.md` has every kind with its code, and no other.
    #[test]
    fn exit_codes_are_documented() {
        let page = include_str!("../../../docs/exit-codes.md");
        let rows = page.lines().filter_map(|line| {
            let mut cells = line.strip_prefix('|')?.split('|').map(str::trim);
            let code = cells.next()?.parse::<u8>().ok()?;
            let kind = cells.next()?.trim_matches('`');
            (!kind.is_empty()).then_some((code, kind))
        });
        let documented: BTreeSet<(u8, &str)> = rows.collect();
        assert_eq!(documented, Kind::ALL.iter().map(|kind| (kind.exit_code(), kind.name())).collect());
    }

    #[test]
    fn an_error_crosses_the_socket_whole() {
        let cause = std::io::Error::other("the disk is on fire");
        let error = Err::<(), _>(cause).context(Kind::Internal, || "cannot write".into());
        let error = error.or_next(|| "put it out".into()).unwrap_err();
        let text = serde_json::to_string(&error).unwrap();
        assert_eq!(
            text,
            r#"{"kind":"internal","message":"cannot write","remedy":"put it out","causes":["the disk is on fire"]}"#
        );
        let read: Error = serde_json::from_str(&text).unwrap();
        assert_eq!((read.kind, read.remedy, read.causes), (error.kind, error.remedy, error.causes));
    }
}
