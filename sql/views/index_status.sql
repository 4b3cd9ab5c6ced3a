-- How the vectors of every live model version are searched, and what is known of it.
CREATE OR REPLACE VIEW embedline.index_status WITH (security_barrier) AS
SELECT
    u.name AS use_case,
    m.feature,
    m.version AS model_version,
    m.state,
    m.table_name,
    CASE WHEN i.is_valid THEN 'approximate' ELSE 'exact' END AS search,
    i.name AS index,
    i.is_valid,
    i.method,
    i.parameters,
    i.bytes,
    made.seconds AS build_seconds,
    made.recorded_at AS built_at,
    last.rows AS rows_measured,
    last.recall,
    last.k,
    last.ef_search,
    last.recorded_at AS measured_at,
    pg_table_size(t.oid) AS table_bytes,
    coalesce(s.n_dead_tup::float8 / nullif(s.n_live_tup + s.n_dead_tup, 0), 0) AS dead_share,
    i.scans
FROM embedline.use_case u
JOIN embedline.model_version m ON m.use_case = u.id AND m.state <> 'retired'
JOIN pg_class t ON t.relnamespace = 'embedline'::regnamespace AND t.relname = m.table_name
LEFT JOIN pg_stat_all_tables s ON s.relid = t.oid
LEFT JOIN LATERAL (
    SELECT c.relname::text AS name, x.indisvalid AS is_valid, am.amname::text AS method,
           array_to_string(c.reloptions, ', ') AS parameters, pg_relation_size(c.oid) AS bytes,
           pg_stat_get_numscans(c.oid) AS scans
      FROM pg_index x
      JOIN pg_class c ON c.oid = x.indexrelid
      JOIN pg_am am ON am.oid = c.relam
     WHERE x.indrelid = t.oid AND am.amname NOT IN ('btree', 'hash', 'gin', 'gist', 'spgist', 'brin')
     ORDER BY x.indisvalid DESC, c.oid DESC LIMIT 1
) i ON true
LEFT JOIN LATERAL (
    SELECT seconds, recorded_at FROM embedline.vector_index v
     WHERE v.model_version = m.id AND v.name = i.name AND v.work <> 'measure'
     ORDER BY v.id DESC LIMIT 1
) made ON true
LEFT JOIN LATERAL (
    SELECT rows, recall, k, ef_search, recorded_at FROM embedline.vector_index v
     WHERE v.model_version = m.id AND v.name = i.name AND v.recall IS NOT NULL
     ORDER BY v.id DESC LIMIT 1
) last ON true
-- its numbers are of all tenants
JOIN embedline.my_use_case own ON own.use_case = u.id AND own.whole;

COMMENT ON VIEW embedline.index_status IS
    'How the vectors of every live model version are searched: exactly, or through which index, how large, how well';
COMMENT ON COLUMN embedline.index_status.search IS
    'exact: all vectors are read; approximate: through the index';
COMMENT ON COLUMN embedline.index_status.is_valid IS
    'false: it is being built, or its build was broken off; embedline maintain takes it out';
COMMENT ON COLUMN embedline.index_status.recall IS
    'share of the k exact nearest neighbours that a search with ef_search through the index found, when it was measured';
COMMENT ON COLUMN embedline.index_status.dead_share IS
    'rows of the table that were overwritten or deleted and not yet vacuumed away, as the server last counted';
COMMENT ON COLUMN embedline.index_status.use_case IS 'by name';
COMMENT ON COLUMN embedline.index_status.feature IS 'of a use case that declares several; else `embedding`';
COMMENT ON COLUMN embedline.index_status.model_version IS 'its number within the use case';
COMMENT ON COLUMN embedline.index_status.state IS 'building, ready or active';
COMMENT ON COLUMN embedline.index_status.table_name IS 'of its vectors, in the schema `embedline`';
COMMENT ON COLUMN embedline.index_status.index IS 'its name; null: there is none';
COMMENT ON COLUMN embedline.index_status.method IS 'hnsw, or what somebody made by hand';
COMMENT ON COLUMN embedline.index_status.parameters IS 'it was made with';
COMMENT ON COLUMN embedline.index_status.bytes IS 'size of the index';
COMMENT ON COLUMN embedline.index_status.build_seconds IS 'that its last build took';
COMMENT ON COLUMN embedline.index_status.built_at IS 'when it was last built by Embedline';
COMMENT ON COLUMN embedline.index_status.rows_measured IS 'vectors in the table when recall was measured';
COMMENT ON COLUMN embedline.index_status.k IS 'neighbours that were asked for';
COMMENT ON COLUMN embedline.index_status.ef_search IS 'candidates that those searches kept';
COMMENT ON COLUMN embedline.index_status.measured_at IS 'when recall was measured';
COMMENT ON COLUMN embedline.index_status.table_bytes IS 'size of the table, indexes apart';
COMMENT ON COLUMN embedline.index_status.scans IS 'searches that have read the index, as the server counts';
