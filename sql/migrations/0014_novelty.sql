-- Rows that monitoring has found worth a look.

CREATE TABLE embedline.flag (
    model_version int NOT NULL REFERENCES embedline.model_version,
    key           text COLLATE "C" NOT NULL,
    unit          int NOT NULL,
    kind          text COLLATE "C" NOT NULL,
    day           date NOT NULL,
    score         float8 NOT NULL,
    cluster       int,
    detail        jsonb NOT NULL DEFAULT '{}',
    found_at      timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (model_version, key, unit, kind)
);
CREATE INDEX flag_ranked ON embedline.flag (model_version, kind, score DESC);
COMMENT ON TABLE embedline.flag IS
    'vectors that somebody should look at, as they were last found; embedline.flags leaves out those of vectors that are gone or were made again since';
COMMENT ON COLUMN embedline.flag.model_version IS 'model_version.id: whose vector it is';
COMMENT ON COLUMN embedline.flag.key IS 'the record''s';
COMMENT ON COLUMN embedline.flag.unit IS '0: the whole record; else which of its words, entities or objects';
COMMENT ON COLUMN embedline.flag.kind IS
    'why: novel (most of its nearest neighbours came with it), outlier (farther from the baseline than 99 % of that itself), and others; docs/monitoring.md has them all';
COMMENT ON COLUMN embedline.flag.day IS 'it belongs to, UTC, as in embedline.rollup';
COMMENT ON COLUMN embedline.flag.score IS 'the larger, the sooner to be looked at; comparable within a kind';
COMMENT ON COLUMN embedline.flag.cluster IS
    'novel: which group of its window it is of, 1 is the largest, as in the detail of embedline.measurement; null: none';
COMMENT ON COLUMN embedline.flag.detail IS 'more, by kind';
COMMENT ON COLUMN embedline.flag.found_at IS 'when';
