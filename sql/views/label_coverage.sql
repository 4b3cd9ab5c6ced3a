-- Counts tell of records of all tenants: who sees but some of them is not shown any.
CREATE OR REPLACE VIEW embedline.label_coverage WITH (security_barrier) AS
SELECT u.name AS use_case, m.version AS model_version, o.day, o.environment,
       CASE o.tag WHEN '' THEN '' ELSE o.tag || '=' || o.value END AS slice,
       sum(o.rows)::bigint AS predicted, sum(o.labelled)::bigint AS labelled,
       sum(o.labelled)::float8 / sum(o.rows)::float8 AS coverage,
       make_interval(secs => sum(o.lag) / nullif(sum(o.labelled), 0)::float8) AS mean_lag
FROM (SELECT model_version, day, environment, tag, value, rows,
             CASE WHEN label IS NULL THEN 0 ELSE rows END AS labelled, lag
        FROM embedline.outcome
      UNION ALL
      SELECT model_version, day, environment, tag, value, records, labelled, lag
        FROM embedline.entity_outcome WHERE type = '') o
JOIN embedline.model_version m ON m.id = o.model_version
JOIN embedline.use_case u ON u.id = m.use_case
JOIN embedline.my_use_case own ON own.use_case = u.id AND own.whole
GROUP BY u.name, m.version, o.day, o.environment, o.tag, o.value;

COMMENT ON VIEW embedline.label_coverage IS
    'How many of a day''s predictions have a label, as of the latest monitoring, and how long it took';
COMMENT ON COLUMN embedline.label_coverage.use_case IS 'by name';
COMMENT ON COLUMN embedline.label_coverage.model_version IS 'that predicted';
COMMENT ON COLUMN embedline.label_coverage.day IS 'UTC; of the record''s event time, else of its prediction; never of its label';
COMMENT ON COLUMN embedline.label_coverage.environment IS 'of the record; empty: it has none';
COMMENT ON COLUMN embedline.label_coverage.slice IS 'tag=value; empty: all records. Choose one: the same rows are in several';
COMMENT ON COLUMN embedline.label_coverage.predicted IS 'predictions; of words and entities, records';
COMMENT ON COLUMN embedline.label_coverage.labelled IS 'of them';
COMMENT ON COLUMN embedline.label_coverage.coverage IS 'labelled / predicted';
COMMENT ON COLUMN embedline.label_coverage.mean_lag IS
    'from the record''s event time, else its prediction, to its label''s time, else its arrival; null: none is labelled';
