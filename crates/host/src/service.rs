//! Dispatches requests about VMs.

use serde_json::{Value, json};

use crate::agent::Agent;
use crate::api::VmRequest;
use crate::channels::{console, exposure, session};
use crate::create::{create, delete};
use crate::migration::{migrate, take_back};
use crate::seal::set_policy;
use crate::server::Reply;
use crate::start::start;
use outcome::Events;
use outcome::{Context, Kind, Result};

/// Answers one request about VMs.
///
/// # Errors
/// Those of the operation.
pub async fn vm_request(agent: &Agent, request: VmRequest, events: &Events) -> Result<Reply> {
    let value = match request {
        VmRequest::AgentInfo => to_value(&agent.info())?,
        VmRequest::VmCreate(wanted) => {
            let name = wanted.name.clone();
            create(agent, wanted, events).await?;
            status(agent, &name)?
        }
        VmRequest::VmStart { name } => {
            start(agent, &mut agent.lock(&name)?, events).await?;
            status(agent, &name)?
        }
        VmRequest::VmStop { name, force } => {
            agent.lock(&name)?.stop(force, events).await?;
            status(agent, &name)?
        }
        VmRequest::VmList => {
            let mut all = Vec::new();
            for dir in agent.store().vms()? {
                all.push(to_value(&agent.status(&dir)?)?);
            }
            Value::Array(all)
        }
        VmRequest::VmShow { name } => status(agent, &name)?,
        VmRequest::VmProof { name } => to_value(&exposure(agent, &name).await?)?,
        VmRequest::VmDelete { name } => {
            delete(agent, &name).await?;
            json!({ "deleted": name })
        }
        VmRequest::VmConsole { name } => return Ok(Reply::Stream(console(agent, &name).await?)),
        VmRequest::VmSession { name } => return Ok(Reply::Stream(session(agent, &name).await?)),
        VmRequest::VmProtector { name } => {
            let dir = agent.store().vm(&name)?;
            let protector = dir.parsed_protector(dir.current()?)?;
            let text =
                String::from_utf8(protector.to_xml()).context(Kind::Internal, || "a protector is not UTF-8".into())?;
            json!({ "protector": text })
        }
        VmRequest::VmSetProtector { name, change } => {
            agent.set_protector(&mut agent.lock(&name)?, change.as_deref().map(str::as_bytes))?;
            status(agent, &name)?
        }
        VmRequest::VmMigrate { name, to } => {
            migrate(agent, &mut agent.lock(&name)?, &to, events).await?;
            json!({ "migrated": name, "to": to })
        }
        VmRequest::VmTakeBack { name } => {
            take_back(&mut agent.lock(&name)?).await?;
            status(agent, &name)?
        }
        VmRequest::VmSetPolicy { name, policy } => {
            set_policy(agent, &mut agent.lock(&name)?, policy, events).await?;
            status(agent, &name)?
        }
    };
    Ok(Reply::Value(value))
}

fn status(agent: &Agent, name: &str) -> Result<Value> {
    to_value(&agent.status(&agent.store().vm(name)?)?)
}

/// A value as JSON.
///
/// # Errors
/// `Internal` when a value cannot be written as JSON.
pub fn to_value<T: serde::Serialize>(value: &T) -> Result<Value> {
    serde_json::to_value(value).context(Kind::Internal, || "an answer cannot be serialised".into())
}
