CREATE OR REPLACE VIEW embedline.map WITH (security_barrier) AS
SELECT
    u.name AS use_case,
    m.feature,
    m.version AS model_version,
    j.method,
    j.id AS projection,
    p.key,
    p.unit,
    p.x,
    p.y,
    p.placed,
    p.cluster,
    CASE WHEN own.whole THEN c.name END AS name,
    y.prediction,
    y.score,
    l.label,
    i.data,
    r.link,
    r.event_time,
    r.environment
FROM embedline.projection j
JOIN embedline.model_version m ON m.id = j.model_version
JOIN embedline.use_case u ON u.id = m.use_case
JOIN embedline.projection_point p ON p.projection = j.id
JOIN embedline.my_use_case own ON own.use_case = u.id
LEFT JOIN embedline.projection_cluster c ON c.projection = j.id AND c.cluster = p.cluster
LEFT JOIN embedline.record r ON r.use_case = u.id AND r.key = p.key
LEFT JOIN embedline.input i ON i.model_version = m.id AND i.key = p.key
LEFT JOIN embedline.prediction y ON y.use_case = u.id AND y.key = p.key AND y.unit = p.unit
      AND y.model_version = CASE WHEN u.predicted_by_source THEN 0 ELSE m.id END
LEFT JOIN embedline.label l ON l.use_case = u.id AND l.key = p.key AND l.unit = 0
      AND u.labelled_unit = 'record' AND m.unit IN ('record', 'object')
WHERE NOT EXISTS (SELECT FROM embedline.projection later
                   WHERE later.model_version = j.model_version AND later.method = j.method AND later.id > j.id)
  AND (own.whole OR r.tenant = ANY (own.tenants));

COMMENT ON VIEW embedline.map IS
    'The latest map of every model version by each method: where its vectors lie in two dimensions, in which cluster, beside what is known of them';
COMMENT ON COLUMN embedline.map.use_case IS 'by name';
COMMENT ON COLUMN embedline.map.feature IS 'of a use case that declares several; else `embedding`';
COMMENT ON COLUMN embedline.map.model_version IS 'its number within the use case';
COMMENT ON COLUMN embedline.map.method IS 'pca or umap';
COMMENT ON COLUMN embedline.map.projection IS 'projection.id: points of one compare';
COMMENT ON COLUMN embedline.map.key IS 'the record''s key as text; of several columns, a JSON list of texts';
COMMENT ON COLUMN embedline.map.unit IS '0: the whole record; else the number of its word, entity or object';
COMMENT ON COLUMN embedline.map.x IS 'no unit: only distances on one map compare';
COMMENT ON COLUMN embedline.map.y IS 'as x';
COMMENT ON COLUMN embedline.map.placed IS 'false: the map was fitted on it; true: it was placed on it as it was';
COMMENT ON COLUMN embedline.map.cluster IS 'of near vectors, not of near points: its number on this map';
COMMENT ON COLUMN embedline.map.name IS
    'words that tell the cluster from the others; null for who sees but some tenants'' records, as they are of others'', too';
COMMENT ON COLUMN embedline.map.prediction IS 'what the model said of it';
COMMENT ON COLUMN embedline.map.score IS 'how sure the model was';
COMMENT ON COLUMN embedline.map.label IS 'of whole records and objects: what is true of the record, as far as somebody has said';
COMMENT ON COLUMN embedline.map.data IS 'the input when its vector was made, as much as storage.data keeps';
COMMENT ON COLUMN embedline.map.link IS 'where a person can see the record: source.link';
COMMENT ON COLUMN embedline.map.event_time IS 'when the record happened: source.event_time';
COMMENT ON COLUMN embedline.map.environment IS 'training, production and so on: source.environment';
