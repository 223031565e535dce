//! A real PostgreSQL server, started once in each process of tests, and a database for each caller.

#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use hgs::StoreUrl;
use sqlx::{AnyConnection, Connection, Executor};

/// Ends the server when this process ends, however it does: the pipe to its script is closed then.
static SERVER: OnceLock<Child> = OnceLock::new();

/// An empty database.
pub async fn database() -> StoreUrl {
    StoreUrl::parse(&database_url().await).unwrap()
}

/// The address of an empty database.
pub async fn database_url() -> String {
    let folder = tokio::task::spawn_blocking(folder).await.unwrap();
    let socket = folder.replace('%', "%25").replace('/', "%2F");
    let name = format!("t{}", uuid::Uuid::new_v4().simple());
    sqlx::any::install_default_drivers();
    let mut admin = AnyConnection::connect(&format!("postgres://hgs@{socket}/postgres")).await.unwrap();
    let statement = format!("CREATE DATABASE {name} TEMPLATE template0");
    admin.execute(sqlx::AssertSqlSafe(statement)).await.unwrap();
    admin.close().await.unwrap();
    format!("postgres://hgs@{socket}/{name}")
}

/// Of the server's socket. This module is compiled into several modules of one program: they share a server by way of
/// a file that is named for the process.
fn folder() -> String {
    // nextest has a process for each test, and one server for all of them: see .config/nextest.toml.
    if let Ok(folder) = std::env::var("DRYDOCK_TEST_POSTGRES") {
        return folder;
    }
    let path = std::env::temp_dir().join(format!("drydock-postgres-{}", std::process::id()));
    let lock = File::options().create(true).append(true).open(&path).unwrap();
    lock.lock().unwrap();
    let known = std::fs::read_to_string(&path).unwrap();
    // A process before this one may have had the same number.
    if std::path::Path::new(&known).is_dir() {
        return known;
    }
    let mut server = Command::new("sh")
        .args(["-c", include_str!("postgres.sh"), "postgres.sh"])
        .arg(&path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("there is a shell");
    let mut line = String::new();
    BufReader::new(server.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let folder = line.trim_end().to_owned();
    assert!(!folder.is_empty(), "PostgreSQL did not start: see above; its package is installed by scripts/bootstrap");
    std::fs::write(&path, &folder).unwrap();
    SERVER.set(server).unwrap();
    folder
}
