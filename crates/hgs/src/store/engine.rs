//! Which database the store is in, and how a connection to it behaves.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::path::Path;
use std::str::FromStr;
use std::sync::{Arc, Once};
use std::time::Duration;

use reqwest::Url;
use sqlx::any::{AnyConnectOptions, AnyPoolOptions};
use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use sqlx::{Any, AnyConnection, AnyPool, Connection, Executor, SqlSafeStr, Transaction};
use time::OffsetDateTime;
use tokio::sync::{Mutex, OwnedMutexGuard};
use zeroize::Zeroizing;

use crate::error::{Error, Result};

const FILE: &str = "hgs.sqlite";
/// How long a request waits for a connection before the service reports that it is unavailable.
const ACQUIRE: Duration = Duration::from_secs(10);
/// Writers queue behind one another: more connections than this only wait.
const CONNECTIONS: u32 = 8;

/// Waits for another process that writes (`drydock hgs add-host` while the service runs). FULL: a key must not leave
/// before its audit row is on disk.
const SQLITE_SESSION: &str = "PRAGMA busy_timeout = 10000; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL";
/// The same. In addition, a node that stops in the middle of a transaction (a frozen machine) loses its lock before the
/// others stop waiting for it.
const POSTGRES_SESSION: &str = "SET synchronous_commit = on; SET lock_timeout = '15s'; \
     SET idle_in_transaction_session_timeout = '5s'; SET statement_timeout = '30s'";

/// The address of a PostgreSQL database, `postgres://…`. It may contain a password, so it is wiped and never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct StoreUrl(Zeroizing<String>);

impl fmt::Debug for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StoreUrl(…)")
    }
}

impl StoreUrl {
    /// Checks an address.
    ///
    /// # Errors
    /// `BadStoreUrl`; `StoreExposed` for a database on another machine without `sslmode=verify-full` or `verify-ca`.
    pub fn parse(text: &str) -> Result<Self> {
        let url = Url::parse(text).map_err(|_| Error::BadStoreUrl)?;
        if !matches!(url.scheme(), "postgres" | "postgresql") {
            return Err(Error::BadStoreUrl);
        }
        // As the driver understands it, including PGHOST in the environment.
        let options = PgConnectOptions::from_str(text).map_err(|_| Error::BadStoreUrl)?;
        let host = options.get_host();
        let address = host.trim_start_matches('[').trim_end_matches(']');
        let local = options.get_socket().is_some()
            || host.starts_with('/')
            || host == "localhost"
            || address.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback());
        if !local && !matches!(options.get_ssl_mode(), PgSslMode::VerifyFull | PgSslMode::VerifyCa) {
            return Err(Error::StoreExposed { host: host.to_owned() });
        }
        Ok(StoreUrl(Zeroizing::new(text.to_owned())))
    }

    /// Whether it contains a password: then it must not be an argument, which every user of the machine can read.
    #[must_use]
    pub fn has_password(&self) -> bool {
        Url::parse(&self.0).is_ok_and(|url| {
            url.password().is_some() || url.query_pairs().any(|(name, _)| name.eq_ignore_ascii_case("password"))
        })
    }

    pub(crate) fn expose(&self) -> &str {
        &self.0
    }
}

/// SQLite in the service's directory, or a PostgreSQL database that several nodes share.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Engine {
    Sqlite,
    Postgres,
}

/// A pool of connections, and transactions in which nobody else writes.
pub(super) struct Database {
    pub(super) pool: AnyPool,
    engine: Engine,
    /// Orders the writers of this process. The database lets them wait, too, but SQLite does so by sleeping, and the
    /// first one to wake up is next.
    turn: Arc<Mutex<()>>,
}

/// A transaction in which nobody else writes.
pub(super) struct Write {
    transaction: Transaction<'static, Any>,
    _turn: OwnedMutexGuard<()>,
}

impl Write {
    pub(super) async fn commit(self) -> Result<()> {
        Ok(self.transaction.commit().await?)
    }
}

impl Deref for Write {
    type Target = AnyConnection;

    fn deref(&self) -> &AnyConnection {
        &self.transaction
    }
}

impl DerefMut for Write {
    fn deref_mut(&mut self) -> &mut AnyConnection {
        &mut self.transaction
    }
}

