-- Searches with filters: what they read beside the vectors has an index, and one that
-- no value is too long for (a btree takes 2,704 bytes, 100 characters are 400 at most).

CREATE INDEX prediction_prediction
    ON embedline.prediction (use_case, model_version, left(prediction, 100));
CREATE INDEX prediction_score ON embedline.prediction (use_case, model_version, score);
CREATE INDEX label_label ON embedline.label (use_case, left(label, 100));
CREATE INDEX record_environment ON embedline.record (use_case, left(environment, 100));
CREATE INDEX record_tags ON embedline.record USING gin (tags jsonb_path_ops);

ALTER TABLE embedline.use_case ADD predicted_by_source boolean NOT NULL DEFAULT false;
COMMENT ON COLUMN embedline.use_case.predicted_by_source IS
    'predictions come from a column of the source (prediction.model_version 0), as the views have it';
UPDATE embedline.use_case u SET predicted_by_source = true
    WHERE EXISTS (SELECT FROM embedline.view v
                   WHERE v.use_case = u.id AND v.definition LIKE '%p.model_version = 0%');

-- What a search has found, in arrays of one length, and whether the index had given up
-- before; and how it chooses its way.
CREATE TYPE embedline.found AS (keys text[], units int[], distances float8[], exhausted boolean);
CREATE TYPE embedline.choice AS (
    exact           boolean,
    vectors         bigint,
    index           regclass,
    exact_up_to     bigint,
    matches         bigint,
    max_scan_tuples int
);

-- These are made anew with other parameters.
DROP FUNCTION IF EXISTS embeddings.nearest(text, vector, int, text, int),
    embeddings.neighbors(text, text, int, int, text);

-- A dump makes types before functions. This one's default has pgvector loaded by then, and
-- so its settings known: only a superuser may name unknown ones, as functions do with SET.
CREATE DOMAIN embedline.pgvector_is_loaded AS vector DEFAULT '[1]'::vector;
