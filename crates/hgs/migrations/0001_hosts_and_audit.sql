-- Types and statements that SQLite and PostgreSQL both take. Times are seconds since 1970, UTC.

CREATE TABLE hosts (
    name        TEXT   NOT NULL PRIMARY KEY,
    fingerprint TEXT   NOT NULL UNIQUE,
    public_key  TEXT   NOT NULL,
    added_at    BIGINT NOT NULL
);

CREATE TABLE audit (
    seq         BIGINT NOT NULL PRIMARY KEY,
    at          BIGINT NOT NULL,
    event       TEXT   NOT NULL,
    host        TEXT   NOT NULL,
    host_key    TEXT   NOT NULL,
    protector   TEXT   NOT NULL,
    owner       TEXT   NOT NULL,
    why         TEXT   NOT NULL,
    previous    TEXT   NOT NULL,
    hash        TEXT   NOT NULL
);
