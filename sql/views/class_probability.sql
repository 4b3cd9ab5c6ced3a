CREATE OR REPLACE VIEW embedline.class_probability WITH (security_barrier) AS
SELECT u.name AS use_case, p.key, p.unit, m.version AS model_version, c.class, c.probability
FROM embedline.prediction p
JOIN embedline.use_case u ON u.id = p.use_case
JOIN embedline.model_version m ON m.id = p.model_version
CROSS JOIN LATERAL unnest(m.classes, p.probabilities) AS c (class, probability)
WHERE NOT u.tenanted
   OR (SELECT embedline.sees_all())
   OR EXISTS (SELECT FROM embedline.record r
              JOIN embedline.my_tenant t ON t.tenant IS NULL OR t.tenant = r.tenant
              WHERE r.use_case = p.use_case AND r.key = p.key
                AND (t.use_case IS NULL OR t.use_case = p.use_case));

COMMENT ON VIEW embedline.class_probability IS 'The probability of every class of every prediction made in the embedding pass';
COMMENT ON COLUMN embedline.class_probability.use_case IS 'by name';
COMMENT ON COLUMN embedline.class_probability.key IS 'the record''s key as text; of several columns, a JSON list of texts';
COMMENT ON COLUMN embedline.class_probability.unit IS '0: the whole record; else the number of its word, entity or object';
COMMENT ON COLUMN embedline.class_probability.model_version IS 'whose head made the prediction';
COMMENT ON COLUMN embedline.class_probability.class IS 'one row for each that the model knows';
COMMENT ON COLUMN embedline.class_probability.probability IS '0 to 1';
