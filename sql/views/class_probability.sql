CREATE OR REPLACE VIEW embedline.class_probability AS
SELECT u.name AS use_case, p.key, p.unit, m.version AS model_version, c.class, c.probability
FROM embedline.prediction p
JOIN embedline.use_case u ON u.id = p.use_case
JOIN embedline.model_version m ON m.id = p.model_version
CROSS JOIN LATERAL unnest(m.classes, p.probabilities) AS c (class, probability);

COMMENT ON VIEW embedline.class_probability IS 'The probability of every class of every prediction made in the embedding pass';
