-- TPM mode: hosts that are known by their endorsement key, and what a measured boot is compared with.

ALTER TABLE hosts ADD COLUMN kind TEXT NOT NULL DEFAULT 'host-key';

CREATE TABLE baselines (
    name     TEXT   NOT NULL PRIMARY KEY,
    -- JSON: {"7": "64 hexadecimal digits", ...}
    pcrs     TEXT   NOT NULL,
    added_at BIGINT NOT NULL
);

-- The checks that are made in TPM mode; a new service makes all of them.
CREATE TABLE policies (
    name TEXT NOT NULL PRIMARY KEY
);
INSERT INTO policies (name) VALUES ('secure-boot'), ('no-debug-mode'), ('secure-boot-settings'), ('known-good');
