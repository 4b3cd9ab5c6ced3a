-- A version of the recipe that serves, filled beside it and put in its place.

ALTER TABLE embedline.model_version
    ADD filled_by bigint,
    ADD spares_serving boolean NOT NULL DEFAULT false;
CREATE INDEX model_version_filled_by ON embedline.model_version (filled_by) WHERE filled_by IS NOT NULL;
COMMENT ON COLUMN embedline.model_version.filled_by IS
    'the run (embedline.run) that asked for a fresh table of the recipe that served; null: it was made for a recipe';
COMMENT ON COLUMN embedline.model_version.spares_serving IS
    'the records of that run are embedded for this version alone, and served as they were till it takes over';
