-- The newest protector of each VM, as far as this service has rolled it: which guardian it depends on.

CREATE TABLE protectors (
    -- Derived from the transport key, one way: a grant makes another document of the same key.
    key_id   TEXT   NOT NULL PRIMARY KEY,
    -- SHA-256 of the document that went out.
    digest   TEXT   NOT NULL,
    -- Fingerprint of the signing certificate of the guardian that opened its predecessor and signed it.
    guardian TEXT   NOT NULL,
    owner    TEXT   NOT NULL,
    host     TEXT   NOT NULL,
    at       BIGINT NOT NULL
);
