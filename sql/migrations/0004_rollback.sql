-- Retired versions: rolled back, taken up again, dropped.

ALTER TABLE embedline.model_version
    ADD rolled_back_at timestamptz,
    ADD dropped_at timestamptz,
    ADD kept jsonb;
COMMENT ON COLUMN embedline.model_version.rolled_back_at IS
    'taken out of service by a rollback: not built again until that is undone or the use case describes another recipe';
COMMENT ON COLUMN embedline.model_version.dropped_at IS
    'when its table, predictions and inputs were dropped; null: they are there';
COMMENT ON COLUMN embedline.model_version.kept IS
    'retired: storage.data as it was then, by which its inputs were kept';

ALTER TABLE embedline.run ADD models_missing jsonb NOT NULL DEFAULT '{}';
COMMENT ON COLUMN embedline.run.models_missing IS
    'by feature, why the sync found no model for it: its serving version was followed, no other was built';

-- It is made anew with another parameter.
DROP FUNCTION IF EXISTS embeddings.nearest(text, vector, int, text);
