//! `drydock hgs …`: set up, run and administer a Host Guardian Service.

mod args;
mod audit;
mod error;
mod nodes;
mod status;
mod trace;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hgs::server::{self, Transport};
use hgs::{Check, Hgs, HostKind, InitOptions};
use outcome::{Error, Kind, Result, rfc3339};
use serde_json::json;

pub(crate) use self::args::HgsCommand;
use self::args::{AuditCommand, HgsDir, Init, OnOff};
use self::error::lift;
use crate::guardian::to_json;
use crate::output::Output;
use crate::{daemon, files, fingerprint};

pub(crate) fn run(command: HgsCommand, out: &Output) -> Result<()> {
    daemon::runtime()?.block_on(dispatch(command, out))
}

async fn dispatch(command: HgsCommand, out: &Output) -> Result<()> {
    match command {
        HgsCommand::Init(args) => init(args, out).await,
        HgsCommand::Serve { dir, listen, plain_http } => serve(&dir, listen, plain_http, out).await,
        HgsCommand::AddHost { name, key, tpm, dir } => {
            add_host(&open(&dir).await?, &name, key.as_deref(), tpm.as_deref(), out).await
        }
        HgsCommand::RemoveHost { name, dir } => {
            open(&dir).await?.remove_host(&name).await.map_err(lift)?;
            out.result(&json!({ "removed": name }), || format!("host '{name}' gets no key any more"));
            Ok(())
        }
        HgsCommand::Status { dir } => status::status(&open(&dir).await?, out).await,
        HgsCommand::Rotate { dir, days } => rotate(&open(&dir).await?, days, out).await,
        HgsCommand::Retire { fingerprint, force, dir } => {
            retire(&open(&dir).await?, &fingerprint::plain(&fingerprint), force, out).await
        }
        HgsCommand::AddBaseline { name, log, pcrs, dir } => {
            add_baseline(&open(&dir).await?, &name, &log, &pcrs, out).await
        }
        HgsCommand::RemoveBaseline { name, dir } => {
            open(&dir).await?.remove_baseline(&name).await.map_err(lift)?;
            out.result(&json!({ "removed": name }), || format!("the baseline '{name}' is removed"));
            Ok(())
        }
        HgsCommand::AddPolicy { check, dir } => policy(&open(&dir).await?, check.into(), true, out).await,
        HgsCommand::RemovePolicy { check, dir } => policy(&open(&dir).await?, check.into(), false, out).await,
        HgsCommand::Trace { dir } => trace::trace(&open(&dir).await?, out).await,
        HgsCommand::Audit { command: Some(AuditCommand::Verify { dir, kept }), .. } => {
            audit::verify(&open(&dir).await?, kept.as_deref(), out).await
        }
        HgsCommand::Audit { command: None, dir, last } => audit::show(&open(&dir).await?, last, out).await,
        HgsCommand::Export { dir, out: target, passphrase_fd } => {
            nodes::export(&open(&dir).await?, &target, passphrase_fd, out).await
        }
        HgsCommand::Import(args) => nodes::import(args, out).await,
        HgsCommand::Strict { state, dir } => strict(&open(&dir).await?, state == OnOff::On, out).await,
        HgsCommand::Permit { file, dir } => permit(&open(&dir).await?, &file, out).await,
        HgsCommand::Guardian { dir, out: target } => guardian(&open(&dir).await?, &target, out),
    }
}

async fn open(dir: &HgsDir) -> Result<Hgs> {
    Hgs::open(&dir.dir).await.map_err(lift)
}

async fn init(args: Init, out: &Output) -> Result<()> {
    let Init { dir: HgsDir { dir }, name, san, mode, store, strict } = args;
    outcome::check_name_of("guardian", &name)?;
    let mode = HostKind::from(mode);
    let store = nodes::store(&store)?;
    let options = InitOptions { name, server_names: san, mode, store, strict, ..InitOptions::default() };
    let service = Hgs::init(&dir, options).await.map_err(lift)?;
    let ca = service.ca_file();
    let shown = dir.display();
    let add_host = match mode {
        HostKind::HostKey => format!("add-host NAME host.pub.pem --dir {shown}"),
        HostKind::Tpm => format!(
            "add-host NAME --tpm ek.pem --dir {shown}\n      \
             drydock hgs add-baseline NAME binary_bios_measurements --dir {shown}"
        ),
    };
    out.result(&json!({ "dir": dir, "ca": ca, "mode": mode.name(), "guardian": to_json(&service.guardian()) }), || {
        format!(
            "Host Guardian Service in {shown}\n\
             CA certificate for the hosts (--hgs-ca): {}\n\
             Next: drydock hgs {add_host}\n      \
             drydock hgs guardian --out fabric.guardian.xml --dir {shown}\n      \
             drydock hgs serve --dir {shown}",
            ca.display(),
        )
    });
    Ok(())
}

