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
    tag           text COLLATE "C" NOT NULL,
    value         text COLLATE "C" NOT NULL,
    class         text COLLATE "C" NOT NULL,
    bucket        smallint NOT NULL,
    rows          bigint NOT NULL,
    centroid      pgvector.vector NOT NULL,
    square        float8 NOT NULL,
    PRIMARY KEY (model_version, tag, value, day, environment, class, bucket),
    FOREIGN KEY (model_version, day) REFERENCES embedline.rollup_day ON DELETE CASCADE
);
COMMENT ON TABLE embedline.rollup IS
    'sums of vectors; those of several rows of one tag are put together as sum(rows * centroid) / sum(rows)';
COMMENT ON COLUMN embedline.rollup.model_version IS 'whose vectors they are';
COMMENT ON COLUMN embedline.rollup.day IS 'as of embedline.rollup_day';
COMMENT ON COLUMN embedline.rollup.environment IS 'of the record; empty: it has none';
COMMENT ON COLUMN embedline.rollup.tag IS 'empty: all records; else those that have this tag';
COMMENT ON COLUMN embedline.rollup.value IS 'of the tag';
COMMENT ON COLUMN embedline.rollup.class IS 'predicted; empty: nothing was';
COMMENT ON COLUMN embedline.rollup.bucket IS 'of the record''s key, by hash: what tells chance from drift';
COMMENT ON COLUMN embedline.rollup.rows IS 'vectors';
COMMENT ON COLUMN embedline.rollup.centroid IS 'mean of the vectors';
COMMENT ON COLUMN embedline.rollup.square IS 'mean of their squared norms';

CREATE TABLE embedline.baseline (
    id            int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    model_version int NOT NULL REFERENCES embedline.model_version,
    definition    jsonb NOT NULL,
    fingerprint   text NOT NULL,
    rows          bigint NOT NULL,
    days          int NOT NULL,
    noise         jsonb NOT NULL DEFAULT '{}',
    frozen_at     timestamptz NOT NULL DEFAULT now(),
    superseded_at timestamptz
);
CREATE UNIQUE INDEX baseline_in_force ON embedline.baseline (model_version)
    WHERE superseded_at IS NULL;
COMMENT ON TABLE embedline.baseline IS
    'what a model version is compared with: the records of an environment or of some days, as they were when it was frozen';
COMMENT ON COLUMN embedline.baseline.id IS 'its number';
COMMENT ON COLUMN embedline.baseline.model_version IS 'whose vectors they are';
COMMENT ON COLUMN embedline.baseline.definition IS
    'which records: `environment`, and the days from `since` to before `until`; and the tags it is sliced by';
COMMENT ON COLUMN embedline.baseline.fingerprint IS 'sha256 over the recipe of the vectors, the definition and all cells';
COMMENT ON COLUMN embedline.baseline.rows IS 'vectors';
COMMENT ON COLUMN embedline.baseline.days IS 'on which there are any';
COMMENT ON COLUMN embedline.baseline.noise IS
    'by what it was measured with: how far its own windows lie from the rest of it, for each metric that reads rows';
COMMENT ON COLUMN embedline.baseline.frozen_at IS 'later changes of its records do not change it';
COMMENT ON COLUMN embedline.baseline.superseded_at IS 'another took its place; null: it is in force';

CREATE TABLE embedline.baseline_cell (
    baseline      int NOT NULL REFERENCES embedline.baseline ON DELETE CASCADE,
    tag           text COLLATE "C" NOT NULL,
    value         text COLLATE "C" NOT NULL,
    day           date NOT NULL,
    environment   text COLLATE "C" NOT NULL,
    class         text COLLATE "C" NOT NULL,
    bucket        smallint NOT NULL,
    rows          bigint NOT NULL,
    centroid      pgvector.vector NOT NULL,
    square        float8 NOT NULL,
    PRIMARY KEY (baseline, tag, value, day, environment, class, bucket)
);
COMMENT ON TABLE embedline.baseline_cell IS 'a copy of the rows of embedline.rollup that a baseline was frozen of';
COMMENT ON COLUMN embedline.baseline_cell.baseline IS 'baseline.id';
COMMENT ON COLUMN embedline.baseline_cell.tag IS 'as in rollup';
COMMENT ON COLUMN embedline.baseline_cell.value IS 'as in rollup';
COMMENT ON COLUMN embedline.baseline_cell.day IS 'as in rollup';
COMMENT ON COLUMN embedline.baseline_cell.environment IS 'as in rollup';
COMMENT ON COLUMN embedline.baseline_cell.class IS 'as in rollup';
COMMENT ON COLUMN embedline.baseline_cell.bucket IS 'as in rollup';
COMMENT ON COLUMN embedline.baseline_cell.rows IS 'vectors';
COMMENT ON COLUMN embedline.baseline_cell.centroid IS 'mean of the vectors';
COMMENT ON COLUMN embedline.baseline_cell.square IS 'mean of their squared norms';

