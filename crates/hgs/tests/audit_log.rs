//! Somebody who can write the store, and has none of the service's keys: each thing they can do to the audit log is
//! found.

#![allow(clippy::unwrap_used)]

mod support;

use attestation::P256Key;
use aws_lc_rs::digest::{Context, SHA256};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hgs::{Entry, Error, Hgs};
use hgs_client::Error as ClientError;
use support::{HOST, World};

/// A log of three rows: the host was added, and attested twice.
async fn three_rows() -> World {
    let world = World::start().await;
    let client = world.client();
    for _ in 0..2 {
        client.attest(&world.host_key).await.unwrap();
    }
    assert_eq!(world.hgs.verify_audit_since(None).await.unwrap().0, 3);
    world
}

/// What the service hashes of a row.
fn hash(entry: &Entry) -> String {
    let mut context = Context::new(&SHA256);
    context.update(b"drydock hgs audit 1");
    context.update(&entry.seq.to_be_bytes());
    context.update(&entry.at.unix_timestamp().to_be_bytes());
    for text in
        [&entry.event, &entry.host, &entry.host_key, &entry.protector, &entry.owner, &entry.why, &entry.previous]
    {
        context.update(&(text.len() as u64).to_be_bytes());
        context.update(text.as_bytes());
    }
    context.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The attacker's own key, used as the service uses its own.
fn sign(key: &P256Key, hash: &str) -> String {
    STANDARD.encode(key.sign(&[b"drydock/hgs/audit-row/1\0", hash.as_bytes()].concat()).unwrap())
}

/// Puts these rows in the place of all rows.
async fn write(world: &World, rows: &[Entry]) {
    let mut store = world.store().await;
    sqlx::query("DELETE FROM audit").execute(&mut store).await.unwrap();
    for row in rows.iter().cloned() {
        sqlx::query(
            "INSERT INTO audit (seq, at, event, host, host_key, protector, owner, why, previous, hash, signature) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
        )
        .bind(row.seq)
        .bind(row.at.unix_timestamp())
        .bind(row.event)
        .bind(row.host)
        .bind(row.host_key)
        .bind(row.protector)
        .bind(row.owner)
        .bind(row.why)
        .bind(row.previous)
        .bind(row.hash)
        .bind(row.signature)
        .execute(&mut store)
        .await
        .unwrap();
    }
}

#[tokio::test]
async fn a_changed_missing_or_added_row_breaks_the_chain() {
    for (statement, broken) in [
        ("UPDATE audit SET host = 'nobody' WHERE seq = 2", 2),
        ("UPDATE audit SET host_key = 'none' WHERE seq = 2", 2),
        ("UPDATE audit SET event = 'attestation-refused' WHERE seq = 3", 3),
        ("UPDATE audit SET why = '' WHERE seq = 2", 2),
        ("UPDATE audit SET owner = 'nobody' WHERE seq = 2", 2),
        ("UPDATE audit SET protector = 'none' WHERE seq = 2", 2),
        ("UPDATE audit SET at = at + 1 WHERE seq = 2", 2),
        ("UPDATE audit SET hash = previous WHERE seq = 2", 2),
        ("UPDATE audit SET seq = 4 WHERE seq = 3", 3),
        ("UPDATE audit SET seq = 0 WHERE seq = 1", 1),
        ("DELETE FROM audit WHERE seq = 1", 1),
        ("DELETE FROM audit WHERE seq = 2", 2),
        (
            "INSERT INTO audit SELECT 4, at, event, host, host_key, protector, owner, why, previous, hash, signature \
          FROM audit WHERE seq = 3",
            4,
        ),
        (
            "INSERT INTO audit SELECT 0, at, event, host, host_key, protector, owner, why, previous, hash, signature \
          FROM audit WHERE seq = 1",
            0,
        ),
    ] {
        let world = three_rows().await;
        world.meddle(statement).await;
        let found = world.hgs.verify_audit().await;
        assert!(matches!(found, Err(Error::AuditBroken { seq }) if seq == broken), "{statement}: {found:?}");
        world.shut_down().await;
    }
}

#[tokio::test]
async fn a_signature_that_is_not_the_services_is_found() {
    for statement in [
        "UPDATE audit SET signature = '' WHERE seq = 2",
        "UPDATE audit SET signature = 'no base64' WHERE seq = 2",
        "UPDATE audit SET signature = (SELECT signature FROM audit WHERE seq = 1) WHERE seq = 2",
    ] {
        let world = three_rows().await;
        world.meddle(statement).await;
        let found = world.hgs.verify_audit().await;
        assert!(matches!(found, Err(Error::AuditForged { seq: 2 })), "{statement}: {found:?}");
        world.shut_down().await;
    }
}

/// Anyone can rebuild the chain alone; the rows that were not changed keep their signatures, which are over other
/// hashes.
#[tokio::test]
async fn a_chain_made_anew_without_the_key_is_found() {
    let key = P256Key::generate().unwrap();
    for own_signatures in [false, true] {
        let world = three_rows().await;
        let mut rows = world.hgs.audit(10).await.unwrap();
        rows[1].host = "nobody".to_owned();
        for at in 1..rows.len() {
            rows[at].previous = rows[at - 1].hash.clone();
            rows[at].hash = hash(&rows[at]);
            if own_signatures {
                rows[at].signature = sign(&key, &rows[at].hash);
            }
        }
        write(&world, &rows).await;
        let found = world.hgs.verify_audit().await;
        assert!(matches!(found, Err(Error::AuditForged { seq: 2 })), "{found:?}");
        world.shut_down().await;
    }
}

/// The service does not sign what it finds: a forged row under its own next one is found too.
#[tokio::test]
async fn a_forged_row_is_found_after_the_service_went_on_from_it() {
    let world = three_rows().await;
    let mut rows = world.hgs.audit(10).await.unwrap();
    let mut forged = rows[2].clone();
    forged.seq = 4;
    forged.previous = rows[2].hash.clone();
    forged.event = "key-released".to_owned();
    forged.hash = hash(&forged);
    rows.push(forged);
    write(&world, &rows).await;
    world.client().attest(&world.host_key).await.unwrap();
    let found = world.hgs.verify_audit().await;
    assert!(matches!(found, Err(Error::AuditForged { seq: 4 })), "{found:?}");
    world.shut_down().await;
}

/// What was cut at the end is whole in itself, also after the service went on; so is an empty log.
#[tokio::test]
async fn a_hash_kept_elsewhere_finds_rows_that_were_cut_off() {
    let world = World::start().await;
    let (rows, first) = world.hgs.verify_audit_since(None).await.unwrap();
    assert_eq!(rows, 1);
    world.client().attest(&world.host_key).await.unwrap();
    let (rows, second) = world.hgs.verify_audit_since(Some(&first)).await.unwrap();
    assert_eq!(rows, 2);
    world.meddle("DELETE FROM audit WHERE seq = 2").await;
    assert_eq!(world.hgs.verify_audit().await.unwrap(), first);
    let cut = world.hgs.verify_audit_since(Some(&second)).await;
    assert!(matches!(cut, Err(Error::AuditCut { rows: 1 })), "{cut:?}");
    // The process that wrote the row misses it, and nothing is released without a row; one that was started since
    // does not.
    let refused = world.client().attest(&world.host_key).await.err().unwrap();
    assert!(matches!(refused, ClientError::Unavailable { .. }), "{refused}");
    let refused = world.hgs.remove_host(HOST).await;
    assert!(matches!(refused, Err(Error::AuditShrank { rows: 1, seen: 2 })), "{refused:?}");
    // Not the same event again: in the same second it would make the same row, and nothing would be missing.
    Hgs::open(&world.dir()).await.unwrap().remove_host(HOST).await.unwrap();
    let refused = world.hgs.set_strict(true).await;
    assert!(matches!(refused, Err(Error::AuditShrank { rows: 2, seen: 2 })), "{refused:?}");
    let cut = world.hgs.verify_audit_since(Some(&second)).await;
    assert!(matches!(cut, Err(Error::AuditCut { rows: 2 })), "{cut:?}");
    assert!(world.hgs.verify_audit_since(Some(&first)).await.is_ok());
    assert!(world.hgs.verify_audit_since(Some("")).await.is_err());
    world.meddle("DELETE FROM audit").await;
    let cut = world.hgs.verify_audit_since(Some(&first)).await;
    assert!(matches!(cut, Err(Error::AuditCut { rows: 0 })), "{cut:?}");
    world.shut_down().await;
}

/// A log of another service, whole and signed, in the place of this one's.
#[tokio::test]
async fn another_services_log_is_not_this_ones() {
    let (world, other) = (three_rows().await, three_rows().await);
    let rows = other.hgs.audit(10).await.unwrap();
    write(&world, &rows).await;
    let found = world.hgs.verify_audit().await;
    assert!(matches!(found, Err(Error::AuditForged { seq: 1 })), "{found:?}");
    world.shut_down().await;
    other.shut_down().await;
}