async fn serve(dir: &HgsDir, listen: SocketAddr, plain_http: bool, out: &Output) -> Result<()> {
    let transport = if plain_http { Transport::PlainHttp { force: false } } else { Transport::Https };
    let service = Arc::new(open(dir).await?);
    let serving = server::serve(service, listen, transport, daemon::shutdown()?).await.map_err(lift)?;
    let scheme = if plain_http { "http" } else { "https" };
    out.note(&format!("listening on {scheme}://{}", serving.local_addr()));
    daemon::ready();
    serving.wait().await.map_err(lift)
}

async fn add_host(service: &Hgs, name: &str, key: Option<&Path>, tpm: Option<&Path>, out: &Output) -> Result<()> {
    let entry = match (key, tpm) {
        (_, Some(tpm)) => service.add_tpm_host(name, &files::read(tpm)?).await,
        (Some(key), None) => service.add_host(name, &files::read(key)?).await,
        // The command line requires one of them.
        (None, None) => return Err(Error::new(Kind::BadInput, "a key file is missing")),
    };
    let entry = entry.map_err(lift)?;
    let (fingerprint, kind) = (entry.identity.fingerprint(), entry.identity.kind().name());
    out.result(&json!({ "host": entry.name, "fingerprint": fingerprint, "kind": kind }), || {
        format!("host '{}' may attest from now on\n  key {}", entry.name, fingerprint::grouped(&fingerprint))
    });
    Ok(())
}

async fn add_baseline(service: &Hgs, name: &str, log: &Path, pcrs: &[u32], out: &Output) -> Result<()> {
    let baseline = service.add_baseline(name, &files::read(log)?, pcrs).await.map_err(lift)?;
    let pcrs: Vec<_> = baseline.pcrs.keys().collect();
    out.result(&json!({ "baseline": name, "pcrs": pcrs }), || {
        format!("boots with these values of PCR {pcrs:?} are known good from now on")
    });
    Ok(())
}

async fn rotate(service: &Hgs, days: u16, out: &Output) -> Result<()> {
    let guardian = service.rotate_guardian(time::Duration::days(days.into())).await.map_err(lift)?;
    out.result(&json!({ "guardian": to_json(&guardian) }), || {
        format!(
            "new fabric guardian '{}'\n  signing certificate {}\n\
             Next: restart the service, give tenants what `drydock hgs guardian` writes, and have them grant it;\n      \
             `drydock hgs status` lists what still depends on the old guardian, `drydock hgs retire` destroys its key.",
            guardian.name(),
            fingerprint::grouped(&guardian.signing().fingerprint()),
        )
    });
    Ok(())
}

async fn retire(service: &Hgs, fingerprint: &str, force: bool, out: &Output) -> Result<()> {
    service.retire_guardian(fingerprint, force).await.map_err(lift)?;
    out.result(&json!({ "retired": fingerprint }), || {
        format!("the key of the guardian {fingerprint} is destroyed; restart the service")
    });
    Ok(())
}

async fn policy(service: &Hgs, check: Check, on: bool, out: &Output) -> Result<()> {
    service.set_policy(check, on).await.map_err(lift)?;
    out.result(&json!({ "policy": check.name(), "on": on }), || {
        format!("the check '{}' is {} from now on", check.name(), if on { "on" } else { "off" })
    });
    Ok(())
}

async fn strict(service: &Hgs, on: bool, out: &Output) -> Result<()> {
    service.set_strict(on).await.map_err(lift)?;
    out.result(&json!({ "strict": on }), || {
        let done = if on { "refused" } else { "accepted, and reported in the audit log," };
        format!("stale protectors are {done} from now on")
    });
    Ok(())
}

async fn permit(service: &Hgs, file: &Path, out: &Output) -> Result<()> {
    let permit = service.permit(&files::read(file)?).await.map_err(lift)?;
    let not_after = rfc3339(permit.not_after);
    out.result(&json!({ "protector": permit.protector, "owner": permit.owner, "not_after": not_after }), || {
        format!("the protector {} may be rolled until {not_after}, for one restore", permit.protector)
    });
    Ok(())
}

fn guardian(service: &Hgs, target: &PathBuf, out: &Output) -> Result<()> {
    let guardian = service.guardian();
    files::write(target, &guardian.to_xml())?;
    out.result(&json!({ "file": target, "guardian": to_json(&guardian) }), || {
        format!(
            "the fabric guardian '{}' is in {}\n  signing certificate {}\n\
             Tell tenants the fingerprint out of band.",
            guardian.name(),
            target.display(),
            fingerprint::grouped(&guardian.signing().fingerprint()),
        )
    });
    Ok(())
}
