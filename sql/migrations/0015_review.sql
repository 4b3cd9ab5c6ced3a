-- What people have said of flags, and maps of the vectors.

CREATE TABLE embedline.dismissed (
    use_case     int NOT NULL REFERENCES embedline.use_case,
    feature      text NOT NULL,
    key          text COLLATE "C" NOT NULL,
    unit         int NOT NULL,
    kind         text NOT NULL,
    input_hash   bytea NOT NULL,
    labels       bytea,
    dismissed_by name NOT NULL,
    dismissed_at timestamptz NOT NULL DEFAULT now(),
    remark       text,
    PRIMARY KEY (use_case, feature, key, unit, kind)
);
COMMENT ON TABLE embedline.dismissed IS
    'flags that somebody has looked at and found nothing wrong: embedline.review leaves them out until the record or one of its labels changes';
COMMENT ON COLUMN embedline.dismissed.use_case IS 'whose record it is';
COMMENT ON COLUMN embedline.dismissed.feature IS 'of which the flag was; another model version of the same inputs has it dismissed, too';
COMMENT ON COLUMN embedline.dismissed.key IS 'the record''s';
COMMENT ON COLUMN embedline.dismissed.unit IS '0: the whole record; else the number of its part';
COMMENT ON COLUMN embedline.dismissed.kind IS 'as in flag';
COMMENT ON COLUMN embedline.dismissed.input_hash IS 'ledger.want_hash of the record then';
COMMENT ON COLUMN embedline.dismissed.labels IS 'sha256 of its labels then; null: it had none';
COMMENT ON COLUMN embedline.dismissed.dismissed_by IS 'the role';
COMMENT ON COLUMN embedline.dismissed.dismissed_at IS 'when';
COMMENT ON COLUMN embedline.dismissed.remark IS 'why, in their words';

CREATE TABLE embedline.projection (
    id            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    model_version int NOT NULL REFERENCES embedline.model_version,
    method        text NOT NULL CHECK (method IN ('pca', 'umap')),
    seed          bigint NOT NULL,
    settings      jsonb NOT NULL,
    rows          bigint NOT NULL,
    center        float8[],
    axes          float8[],
    fitted_at     timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX projection_latest ON embedline.projection (model_version, method, id DESC);
COMMENT ON TABLE embedline.projection IS 'maps of a model version''s vectors in two dimensions; one that is fitted anew is another';
COMMENT ON COLUMN embedline.projection.id IS 'the latest is the highest';
COMMENT ON COLUMN embedline.projection.model_version IS 'whose vectors they are';
COMMENT ON COLUMN embedline.projection.method IS 'pca or umap';
COMMENT ON COLUMN embedline.projection.seed IS 'of all that is drawn at random';
COMMENT ON COLUMN embedline.projection.settings IS 'sample, clusters, and what the method was told';
COMMENT ON COLUMN embedline.projection.rows IS 'it was fitted on';
COMMENT ON COLUMN embedline.projection.center IS 'pca: the mean of the vectors it was fitted on';
COMMENT ON COLUMN embedline.projection.axes IS 'pca: the two directions that x and y are along';
COMMENT ON COLUMN embedline.projection.fitted_at IS 'when';

CREATE TABLE embedline.projection_cluster (
    projection bigint NOT NULL REFERENCES embedline.projection ON DELETE CASCADE,
    cluster    int NOT NULL,
    name       text NOT NULL,
    center     float8[] NOT NULL,
    PRIMARY KEY (projection, cluster)
);
COMMENT ON TABLE embedline.projection_cluster IS 'groups of near vectors, found among the vectors themselves and not on the map';
COMMENT ON COLUMN embedline.projection_cluster.projection IS 'projection.id';
COMMENT ON COLUMN embedline.projection_cluster.cluster IS 'its number, from 0';
COMMENT ON COLUMN embedline.projection_cluster.name IS 'the words that tell it from the others; empty: no inputs are kept';
COMMENT ON COLUMN embedline.projection_cluster.center IS 'the mean of its vectors';

CREATE TABLE embedline.projection_point (
    projection bigint NOT NULL REFERENCES embedline.projection ON DELETE CASCADE,
    key        text COLLATE "C" NOT NULL,
    unit       int NOT NULL,
    x          float8 NOT NULL,
    y          float8 NOT NULL,
    placed     boolean NOT NULL,
    cluster    int,
    input_hash bytea NOT NULL,
    PRIMARY KEY (projection, key, unit)
);
COMMENT ON TABLE embedline.projection_point IS 'where each vector lies on a map; embedline.map shows it beside its record';
COMMENT ON COLUMN embedline.projection_point.projection IS 'projection.id';
COMMENT ON COLUMN embedline.projection_point.key IS 'the record''s';
COMMENT ON COLUMN embedline.projection_point.unit IS '0: the whole record; else the number of its part';
COMMENT ON COLUMN embedline.projection_point.x IS 'no unit: only distances on one map compare';
COMMENT ON COLUMN embedline.projection_point.y IS 'as x';
COMMENT ON COLUMN embedline.projection_point.placed IS 'false: the map was fitted on it; true: it was placed on it as it was';
COMMENT ON COLUMN embedline.projection_point.cluster IS 'of which projection_cluster it is';
COMMENT ON COLUMN embedline.projection_point.input_hash IS 'of the vector: one of another input is placed anew';
