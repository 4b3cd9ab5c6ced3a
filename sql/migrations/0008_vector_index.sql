-- The indexes of the vector tables: what each cost, and how well it finds.

CREATE TABLE embedline.vector_index (
    id              bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    model_version   int NOT NULL REFERENCES embedline.model_version,
    name            text NOT NULL,
    work            text NOT NULL CHECK (work IN ('build', 'reindex', 'measure')),
    method          text NOT NULL,
    parameters      jsonb NOT NULL DEFAULT '{}',
    rows            bigint NOT NULL,
    bytes           bigint NOT NULL,
    memory          bigint,
    seconds         float8,
    recall          float8,
    k               int,
    ef_search       int,
    queries         int,
    recorded_at     timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX vector_index_latest ON embedline.vector_index (model_version, name, id);
COMMENT ON TABLE embedline.vector_index IS
    'every build, rebuild and measurement of an index of a vector table, the latest last';
COMMENT ON COLUMN embedline.vector_index.work IS
    'measure: the index was there already, made by hand or by a build whose end nobody saw';
COMMENT ON COLUMN embedline.vector_index.rows IS 'vectors in the table then';
COMMENT ON COLUMN embedline.vector_index.bytes IS 'size of the index then';
COMMENT ON COLUMN embedline.vector_index.memory IS 'maintenance_work_mem of the build, in bytes';
COMMENT ON COLUMN embedline.vector_index.recall IS
    'share of the k exact nearest neighbours of stored vectors, each itself left out, that a search through the index found';
COMMENT ON COLUMN embedline.vector_index.queries IS 'stored vectors that were asked for, drawn at random';

-- Exact scans read past dead rows, and their vacuum costs little: vacuum early.
DO $$
DECLARE
    version embedline.model_version;
BEGIN
    FOR version IN SELECT * FROM embedline.model_version m
        WHERE to_regclass(format('embedline.%I', m.table_name)) IS NOT NULL
    LOOP
        EXECUTE format(
            'ALTER TABLE embedline.%I SET (autovacuum_vacuum_scale_factor = 0.05,
                                           autovacuum_analyze_scale_factor = 0.05)',
            version.table_name);
    END LOOP;
END
$$;
