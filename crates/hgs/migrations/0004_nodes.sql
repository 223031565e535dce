-- Several nodes on one database, signed rows, and generations of protectors.

-- Rows are signed from here on. Those of earlier versions stay where they can be read, in a table of their own.
ALTER TABLE audit RENAME TO audit_unsigned;
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
    hash        TEXT   NOT NULL,
    -- ECDSA over the hash, base64.
    signature   TEXT   NOT NULL
);

-- The one service whose nodes may use this store.
CREATE TABLE service (
    id TEXT NOT NULL PRIMARY KEY
);

-- Challenges of TPM mode that were answered, by any node.
CREATE TABLE answered (
    nonce   TEXT   NOT NULL PRIMARY KEY,
    expires BIGINT NOT NULL
);
CREATE INDEX answered_expires ON answered (expires);

-- What all nodes do alike. No row: as a new service does.
CREATE TABLE settings (
    name  TEXT NOT NULL PRIMARY KEY,
    value TEXT NOT NULL
);

-- A chain is a VM's protectors from the first that came here on; each roll makes one of the next generation.
ALTER TABLE protectors ADD COLUMN chain TEXT NOT NULL DEFAULT '';
ALTER TABLE protectors ADD COLUMN generation BIGINT NOT NULL DEFAULT 1;
UPDATE protectors SET chain = key_id;
CREATE INDEX protectors_chain ON protectors (chain, generation);
CREATE TABLE chains (
    chain  TEXT   NOT NULL PRIMARY KEY,
    -- The newest generation that a host has rolled: what is older than this is stale.
    rolled BIGINT NOT NULL
);
INSERT INTO chains (chain, rolled) SELECT key_id, 0 FROM protectors;

-- Owners' permits for stale protectors.
CREATE TABLE permits (
    id        TEXT   NOT NULL PRIMARY KEY,
    -- SHA-256 of the protector document.
    protector TEXT   NOT NULL,
    -- Fingerprint of the signing certificate that signed the permit.
    owner     TEXT   NOT NULL,
    not_after BIGINT NOT NULL,
    -- The generation that the protector was taken for, 0 until it has been.
    used      BIGINT NOT NULL
);
