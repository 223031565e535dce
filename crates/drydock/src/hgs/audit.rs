//! `drydock hgs audit`: what the service released and refused, from a log that is checked first.

use hgs::Hgs;
use outcome::{Result, rfc3339};
use serde_json::json;

use super::error::lift;
use crate::output::Output;

pub(super) async fn verify(service: &Hgs, kept: Option<&str>, out: &Output) -> Result<()> {
    let (rows, head) = service.verify_audit_since(kept).await.map_err(lift)?;
    out.result(&json!({ "rows": rows, "head": head }), || {
        format!("all {rows} rows are intact and signed; keep the last hash elsewhere:\n{head}")
    });
    Ok(())
}

pub(super) async fn show(service: &Hgs, last: u32, out: &Output) -> Result<()> {
    let (_, head) = service.verify_audit_since(None).await.map_err(lift)?;
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
        text += &format!("all rows are intact and signed; the last hash is {head}\n");
        text
    });
    Ok(())
}