CREATE TABLE embedline.measurement (
    model_version int NOT NULL REFERENCES embedline.model_version,
    metric        text COLLATE "C" NOT NULL,
    slice         text COLLATE "C" NOT NULL DEFAULT '',
    kind          text NOT NULL CHECK (kind IN ('drift', 'performance')),
    first_day     date NOT NULL,
    last_day      date NOT NULL,
    baseline      int REFERENCES embedline.baseline ON DELETE SET NULL,
    rows          bigint NOT NULL,
    state         text NOT NULL CHECK (state IN ('no data', 'too few', 'usual', 'beyond')),
    value         float8,
    low           float8,
    high          float8,
    p_value       float8,
    adjusted      float8,
    least         float8,
    noise         float8,
    excess        float8,
    detail        jsonb NOT NULL DEFAULT '{}',
    measured_at   timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (model_version, metric, slice, last_day)
);
COMMENT ON TABLE embedline.measurement IS 'what monitoring found: one row per metric, slice and window of days';
COMMENT ON COLUMN embedline.measurement.model_version IS 'whose vectors and predictions they are';
COMMENT ON COLUMN embedline.measurement.metric IS 'such as centroid, mix, novelty, accuracy; docs/monitoring.md has them all';
COMMENT ON COLUMN embedline.measurement.slice IS 'tag=value, or prediction=class; empty: all records';
COMMENT ON COLUMN embedline.measurement.kind IS 'of vectors and predictions, or of predictions and labels';
COMMENT ON COLUMN embedline.measurement.first_day IS 'of the window, UTC';
COMMENT ON COLUMN embedline.measurement.last_day IS 'of the window, included';
COMMENT ON COLUMN embedline.measurement.baseline IS 'baseline.id of what it was compared with; null: with nothing';
COMMENT ON COLUMN embedline.measurement.rows IS 'it was measured on';
COMMENT ON COLUMN embedline.measurement.state IS
    'beyond: larger than its least effect, than chance and than the baseline''s own days; too few: rows to tell';
COMMENT ON COLUMN embedline.measurement.value IS 'the size of the effect, or the metric itself; null: not to be had';
COMMENT ON COLUMN embedline.measurement.low IS 'end of its 95 % interval';
COMMENT ON COLUMN embedline.measurement.high IS 'end of its 95 % interval';
COMMENT ON COLUMN embedline.measurement.p_value IS 'of the hypothesis that nothing has changed; null: the metric has none';
COMMENT ON COLUMN embedline.measurement.adjusted IS
    'p_value corrected for all metrics and slices that were looked at for the same window';
COMMENT ON COLUMN embedline.measurement.excess IS
    'how far it is from usual in the direction that is bad; null: the metric never alarms';
COMMENT ON COLUMN embedline.measurement.least IS 'the smallest excess that matters';
COMMENT ON COLUMN embedline.measurement.noise IS 'the largest excess among the baseline''s own windows; null: it has too few';
COMMENT ON COLUMN embedline.measurement.detail IS 'what drifted: by class, by value, by cluster';
COMMENT ON COLUMN embedline.measurement.measured_at IS 'when';

CREATE TABLE embedline.alarm (
    id            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    model_version int NOT NULL REFERENCES embedline.model_version,
    metric        text COLLATE "C" NOT NULL,
    slice         text COLLATE "C" NOT NULL,
    since         date NOT NULL,
    raised        date NOT NULL,
    last_seen     date NOT NULL,
    cleared       date,
    told_at       timestamptz,
    acknowledged_at timestamptz,
    acknowledged_by text,
    remark        text,
    UNIQUE (model_version, metric, slice, raised)
);
COMMENT ON TABLE embedline.alarm IS
    'a metric that was beyond the usual in two of three windows; follows from embedline.measurement, but for who was told and who acknowledged';
COMMENT ON COLUMN embedline.alarm.id IS 'what `embedline monitor --acknowledge` takes';
COMMENT ON COLUMN embedline.alarm.model_version IS 'as in measurement';
COMMENT ON COLUMN embedline.alarm.metric IS 'as in measurement';
COMMENT ON COLUMN embedline.alarm.slice IS 'as in measurement';
COMMENT ON COLUMN embedline.alarm.since IS 'the first day of the first window that was beyond';
COMMENT ON COLUMN embedline.alarm.raised IS 'the last day of the window that made it an alarm';
COMMENT ON COLUMN embedline.alarm.last_seen IS 'the last day of the latest window that was beyond';
COMMENT ON COLUMN embedline.alarm.cleared IS 'the last day of the window that ended it; null: it is on';
COMMENT ON COLUMN embedline.alarm.told_at IS 'when its notice was sent; null: not yet';
COMMENT ON COLUMN embedline.alarm.acknowledged_at IS 'when somebody took it on';
COMMENT ON COLUMN embedline.alarm.acknowledged_by IS 'who';
COMMENT ON COLUMN embedline.alarm.remark IS 'what they said';

CREATE TABLE embedline.monitored (
    model_version int NOT NULL REFERENCES embedline.model_version,
    kind          text NOT NULL CHECK (kind IN ('drift', 'performance', 'review')),
    last_day      date NOT NULL,
    inputs        text NOT NULL,
    PRIMARY KEY (model_version, kind, last_day)
);
COMMENT ON TABLE embedline.monitored IS 'which windows have been measured, and on what: one of other inputs is measured anew';
COMMENT ON COLUMN embedline.monitored.model_version IS 'as in measurement';
COMMENT ON COLUMN embedline.monitored.kind IS 'drift: vectors and predictions; performance: predictions and labels; review: the list as a whole';
COMMENT ON COLUMN embedline.monitored.last_day IS 'of the window';
COMMENT ON COLUMN embedline.monitored.inputs IS 'sha256 over the baseline, the settings and the digests of the days';
