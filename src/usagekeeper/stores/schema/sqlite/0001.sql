-- Usage records. The file says whose it is, and which of these scripts have run.
PRAGMA application_id = 1970498418;  -- "uskr"

CREATE TABLE schema_version (number INTEGER NOT NULL PRIMARY KEY);

-- Texts that return in record after record. A column without a type holds the number of a word,
-- or the text itself where it is long or came after the table was full; words are never removed.
CREATE TABLE words (
    number INTEGER PRIMARY KEY,
    text TEXT NOT NULL UNIQUE
);

-- One finished exchange a row. Times are microseconds, NULL is "unknown" or "there was none".
CREATE TABLE records (
    id BLOB NOT NULL PRIMARY KEY,       -- UUIDv7: milliseconds, 26 bits of serial, 48 of process
    at INTEGER,
    serial INTEGER,
    application,
    method,
    scheme,
    host,
    path TEXT,
    query TEXT,
    route,
    subject TEXT,
    subject_kind,
    outcome,
    reason,
    violated,                           -- JSON array of names, as one word
    policies,                           -- likewise
    units,                              -- INTEGER, or TEXT of a decimal number
    status INTEGER,
    aborted INTEGER,
    exception,
    error_code,
    first_byte INTEGER,
    duration INTEGER,
    bytes_in INTEGER,
    bytes_out INTEGER,
    request_length INTEGER,
    request_mimetype,
    response_length INTEGER,
    response_mimetype,
    referer TEXT,
    origin,
    user_agent,
    remote_address TEXT,
    auth_scheme,
    auth_digest,                        -- 16 bytes, or the text where it is not hexadecimal
    trace_id,                           -- likewise
    request_id TEXT,
    metadata TEXT                       -- JSON object
) WITHOUT ROWID;

-- Entries end in the id, so this reads one subject in the order of time.
CREATE INDEX records_subject ON records (subject) WHERE subject IS NOT NULL;
