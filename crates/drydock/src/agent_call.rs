//! One request to the agent: its progress is shown, its answer is read.

use std::path::Path;

use outcome::{Context, Kind, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::output::Output;

/// Sends a request and waits for the answer.
///
/// # Errors
/// `Unreachable` when no agent listens on `socket`, and whatever the agent answers.
pub(crate) fn call<Q: Serialize>(socket: &Path, request: &Q, out: &Output) -> Result<Value> {
    host::client::call(socket, request, |progress| out.progress(progress))
}

/// Reads an answer as the type that the request promises.
///
/// # Errors
/// `Internal` when the agent is of another version and answers differently.
pub(crate) fn answer<T: DeserializeOwned>(value: &Value) -> Result<T> {
    serde_json::from_value(value.clone())
        .context(Kind::Internal, || "the agent's answer does not have the expected form".into())
}
