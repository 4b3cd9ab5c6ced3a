-- A version as the store has it, and nothing that a caller says of it: who may write it
-- may have a table of vectors made or dropped with its owner's rights, and no other.
CREATE OR REPLACE FUNCTION embedline.stored_version(version embedline.model_version)
RETURNS embedline.model_version
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    stored embedline.model_version;
BEGIN
    SELECT * INTO STRICT stored FROM embedline.model_version m WHERE m.id = version.id;
    IF stored.table_name !~ '^vector_[a-z0-9_]+_v[0-9]+$' THEN
        RAISE EXCEPTION '% is no name of a table of vectors', quote_literal(stored.table_name)
            USING ERRCODE = 'invalid_name';
    END IF;
    RETURN stored;
END
$$;

-- One physical table per model version. No index but the key: an HNSW on a loading
-- table makes writes 64 times slower: `embedline maintain` builds it when it is due.
-- Exact scans read past dead rows, so vacuum comes early.
CREATE OR REPLACE FUNCTION embedline.create_vector_table(version embedline.model_version)
RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    stored embedline.model_version := embedline.stored_version(version);
    bytes  int := stored.dims * CASE stored.storage WHEN 'halfvec' THEN 2 ELSE 4 END;
BEGIN
    EXECUTE format(
        'CREATE TABLE embedline.%I (
            key         text COLLATE "C" NOT NULL,
            unit        int NOT NULL DEFAULT 0,
            span        int4range,
            embedding   %I.%I(%s) NOT NULL,
            input_hash  bytea NOT NULL,
            run_id      bigint NOT NULL,
            embedded_at timestamptz NOT NULL DEFAULT now(),
            box         real[],
            PRIMARY KEY (key, unit)
        ) WITH (autovacuum_vacuum_scale_factor = 0.05,
                autovacuum_analyze_scale_factor = 0.05)',
        stored.table_name, 'pgvector', stored.storage, stored.dims);
    -- In line, a scan reads 2.4 times faster than through TOAST. 5,300 bytes leave room
    -- in the 8 kB page for the longest key a btree takes (2,704 bytes).
    IF bytes <= 5300 THEN
        EXECUTE format(
            'ALTER TABLE embedline.%I ALTER COLUMN embedding SET STORAGE PLAIN',
            stored.table_name);
    END IF;
    EXECUTE format(
        'COMMENT ON COLUMN embedline.%1$I.key IS ''the record''''s key as text'';
         COMMENT ON COLUMN embedline.%1$I.unit IS ''0: the whole record; else the number of its part'';
         COMMENT ON COLUMN embedline.%1$I.embedding IS ''the vector'';
         COMMENT ON COLUMN embedline.%1$I.input_hash IS ''ledger.want_hash of what it was made of'';
         COMMENT ON COLUMN embedline.%1$I.run_id IS ''the run that made it'';
         COMMENT ON COLUMN embedline.%1$I.embedded_at IS ''when it was written'';
         COMMENT ON COLUMN embedline.%1$I.span IS ''characters of the input, from 0'';
         COMMENT ON COLUMN embedline.%1$I.box IS ''xmin, ymin, xmax, ymax in pixels''',
        stored.table_name);
    EXECUTE format(
        'COMMENT ON TABLE embedline.%I IS %L', stored.table_name,
        'vectors of model version ' || stored.version || ', fingerprint ' || stored.fingerprint);
END
$$;

-- Fails where something else depends on it, a view of somebody's own.
CREATE OR REPLACE FUNCTION embedline.drop_vector_table(version embedline.model_version)
RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    stored embedline.model_version := embedline.stored_version(version);
BEGIN
    EXECUTE format('DROP TABLE IF EXISTS embedline.%I', stored.table_name);
END
$$;

REVOKE EXECUTE ON FUNCTION embedline.create_vector_table(embedline.model_version),
    embedline.drop_vector_table(embedline.model_version) FROM PUBLIC;
