-- Backfills that can be paused and cancelled, records forgotten on request, what a run
-- cost, and what holds the horizon of a source back.

ALTER TABLE embedline.run
    ADD scope text CHECK (scope IN ('window', 'keys', 'everything')),
    ADD paused_at timestamptz,
    ADD cancelled_at timestamptz,
    ADD not_found bigint NOT NULL DEFAULT 0,
    ADD unreadable bigint NOT NULL DEFAULT 0,
    ADD embed_seconds float8 NOT NULL DEFAULT 0,
    DROP CONSTRAINT run_kind_check,
    ADD CONSTRAINT run_kind_check CHECK (kind IN ('scheduled', 'manual', 'backfill', 'cli', 'work'));
UPDATE embedline.run SET scope = 'window' WHERE num_nonnulls(since, until) > 0;
CREATE INDEX run_paused ON embedline.run (id) WHERE paused_at IS NOT NULL;
COMMENT ON COLUMN embedline.run.scope IS 'what a backfill asks for; null: everything new, changed or gone';
COMMENT ON COLUMN embedline.run.kind IS 'work: one more worker, which helps to drain what waits';
COMMENT ON COLUMN embedline.run.paused_at IS 'a backfill whose records nobody takes until it is resumed';
COMMENT ON COLUMN embedline.run.cancelled_at IS 'a backfill whose records that were not yet embedded were let go';
COMMENT ON COLUMN embedline.run.not_found IS 'keys a backfill asked for that the source does not have';
COMMENT ON COLUMN embedline.run.unreadable IS
    'rows of which the source cannot give what the use case names: set aside as dead';
COMMENT ON COLUMN embedline.run.embed_seconds IS
    'seconds that workers spent on what they embedded, from reading to writing, loading the model apart';

-- No foreign key: checking it for each row made a first sync 2.4 times slower.
ALTER TABLE embedline.ledger ADD backfill bigint;
CREATE INDEX ledger_backfill ON embedline.ledger (backfill) WHERE backfill IS NOT NULL;
COMMENT ON COLUMN embedline.ledger.backfill IS
    'the backfill (embedline.run) that is to embed it; null: the schedule, or there is nothing to do';

ALTER TABLE embedline.source_cursor ADD held_back jsonb;
COMMENT ON COLUMN embedline.source_cursor.held_back IS
    'how many transaction ids the horizon lay behind, and who held it; null: nothing did, or there is no horizon';

CREATE TABLE embedline.forgotten (
    use_case     int NOT NULL REFERENCES embedline.use_case,
    key_hash     bytea NOT NULL,
    forgotten_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (use_case, key_hash)
);
COMMENT ON TABLE embedline.forgotten IS 'records erased on request, which no sync brings back';
COMMENT ON COLUMN embedline.forgotten.key_hash IS 'sha256 of the key''s text: the key itself is not kept';
