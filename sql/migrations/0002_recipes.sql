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
