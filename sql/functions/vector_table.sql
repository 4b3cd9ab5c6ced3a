-- One physical table per model version. No index but the key: an HNSW on a loading
-- table makes writes 64 times slower: `embedline maintain` builds it when it is due.
-- Exact scans read past dead rows, so vacuum comes early.
CREATE OR REPLACE FUNCTION embedline.create_vector_table(version embedline.model_version)
RETURNS void
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    bytes int := version.dims * CASE version.storage WHEN 'halfvec' THEN 2 ELSE 4 END;
BEGIN
    EXECUTE format(
        'CREATE TABLE embedline.%I (
            key         text COLLATE "C" NOT NULL,
            unit        int NOT NULL DEFAULT 0,
            span        int4range,
            embedding   %s(%s) NOT NULL,
            input_hash  bytea NOT NULL,
            run_id      bigint NOT NULL,
            embedded_at timestamptz NOT NULL DEFAULT now(),
            box         real[],
            PRIMARY KEY (key, unit)
        ) WITH (autovacuum_vacuum_scale_factor = 0.05,
                autovacuum_analyze_scale_factor = 0.05)', version.table_name, version.storage, version.dims);
    -- In line, a scan reads 2.4 times faster than through TOAST. 5,300 bytes leave room
    -- in the 8 kB page for the longest key a btree takes (2,704 bytes).
    IF bytes <= 5300 THEN
        EXECUTE format(
            'ALTER TABLE embedline.%I ALTER COLUMN embedding SET STORAGE PLAIN',
            version.table_name);
    END IF;
    EXECUTE format(
        'COMMENT ON COLUMN embedline.%1$I.span IS ''characters of the input, from 0'';
         COMMENT ON COLUMN embedline.%1$I.box IS ''xmin, ymin, xmax, ymax in pixels''',
        version.table_name);
    EXECUTE format(
        'COMMENT ON TABLE embedline.%I IS %L', version.table_name,
        'vectors of model version ' || version.version || ', fingerprint ' || version.fingerprint);
END
$$;

-- Fails where something else depends on it, a view of somebody's own.
CREATE OR REPLACE FUNCTION embedline.drop_vector_table(version embedline.model_version)
RETURNS void
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
BEGIN
    EXECUTE format('DROP TABLE IF EXISTS embedline.%I', version.table_name);
END
$$;
