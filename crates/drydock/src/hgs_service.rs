//! `drydock hgs …`

use std::path::Path;
use std::sync::Arc;

use hgs::server::{self, Transport};
use hgs::{Error as HgsError, Hgs as Service, InitOptions};
use host::error::{Error, Kind, Result};
use recovery::rfc3339;
use serde_json::json;

use crate::cli::{Hgs, HgsDir};
use crate::guardian::{view, write};
use crate::host_service::{runtime, shutdown};
use crate::keyring;
use crate::output::Output;

pub(crate) fn run(command: Hgs, out: &Output) -> Result<()> {
    runtime()?.block_on(async {
        match command {
            Hgs::Init { dir, name, san } => init(&dir.dir, name, san, out).await,
            Hgs::Serve { dir, listen, plain_http } => {
                let transport = if plain_http { Transport::PlainHttp { force: false } } else { Transport::Https };
                let service = Arc::new(open(&dir).await?);
                let serving = server::serve(service, listen, transport, shutdown()?).await.map_err(lift)?;
                let scheme = if plain_http { "http" } else { "https" };
                out.note(&format!("listening on {scheme}://{}", serving.local_addr()));
                serving.wait().await.map_err(lift)
            }
            Hgs::AddHost { name, key, dir } => {
                let key = keyring::read(&key)?;
                let entry = open(&dir).await?.add_host(&name, &key).await.map_err(lift)?;
                let fingerprint = entry.identity.fingerprint();
                out.result(&json!({ "host": entry.name, "fingerprint": fingerprint }), || {
                    format!("host '{}' may attest from now on\n  key {fingerprint}", entry.name)
                });
                Ok(())
            }
            Hgs::RemoveHost { name, dir } => {
                open(&dir).await?.remove_host(&name).await.map_err(lift)?;
                out.result(&json!({ "removed": name }), || format!("host '{name}' gets no key any more"));
                Ok(())
            }
            Hgs::Status { dir } => status(&open(&dir).await?, out).await,
            Hgs::Audit { dir, last } => audit(&open(&dir).await?, last, out).await,
            Hgs::Guardian { dir, out: target } => {
                let guardian = open(&dir).await?.guardian();
                write(&target, &guardian.to_xml())?;
                out.result(&json!({ "file": target, "guardian": view(&guardian) }), || {
                    format!(
                        "the fabric guardian '{}' is in {}\n  signing certificate {}\n\
                         Tell tenants the fingerprint over another channel.",
                        guardian.name(),
                        target.display(),
                        guardian.signing().fingerprint(),
                    )
                });
                Ok(())
            }
        }
    })
}

async fn open(dir: &HgsDir) -> Result<Service> {
    Service::open(&dir.dir).await.map_err(lift)
}

async fn init(dir: &Path, name: String, san: Vec<String>, out: &Output) -> Result<()> {
    host::store::check_name(&name)?;
    let options = InitOptions { name, server_names: san, ..InitOptions::default() };
    let service = Service::init(dir, options).await.map_err(lift)?;
    let ca = service.ca_file();
    let folder = dir.display().to_string();
    out.result(&json!({ "dir": dir, "ca": ca, "guardian": view(&service.guardian()) }), || {
        format!(
            "Host Guardian Service in {folder}\n\
             hosts check it by {}\n\
             Next: drydock hgs add-host NAME host.pub.pem --dir {folder}\n      \
             drydock hgs guardian --out fabric.guardian.xml --dir {folder}\n      \
             drydock hgs serve --dir {folder}",
            ca.display(),
        )
    });
    Ok(())
}

async fn status(service: &Service, out: &Output) -> Result<()> {
    let hosts = service.hosts().await.map_err(lift)?;
    let guardian = service.guardian();
    let rows: Vec<_> = hosts
        .iter()
        .map(|h| json!({ "name": h.name, "fingerprint": h.identity.fingerprint(), "added": rfc3339(h.added_at) }))
        .collect();
    out.result(&json!({ "guardian": view(&guardian), "hosts": rows, "ca": service.ca_file() }), || {
        let mut text = format!(
            "fabric guardian '{}', valid until {}\n  signing certificate {}\n",
            guardian.name(),
            rfc3339(guardian.not_after()),
            guardian.signing().fingerprint(),
        );
        for host in &hosts {
            text += &format!(
                "host {:<20} {}  since {}\n",
                host.name,
                crate::vm::short(&host.identity.fingerprint()),
                rfc3339(host.added_at)
            );
        }
        if hosts.is_empty() {
            text += "no host may attest; add one: drydock hgs add-host NAME host.pub.pem\n";
        }
        text
    });
    Ok(())
}

async fn audit(service: &Service, last: u32, out: &Output) -> Result<()> {
    let head = service.verify_audit().await.map_err(lift)?;
    let entries = service.audit(last).await.map_err(lift)?;
    let rows: Vec<_> = entries
        .iter()
        .map(|e| {
            json!({
                "seq": e.seq, "at": rfc3339(e.at), "event": e.event, "host": e.host,
                "protector": e.protector, "owner": e.owner, "why": e.why,
            })
        })
        .collect();
    out.result(&json!({ "entries": rows, "head": head }), || {
        let mut text: String = entries
            .iter()
            .map(|e| format!("{:>6}  {}  {:<20} {:<16} {}\n", e.seq, rfc3339(e.at), e.event, e.host, e.why))
            .collect();
        text += &format!("the chain is whole; its last hash is {head}\n");
        text
    });
    Ok(())
}

fn lift(error: HgsError) -> Error {
    let kind = match &error {
        HgsError::AlreadyThere { .. } | HgsError::HostExists { .. } | HgsError::KeyExists { .. } => Kind::WrongState,
        HgsError::NotThere { .. } | HgsError::NoSuchHost { .. } => Kind::NotFound,
        HgsError::Exposed { .. } | HgsError::PlainHttpExposed { .. } | HgsError::AuditBroken { .. } => Kind::Refused,
        HgsError::BadHostName { .. }
        | HgsError::BadHostKey(_)
        | HgsError::Damaged { .. }
        | HgsError::TooLarge { .. }
        | HgsError::Certificate(_) => Kind::BadInput,
        _ => Kind::Internal,
    };
    Error::of(kind, &error)
}
