//! The agent's requests, all of them: VMs and recoveries.

use std::sync::Arc;

use garage::Mode;
use host::Agent;
use host::server::{Reply, RequestHandler};
use host::service::{to_value, vm_request};
use outcome::Events;
use outcome::{Error, Kind, Result};
use serde::{Deserialize, Serialize};

use crate::api::{Destination, GarageInfo, RecoveryRequest};
use crate::garage::guardian::local;
use crate::garage::key::GarageKey;
use crate::garage::{finish, import};
use crate::garage_host::{attach, detach};
use crate::host::{commit, export, export_file, reinstate, rollback};
use crate::{abort, status};

/// An agent that knows recoveries.
pub struct AgentService {
    agent: Arc<Agent>,
}

/// Everything that can be asked of the agent.
#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Request {
    /// About VMs.
    Vm(host::api::VmRequest),
    /// About recoveries.
    Recovery(RecoveryRequest),
}

impl Request {
    /// Reads one line from the agent's socket.
    ///
    /// # Errors
    /// `BadInput` for anything but a request that this agent knows.
    pub fn read(line: &[u8]) -> Result<Self> {
        serde_json::from_slice(line).map_err(|e| {
            Error::new(Kind::BadInput, "the agent does not know this request")
                .caused_by(&e)
                .remedy("use a drydock command of the agent's version")
        })
    }
}

impl AgentService {
    /// Answers requests with this agent.
    #[must_use]
    pub fn new(agent: Arc<Agent>) -> Self {
        AgentService { agent }
    }
}

impl RequestHandler for AgentService {
    async fn call(&self, line: &[u8], events: Events) -> Result<Reply> {
        let request = Request::read(line)?;
        let agent = &*self.agent;
        let value = match request {
            Request::Vm(request) => return vm_request(agent, request, &events).await,
            Request::Recovery(request) => match request {
                RecoveryRequest::RecoveryExport { vm, to, copy, stop, restart_garage } => {
                    let mode = if copy { Mode::Copy } else { Mode::Overlay };
                    let report = match to {
                        Destination::Garage(garage) => {
                            let options = export::Options { mode, stop, restart_garage };
                            export::run(agent, &vm, &garage, options, &events).await?
                        }
                        Destination::File(file) => export_file::run(agent, &vm, &file, stop, &events).await?,
                    };
                    to_value(&report)?
                }
                RecoveryRequest::RecoveryAttach { file, garage, restart_garage } => {
                    to_value(&attach::run(agent, &file, &garage, restart_garage, &events).await?)?
                }
                RecoveryRequest::RecoveryDetach { vm } => to_value(&detach::run(agent, &vm, &events).await?)?,
                RecoveryRequest::RecoveryImport { grant, grant_name, switch, hours, install } => {
                    let options = import::Options { switch, hours, install };
                    let what = grant_name.unwrap_or_else(|| "the grant".into());
                    let grant = grant.as_deref().map(|document| (what.as_str(), document.as_bytes()));
                    to_value(&import::run(agent, grant, &options, &events).await?)?
                }
                RecoveryRequest::RecoveryFinish { vm, stop } => {
                    to_value(&finish::run(agent, vm.as_deref(), stop, &events).await?)?
                }
                RecoveryRequest::RecoveryReinstate { vm, from, keep_original } => {
                    to_value(&reinstate::run(agent, &vm, from, keep_original, &events).await?)?
                }
                RecoveryRequest::RecoveryCommit { vm } => to_value(&commit::run(agent, &vm, &events).await?)?,
                RecoveryRequest::RecoveryRollback { vm, stop } => {
                    to_value(&rollback::run(agent, &vm, stop, &events).await?)?
                }
                RecoveryRequest::GarageInit => {
                    local(agent)?;
                    let key = GarageKey::ensure(agent.store()).await?.public()?;
                    to_value(&GarageInfo { public_key: key.to_pem(), fingerprint: key.fingerprint() })?
                }
                RecoveryRequest::RecoveryAbort { vm } => to_value(&abort::run(agent, &vm, &events).await?)?,
                RecoveryRequest::RecoveryStatus { vm } => to_value(&status::report(agent.store(), vm.as_deref())?)?,
            },
        };
        Ok(Reply::Value(value))
    }
}
