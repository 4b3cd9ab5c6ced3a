-- Vectors summed up by day, so that monitoring compares any window with any other
-- without reading a vector again.

CREATE TABLE embedline.rollup_day (
    model_version int NOT NULL REFERENCES embedline.model_version,
    day           date NOT NULL,
    rows          bigint NOT NULL,
    digest        numeric NOT NULL,
    rolled_up_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (model_version, day)
);
COMMENT ON TABLE embedline.rollup_day IS
    'the days whose vectors are summed up in embedline.rollup, and of which rows: a day of another digest is summed up anew';
COMMENT ON COLUMN embedline.rollup_day.model_version IS 'whose vectors they are';
COMMENT ON COLUMN embedline.rollup_day.day IS
    'UTC; of the record''s event time, else of its prediction, else of its vector';
COMMENT ON COLUMN embedline.rollup_day.rows IS 'vectors of this day';
COMMENT ON COLUMN embedline.rollup_day.digest IS
    'sum over its vectors of a hash of all that a roll-up depends on';
COMMENT ON COLUMN embedline.rollup_day.rolled_up_at IS 'when it was last summed up';

CREATE TABLE embedline.rollup (
    model_version int NOT NULL,
    day           date NOT NULL,
    environment   text COLLATE "C" NOT NULL,
    class         text COLLATE "C" NOT NULL,
    bucket        smallint NOT NULL,
    rows          bigint NOT NULL,
    centroid      pgvector.vector NOT NULL,
    square        float8 NOT NULL,
    PRIMARY KEY (model_version, day, environment, class, bucket),
    FOREIGN KEY (model_version, day) REFERENCES embedline.rollup_day ON DELETE CASCADE
);
COMMENT ON TABLE embedline.rollup IS
    'sums of vectors; those of several rows are put together as sum(rows * centroid) / sum(rows)';
COMMENT ON COLUMN embedline.rollup.model_version IS 'whose vectors they are';
COMMENT ON COLUMN embedline.rollup.day IS 'as of embedline.rollup_day';
COMMENT ON COLUMN embedline.rollup.environment IS 'of the record; empty: it has none';
COMMENT ON COLUMN embedline.rollup.class IS 'predicted; empty: nothing was';
COMMENT ON COLUMN embedline.rollup.bucket IS 'of the record''s key, by hash: what tells chance from drift';
COMMENT ON COLUMN embedline.rollup.rows IS 'vectors';
COMMENT ON COLUMN embedline.rollup.centroid IS 'mean of the vectors';
COMMENT ON COLUMN embedline.rollup.square IS 'mean of their squared norms';
