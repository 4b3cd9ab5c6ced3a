-- Counts tell of records of all tenants: who sees but some of them is not shown any.
CREATE OR REPLACE VIEW embedline.confusion WITH (security_barrier) AS
SELECT u.name AS use_case, m.version AS model_version, o.day, o.environment,
       CASE o.tag WHEN '' THEN '' ELSE o.tag || '=' || o.value END AS slice,
       o.class AS prediction, o.label, sum(o.rows)::bigint AS rows
FROM embedline.outcome o
JOIN embedline.model_version m ON m.id = o.model_version
JOIN embedline.use_case u ON u.id = m.use_case
JOIN embedline.my_use_case own ON own.use_case = u.id AND own.whole
WHERE o.label IS NOT NULL
GROUP BY u.name, m.version, o.day, o.environment, o.tag, o.value, o.class, o.label;

COMMENT ON VIEW embedline.confusion IS
    'How often what was predicted by day, as of the latest monitoring: sum rows over any days for a confusion matrix';
COMMENT ON COLUMN embedline.confusion.use_case IS 'by name';
COMMENT ON COLUMN embedline.confusion.model_version IS 'that predicted';
COMMENT ON COLUMN embedline.confusion.day IS 'UTC; of the record''s event time, else of its prediction; never of its label';
COMMENT ON COLUMN embedline.confusion.environment IS 'of the record; empty: it has none';
COMMENT ON COLUMN embedline.confusion.slice IS 'tag=value; empty: all records. Choose one: the same rows are in several';
COMMENT ON COLUMN embedline.confusion.prediction IS 'what the model said';
COMMENT ON COLUMN embedline.confusion.label IS 'what is true';
COMMENT ON COLUMN embedline.confusion.rows IS 'predictions';
