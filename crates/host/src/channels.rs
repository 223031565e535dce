//! What reaches into a running VM beside its network: the console, a session, and the report of what it exposes.

use machine::exposure::ExposureReport;
use machine::{ConsoleProfile, Policy};
use outcome::{Context, Error, Kind, Result};

use crate::agent::Agent;
use crate::holder::caller;
use crate::session;

/// What a running VM exposes, as kernel and QEMU say now.
///
/// # Errors
/// `WrongState` when it does not run under this agent.
pub(crate) async fn exposure(agent: &Agent, name: &str) -> Result<ExposureReport> {
    let mut vm = agent.lock(name)?;
    vm.refuse_orphan()?;
    if vm.is_running()
        && let Some(live) = vm.live()
    {
        return live.running.exposure().await.context(Kind::Internal, || format!("cannot inspect {name}"));
    }
    Err(Error::new(Kind::WrongState, format!("{name} is off, and exposes nothing"))
        .remedy(format!("drydock vm start {name}")))
}

/// A stream to the serial console, for the policies that have one.
///
/// # Errors
/// `Refused` for a shielded VM, whatever its files say.
pub(crate) async fn console(agent: &Agent, name: &str) -> Result<tokio::net::UnixStream> {
    let mut vm = agent.lock(name)?;
    if !vm.is_running() {
        // The files are not to be trusted, but refusing on their word is safe.
        if vm.dir().spec()?.policy == Policy::Shielded {
            return Err(console_refused(name));
        }
        return Err(Error::new(Kind::WrongState, format!("{name} is off")).remedy(format!("drydock vm start {name}")));
    }
    let live = vm.live().ok_or_else(|| console_refused(name))?;
    match (&live.console, live.policy) {
        (Some(console), Policy::EncryptionSupported) => {
            console.attach().await.context(Kind::Internal, || format!("the console of {name} is gone"))
        }
        _ => Err(console_refused(name)),
    }
}

/// A stream to the service that the guest runs for sessions, for VMs of console profile 2019. A session that is
/// open ends.
///
/// # Errors
/// `Refused` for a VM of profile 2016, whatever its files say.
pub(crate) async fn session(agent: &Agent, name: &str) -> Result<tokio::net::UnixStream> {
    let mut vm = agent.lock(name)?;
    vm.refuse_orphan()?;
    if !vm.is_running() && vm.dir().spec()?.console_profile == ConsoleProfile::Server2016 {
        return Err(session_refused(name));
    }
    let Some(live) = vm.live() else {
        return Err(Error::new(Kind::WrongState, format!("{name} is off")).remedy(format!("drydock vm start {name}")));
    };
    let opened = live.running.open_session().await.map_err(|error| match error {
        machine::Error::Policy { .. } => session_refused(name),
        error => Error::new(Kind::Internal, format!("no session with {name} could be opened")).caused_by(&error),
    })?;
    tracing::info!(vm = name, by = caller(), "a session was opened");
    session::spawn(opened, name.to_owned()).context(Kind::Internal, || format!("cannot carry a session of {name}"))
}

fn console_refused(name: &str) -> Error {
    Error::new(Kind::Refused, format!("{name} is shielded: it has no console, and none can be opened on this host"))
        .remedy(format!("its owner gets one in a repair garage: drydock recovery export {name} --to GARAGE"))
}

fn session_refused(name: &str) -> Error {
    Error::new(Kind::Refused, format!("{name} has console profile 2016: no session with it can be opened")).remedy(
        format!(
            "its owner gets a console in a repair garage: drydock recovery export {name} --to GARAGE; the profile is \
             chosen when a VM is made: drydock vm create --console-profile 2019"
        ),
    )
}
