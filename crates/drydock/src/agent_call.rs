//! One request to the agent, its progress shown.

use std::path::Path;

use outcome::Result;
use serde::Serialize;
use serde_json::Value;

use crate::output::Output;

pub(crate) fn call<Q: Serialize>(socket: &Path, request: &Q, out: &Output) -> Result<Value> {
    host::client::call(socket, request, |progress| out.progress(progress))
}
