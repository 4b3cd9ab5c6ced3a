-- The machine room. People query the schema `embeddings`; this one is ours.

CREATE SCHEMA IF NOT EXISTS embeddings;

COMMENT ON SCHEMA embedline IS 'Embedline''s machine room: what is wanted, what is stored, who holds it';
COMMENT ON SCHEMA embeddings IS 'One view per use case, and the search functions';

CREATE TABLE embedline.use_case (
    id         int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name       text NOT NULL UNIQUE CHECK (name ~ '^[a-z][a-z0-9_]{0,39}$'),
    created_at timestamptz NOT NULL DEFAULT now(),
    deletes_withheld bigint NOT NULL DEFAULT 0,
    labels_withheld  bigint NOT NULL DEFAULT 0,
    view_definition  text
);
COMMENT ON COLUMN embedline.use_case.deletes_withheld IS
    'records gone from the source that the delete guard keeps until they are allowed to go';
COMMENT ON COLUMN embedline.use_case.labels_withheld IS
    'labels gone from the source that the delete guard keeps until they are allowed to go';

CREATE TABLE embedline.model_version (
    id           int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    use_case     int NOT NULL REFERENCES embedline.use_case,
    version      int NOT NULL CHECK (version > 0),
    fingerprint  text NOT NULL,
    spec         jsonb NOT NULL,
    dims         int NOT NULL CHECK (dims > 0),
    storage      text NOT NULL CHECK (storage IN ('vector', 'halfvec')),
    distance     text NOT NULL CHECK (distance IN ('cosine', 'l2', 'inner_product')),
    classes      text[],
    table_name   text NOT NULL UNIQUE,
    state        text NOT NULL CHECK (state IN ('building', 'ready', 'active', 'retired')),
    created_at   timestamptz NOT NULL DEFAULT now(),
    ready_at     timestamptz,
    activated_at timestamptz,
    retired_at   timestamptz,
    UNIQUE (use_case, version)
);
CREATE UNIQUE INDEX model_version_one_active ON embedline.model_version (use_case)
    WHERE state = 'active';
CREATE UNIQUE INDEX model_version_one_building ON embedline.model_version (use_case)
    WHERE state IN ('building', 'ready');
COMMENT ON COLUMN embedline.model_version.fingerprint IS
    'sha256 over everything that shapes the vectors: weights, tokenizer, pooling, layers, dtype, inputs';

CREATE TABLE embedline.run (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    use_case    int NOT NULL REFERENCES embedline.use_case,
    external_id text NOT NULL,
    kind        text NOT NULL CHECK (kind IN ('scheduled', 'manual', 'backfill', 'cli')),
    since       timestamptz,
    until       timestamptz,
    reembed     boolean NOT NULL DEFAULT false,
    state       text NOT NULL DEFAULT 'running'
                CHECK (state IN ('running', 'success', 'failed')),
    error       text,
    started_at  timestamptz NOT NULL DEFAULT now(),
    failed_stages text[] NOT NULL DEFAULT '{}',
    synced_at   timestamptz,
    finished_at timestamptz,
    -- what the sync found
    read        bigint NOT NULL DEFAULT 0,
    new         bigint NOT NULL DEFAULT 0,
    changed     bigint NOT NULL DEFAULT 0,
    deleted     bigint NOT NULL DEFAULT 0,
    labels      bigint NOT NULL DEFAULT 0,
    unusable_keys bigint NOT NULL DEFAULT 0,
    -- what the workers did
    embedded    bigint NOT NULL DEFAULT 0,
    vectors     bigint NOT NULL DEFAULT 0,
    truncated   bigint NOT NULL DEFAULT 0,
    deferred    bigint NOT NULL DEFAULT 0,
    discarded   bigint NOT NULL DEFAULT 0,
    failed      bigint NOT NULL DEFAULT 0,
    UNIQUE (use_case, external_id)
);
COMMENT ON COLUMN embedline.run.failed_stages IS 'stages that failed, each until it is tried again';
COMMENT ON COLUMN embedline.run.synced_at IS 'what was queued later is another run''s business';
COMMENT ON COLUMN embedline.run.read IS 'rows of the source the sync looked at more closely than their key';
COMMENT ON COLUMN embedline.run.labels IS 'labels added, corrected or withdrawn';
COMMENT ON COLUMN embedline.run.unusable_keys IS 'rows of the source without a key, or with one of more than 2,000 bytes: they cannot be stored';
COMMENT ON COLUMN embedline.run.embedded IS 'records whose vectors were computed and stored';
COMMENT ON COLUMN embedline.run.truncated IS 'embedded records longer than the model''s maximum length';
COMMENT ON COLUMN embedline.run.deferred IS 'records that changed or vanished between sync and embed: the next sync sees to them';
COMMENT ON COLUMN embedline.run.discarded IS 'records computed in vain: the fence found them changed, deleted or leased to another worker';

