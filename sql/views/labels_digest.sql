CREATE OR REPLACE VIEW embedline.labels_digest AS
SELECT l.use_case, l.key,
       sha256(convert_to(string_agg(ROW(l.unit, l.span, l.label)::text, E'\n' ORDER BY l.unit), 'UTF8')) AS digest
FROM embedline.label l
GROUP BY l.use_case, l.key;

COMMENT ON VIEW embedline.labels_digest IS 'What tells that a record''s labels are still what they were';
COMMENT ON COLUMN embedline.labels_digest.use_case IS 'use_case.id';
COMMENT ON COLUMN embedline.labels_digest.key IS 'the record''s; one without a label has no row';
COMMENT ON COLUMN embedline.labels_digest.digest IS 'sha256 of all its labels, whatever part they belong to';