impl Database {
    /// With its tables up to date.
    pub(super) async fn open(dir: &Path, url: Option<&StoreUrl>) -> Result<Self> {
        static DRIVERS: Once = Once::new();
        DRIVERS.call_once(sqlx::any::install_default_drivers);
        let (engine, session) = match url {
            None => (Engine::Sqlite, SQLITE_SESSION),
            Some(_) => (Engine::Postgres, POSTGRES_SESSION),
        };
        let options = match url {
            None => AnyConnectOptions::from_str(&sqlite_url(dir)?)?,
            Some(url) => AnyConnectOptions::from_str(url.expose())?,
        };
        if engine == Engine::Postgres {
            // A pool tries until its time is up and then reports nothing else.
            let connection = AnyConnection::connect_with(&options).await.map_err(Error::StoreUnreachable)?;
            connection.close().await?;
        }
        let pool = AnyPoolOptions::new()
            .max_connections(CONNECTIONS)
            .acquire_timeout(ACQUIRE)
            // A connection to a file does not break, and the test costs as much as a statement.
            .test_before_acquire(engine == Engine::Postgres)
            .after_connect(move |connection, _| Box::pin(async move { connection.execute(session).await.map(|_| ()) }))
            .connect_with(options)
            .await?;
        migrations().run(&pool).await?;
        Ok(Database { pool, engine, turn: Arc::default() })
    }

    /// A transaction in which this is the only writer of all processes and all nodes: the next one sees what it wrote,
    /// so that the log has one last row to continue from.
    pub(super) async fn begin(&self) -> Result<Write> {
        let turn = tokio::time::timeout(ACQUIRE, Arc::clone(&self.turn).lock_owned()).await;
        let turn = turn.map_err(|_| sqlx::Error::PoolTimedOut)?;
        let transaction = match self.engine {
            // Immediate: two writers queue instead of both reading the same last row.
            Engine::Sqlite => self.pool.begin_with("BEGIN IMMEDIATE").await?,
            Engine::Postgres => {
                let mut transaction = self.pool.begin().await?;
                // Readers are not kept out.
                transaction.execute("LOCK TABLE audit IN EXCLUSIVE MODE").await?;
                transaction
            }
        };
        Ok(Write { transaction, _turn: turn })
    }
}

/// The time in a column. One that is out of range was not written by us; in the audit log, the row's hash will not
/// match.
pub(super) fn instant(seconds: i64) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

fn sqlite_url(dir: &Path) -> Result<String> {
    let path = std::path::absolute(dir).map_err(Error::io("find", dir))?.join(FILE);
    // Escapes what is special in URLs.
    let url = Url::from_file_path(&path).map_err(|()| Error::Damaged { path })?;
    Ok(format!("sqlite://{}?mode=rwc", url.path()))
}

/// `migrate!` would need sqlx's compile-time macros; the files are few enough to list.
fn migrations() -> Migrator {
    let migration = |version, description: &'static str, sql: &'static str| {
        Migration::new(version, description.into(), MigrationType::Simple, sql.into_sql_str(), false)
    };
    Migrator::with_migrations(vec![
        migration(1, "hosts and audit", include_str!("../../migrations/0001_hosts_and_audit.sql")),
        migration(2, "TPM mode", include_str!("../../migrations/0002_tpm.sql")),
        migration(3, "protectors in use", include_str!("../../migrations/0003_protectors.sql")),
        migration(4, "nodes and generations", include_str!("../../migrations/0004_nodes.sql")),
    ])
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn databases_elsewhere_are_reached_over_verified_tls_only() {
        for url in [
            "postgres://localhost/hgs",
            "postgresql://hgs@127.0.0.1:5433/hgs",
            "postgres:///hgs?host=/run/postgresql",
            "postgres://hgs@%2Frun%2Fpostgresql/hgs",
            "postgres://db.example/hgs?sslmode=verify-full",
            "postgres://db.example/hgs?sslmode=verify-ca&sslrootcert=/etc/hgs/ca.pem",
        ] {
            StoreUrl::parse(url).unwrap();
        }
        for url in [
            "postgres://db.example/hgs",
            "postgres://db.example/hgs?sslmode=prefer",
            "postgres://db.example/hgs?sslmode=require",
            "postgres://localhost/hgs?host=db.example",
            "postgres://localhost/hgs?hostaddr=192.0.2.1",
        ] {
            assert!(matches!(StoreUrl::parse(url), Err(Error::StoreExposed { .. })), "{url}");
        }
        for url in ["", "hgs", "sqlite:///hgs", "mysql://localhost/hgs", "postgres://localhost:port/hgs"] {
            assert!(matches!(StoreUrl::parse(url), Err(Error::BadStoreUrl)), "{url}");
        }
    }

    #[test]
    fn passwords_are_noticed_and_not_shown() {
        let url = StoreUrl::parse("postgres://hgs:geheim@localhost/hgs").unwrap();
        assert!(url.has_password());
        assert!(!format!("{url:?}").contains("geheim"));
        assert!(StoreUrl::parse("postgres://localhost/hgs?password=geheim").unwrap().has_password());
        assert!(!StoreUrl::parse("postgres://hgs@localhost/hgs").unwrap().has_password());
    }
}