-- How far the last complete look at a relation of the source reached.
CREATE TABLE embedline.source_cursor (
    use_case          int NOT NULL REFERENCES embedline.use_case,
    relation          text NOT NULL CHECK (relation IN ('records', 'labels')),
    definition        jsonb NOT NULL,
    server            text NOT NULL,
    horizon           xid8 NOT NULL,
    synced_at         timestamptz NOT NULL DEFAULT now(),
    full_at           timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (use_case, relation)
);
COMMENT ON COLUMN embedline.source_cursor.server IS
    'the source''s system identifier and start: a horizon means nothing to another server, or one put back from a backup';
COMMENT ON COLUMN embedline.source_cursor.full_at IS 'when every row was last read, changed or not';
COMMENT ON COLUMN embedline.source_cursor.horizon IS
    'pg_snapshot_xmin of that look: every row version written later has xmin at or after it';

-- One row per record and live model version.
CREATE TABLE embedline.ledger (
    model_version   int NOT NULL REFERENCES embedline.model_version,
    key             text COLLATE "C" NOT NULL,
    want_hash       bytea,
    have_hash       bytea,
    pending         boolean NOT NULL
                    GENERATED ALWAYS AS (want_hash IS DISTINCT FROM have_hash) STORED,
    priority        smallint NOT NULL DEFAULT 0,
    queued_at       timestamptz NOT NULL DEFAULT now(),
    attempts        smallint NOT NULL DEFAULT 0,
    next_attempt_at timestamptz NOT NULL DEFAULT now(),
    deferred        boolean NOT NULL DEFAULT false,
    lease_token     uuid,
    lease_holder    text,
    lease_until     timestamptz,
    dead_at         timestamptz,
    error           text,
    PRIMARY KEY (model_version, key)
) WITH (fillfactor = 80);
CREATE INDEX ledger_queue ON embedline.ledger (model_version, priority, queued_at, key)
    WHERE pending AND dead_at IS NULL;
CREATE INDEX ledger_leases ON embedline.ledger (lease_token) WHERE lease_token IS NOT NULL;
CREATE INDEX ledger_dead ON embedline.ledger (model_version, key) WHERE dead_at IS NOT NULL;
COMMENT ON COLUMN embedline.ledger.want_hash IS
    'sha256 of the input columns as the last sync saw them; null: the input is null and nothing is to be embedded';
COMMENT ON COLUMN embedline.ledger.have_hash IS
    'want_hash of the vectors in the table; null: none, or to be made again';
COMMENT ON COLUMN embedline.ledger.deferred IS
    'the source had moved on when a worker looked: the next sync sees to it';
COMMENT ON COLUMN embedline.ledger.priority IS '0 scheduled, 10 backfill; lower first';

CREATE TABLE embedline.record (
    use_case    int NOT NULL REFERENCES embedline.use_case,
    key         text COLLATE "C" NOT NULL,
    event_time  timestamptz,
    environment text,
    link        text,
    tags        jsonb,
    PRIMARY KEY (use_case, key)
);
CREATE INDEX record_event_time ON embedline.record (use_case, event_time);

-- Per model version, as two of them may be made of different columns.
CREATE TABLE embedline.input (
    model_version int NOT NULL REFERENCES embedline.model_version,
    key           text COLLATE "C" NOT NULL,
    data          text NOT NULL,
    PRIMARY KEY (model_version, key)
);
COMMENT ON TABLE embedline.input IS
    'the input as it was when its vector was made, as much of it as the use case keeps';

-- `model_version` is 0 where the prediction comes from a column of the source: it was
-- made elsewhere and belongs to no vector table.
CREATE TABLE embedline.prediction (
    use_case      int NOT NULL REFERENCES embedline.use_case,
    key           text COLLATE "C" NOT NULL,
    unit          int NOT NULL DEFAULT 0,
    model_version int NOT NULL DEFAULT 0,
    prediction    text,
    score         float8,
    probabilities real[],
    predicted_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (use_case, key, unit, model_version)
);
COMMENT ON COLUMN embedline.prediction.probabilities IS
    'one per class, in the order of model_version.classes';

CREATE TABLE embedline.label (
    use_case   int NOT NULL REFERENCES embedline.use_case,
    key        text COLLATE "C" NOT NULL,
    unit       int NOT NULL DEFAULT 0,
    label      text,
    labeled_at timestamptz,
    arrived_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (use_case, key, unit)
);
COMMENT ON COLUMN embedline.label.labeled_at IS 'when the label was given, as the source says';
COMMENT ON COLUMN embedline.label.arrived_at IS 'when this store first saw the label''s present value';

-- What a search returns. A named type, since a function cannot both take and return
-- a column called `key`.
CREATE TYPE embedline.neighbor AS (
    key        text,
    unit       int,
    distance   float8,
    prediction text,
    score      float8,
    label      text,
    data       text,
    event_time timestamptz
);
