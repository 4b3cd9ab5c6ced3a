-- Several kinds of vectors of a record, and vectors of parts of it: words, entities,
-- objects in an image.

ALTER TABLE embedline.use_case
    ADD features text[] NOT NULL DEFAULT '{embedding}',
    DROP view_definition;
COMMENT ON COLUMN embedline.use_case.features IS 'as the use case declares them, the first one first';

ALTER TABLE embedline.model_version
    ADD feature text NOT NULL DEFAULT 'embedding',
    ADD unit text NOT NULL DEFAULT 'record'
        CHECK (unit IN ('record', 'word', 'entity', 'object'));
COMMENT ON COLUMN embedline.model_version.unit IS 'what one vector stands for';
DROP INDEX embedline.model_version_one_active, embedline.model_version_one_building;
CREATE UNIQUE INDEX model_version_one_active ON embedline.model_version (use_case, feature)
    WHERE state = 'active';
CREATE UNIQUE INDEX model_version_one_building ON embedline.model_version (use_case, feature)
    WHERE state IN ('building', 'ready');

UPDATE embedline.model_version
    SET spec = jsonb_set(spec, '{encoder,type}', '"text"') || '{"template": null}';
ALTER TABLE embedline.use_case
    ADD labelled_unit text NOT NULL DEFAULT 'record'
        CHECK (labelled_unit IN ('record', 'word', 'entity'));
COMMENT ON COLUMN embedline.use_case.labelled_unit IS
    'what a label belongs to: what the vectors of the first feature stand for';

-- The views in the schema `embeddings`, each with the text it was made of.
CREATE TABLE embedline.view (
    name       text PRIMARY KEY,
    use_case   int NOT NULL REFERENCES embedline.use_case,
    definition text NOT NULL
);

ALTER TABLE embedline.label ADD span int4range;
COMMENT ON COLUMN embedline.label.unit IS
    'whole records: 0. Words and entities: the number of a labelled word, or of a labelled entity '
    'where `span` has its characters; -1 says that the record is labelled, if only with O';

ALTER TABLE embedline.input
    ALTER data DROP NOT NULL,
    ADD unknown_words real;
COMMENT ON COLUMN embedline.input.unknown_words IS
    'share of the words that the encoder has no vector for';

-- These are made anew with other parameters.
DROP FUNCTION IF EXISTS embedline.refresh_view(int, boolean), embedline.active_version(text),
    embeddings.nearest(text, vector, int), embeddings.neighbors(text, text, int, int);
ALTER TYPE embedline.neighbor ADD ATTRIBUTE text text;

DO $$
DECLARE
    vectors text;
BEGIN
    FOR vectors IN SELECT m.table_name FROM embedline.model_version m
        WHERE to_regclass(format('embedline.%I', m.table_name)) IS NOT NULL
    LOOP
        EXECUTE format('ALTER TABLE embedline.%I ADD box real[]', vectors);
    END LOOP;
END
$$;

-- Models trained on a use case's own rows: an autoencoder, the discriminator of a GAN.
CREATE TABLE embedline.trained_model (
    id       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    use_case int NOT NULL REFERENCES embedline.use_case,
    feature  text NOT NULL,
    kind     text NOT NULL,
    settings jsonb NOT NULL,
    seed     bigint NOT NULL,
    rows     int NOT NULL,
    columns  text[] NOT NULL,
    epoch    int NOT NULL,
    losses   jsonb NOT NULL,
    baseline float8,
    seconds  float8 NOT NULL,
    digest   text NOT NULL,
    weights  bytea NOT NULL,
    run_id   bigint REFERENCES embedline.run,
    made_at  timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX trained_model_feature ON embedline.trained_model (use_case, feature, id DESC);
CREATE INDEX trained_model_digest ON embedline.trained_model (digest);
-- weights hardly compress
ALTER TABLE embedline.trained_model ALTER weights SET STORAGE EXTERNAL;
COMMENT ON COLUMN embedline.trained_model.settings IS
    'all that shapes the training but the rows: the latest model of the same settings makes the vectors';
COMMENT ON COLUMN embedline.trained_model.epoch IS 'the one whose weights were kept';
COMMENT ON COLUMN embedline.trained_model.losses IS 'one object per epoch, with `training` and `validation`';
COMMENT ON COLUMN embedline.trained_model.baseline IS
    'validation loss of an autoencoder that answers every row with the mean of the training rows';
COMMENT ON COLUMN embedline.trained_model.digest IS 'sha256 of the weights';
COMMENT ON COLUMN embedline.trained_model.weights IS
    'safetensors, with all else that an encoder needs (columns, means, categories) as JSON in its metadata';
