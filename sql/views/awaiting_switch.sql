CREATE OR REPLACE VIEW embedline.awaiting_switch AS
SELECT serving.id AS model_version, beside.filled_by AS backfill
FROM embedline.model_version beside
JOIN embedline.model_version serving USING (use_case, feature)
WHERE beside.spares_serving AND beside.state IN ('building', 'ready') AND serving.state = 'active';

COMMENT ON VIEW embedline.awaiting_switch IS
    'Which backfill''s records a serving version leaves to the fresh one beside it, and serves as they were till that takes over';
COMMENT ON COLUMN embedline.awaiting_switch.model_version IS 'the one that serves';
COMMENT ON COLUMN embedline.awaiting_switch.backfill IS 'the run that fills the other (model_version.filled_by)';
