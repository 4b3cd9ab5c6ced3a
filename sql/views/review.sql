CREATE OR REPLACE VIEW embedline.review WITH (security_barrier) AS
SELECT
    u.name AS use_case,
    m.feature,
    m.version AS model_version,
    f.kind,
    row_number() OVER (PARTITION BY m.id, f.kind ORDER BY f.score DESC, f.key, f.unit) AS rank,
    f.key,
    f.unit,
    f.score,
    i.data,
    p.prediction,
    CASE WHEN m.unit IN ('record', 'object') THEN l.label ELSE f.detail ->> 'label' END AS label,
    f.detail ->> 'suggested' AS suggested_label,
    r.link,
    r.event_time,
    r.environment,
    f.day,
    f.cluster,
    CASE WHEN own.whole THEN f.detail END AS detail,
    f.found_at
FROM embedline.flag f
JOIN embedline.model_version m ON m.id = f.model_version AND m.state <> 'retired'
JOIN embedline.use_case u ON u.id = m.use_case
JOIN embedline.ledger g ON g.model_version = m.id AND g.key = f.key AND g.want_hash IS NOT NULL
JOIN embedline.my_use_case own ON own.use_case = u.id
LEFT JOIN embedline.record r ON r.use_case = u.id AND r.key = f.key
LEFT JOIN embedline.input i ON i.model_version = m.id AND i.key = f.key
LEFT JOIN embedline.prediction p ON p.use_case = u.id AND p.key = f.key AND p.unit = f.unit
      AND p.model_version = CASE WHEN u.predicted_by_source THEN 0 ELSE m.id END
LEFT JOIN embedline.label l ON l.use_case = u.id AND l.key = f.key AND l.unit = 0 AND u.labelled_unit = 'record'
WHERE NOT EXISTS (
        SELECT FROM embedline.dismissed d
         WHERE d.use_case = u.id AND d.feature = m.feature AND d.key = f.key AND d.unit = f.unit
           AND d.kind = f.kind AND d.input_hash = g.want_hash
           AND d.labels IS NOT DISTINCT FROM (
               SELECT h.digest FROM embedline.labels_digest h WHERE h.use_case = u.id AND h.key = f.key))
  AND (own.whole OR r.tenant = ANY (own.tenants));

COMMENT ON VIEW embedline.review IS
    'What somebody should look at, kind by kind, the most suspicious first: ORDER BY rank has the first of each kind before the second ones. embedline.dismiss takes a row off';
COMMENT ON COLUMN embedline.review.use_case IS 'by name';
COMMENT ON COLUMN embedline.review.feature IS 'of a use case that declares several; else `embedding`';
COMMENT ON COLUMN embedline.review.model_version IS 'its number within the use case';
COMMENT ON COLUMN embedline.review.kind IS
    'label: neighbours and model say another class; conflict: nearly the same as a record of another label; empty: an input of no words; unknown_words: of words the encoder has no vector for; truncated: longer than the model takes, and cut; and what novelty finds';
COMMENT ON COLUMN embedline.review.rank IS 'within its use case, model version and kind, of the rows that whoever asks may see';
COMMENT ON COLUMN embedline.review.key IS 'the record''s key as text; of several columns, a JSON list of texts';
COMMENT ON COLUMN embedline.review.unit IS '0: the whole record; else the number of its word, entity or object';
COMMENT ON COLUMN embedline.review.score IS 'larger: more suspicious; of one kind alone they compare';
COMMENT ON COLUMN embedline.review.data IS 'the input when its vector was made, as much as storage.data keeps';
COMMENT ON COLUMN embedline.review.prediction IS 'what the model said of it';
COMMENT ON COLUMN embedline.review.label IS 'its label now; of words and entities, when the flag was found';
COMMENT ON COLUMN embedline.review.suggested_label IS 'the class that the evidence speaks for; null: the kind has none';
COMMENT ON COLUMN embedline.review.link IS 'where a person can see the record: source.link';
COMMENT ON COLUMN embedline.review.event_time IS 'when the record happened: source.event_time';
COMMENT ON COLUMN embedline.review.environment IS 'training, production and so on: source.environment';
COMMENT ON COLUMN embedline.review.day IS 'that monitoring counts it to, UTC';
COMMENT ON COLUMN embedline.review.cluster IS 'the group of rows it was found with; null: none';
COMMENT ON COLUMN embedline.review.detail IS 'the evidence; null for who sees but some tenants'' records, as it tells of others';
COMMENT ON COLUMN embedline.review.found_at IS 'when it was first found';
