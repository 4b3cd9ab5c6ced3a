-- Exact numbers, counted when asked: coverage, backlog, age and dead records of every
-- use case, one row per live model version. They tell of records of all tenants: who
-- sees but some of them is not shown any.
CREATE OR REPLACE VIEW embedline.status WITH (security_barrier) AS
SELECT
    u.name AS use_case,
    m.version AS model_version,
    m.state,
    l.wanted,
    l.stored,
    CASE WHEN l.wanted > 0 THEN l.stored::float8 / l.wanted ELSE 1 END AS coverage,
    l.pending,
    l.leased,
    l.retrying,
    l.dead,
    l.skipped,
    u.deletes_withheld,
    u.labels_withheld,
    now() - l.oldest_pending AS oldest_pending_age,
    c.synced_at,
    success.finished_at AS last_success,
    latest.external_id AS last_run,
    latest.kind AS last_run_kind,
    latest.state AS last_run_state,
    latest.error AS last_run_error,
    m.feature,
    l.paused,
    c.held_back,
    l.awaiting_switch
FROM embedline.use_case u
JOIN embedline.model_version m ON m.use_case = u.id AND m.state <> 'retired'
CROSS JOIN LATERAL (
    SELECT
        count(*) FILTER (WHERE want_hash IS NOT NULL) AS wanted,
        count(*) FILTER (WHERE want_hash = have_hash) AS stored,
        count(*) FILTER (WHERE pending AND dead_at IS NULL AND is_wanted) AS pending,
        count(*) FILTER (WHERE pending AND lease_until > now()) AS leased,
        count(*) FILTER (WHERE pending AND dead_at IS NULL AND attempts > 0 AND is_wanted) AS retrying,
        count(*) FILTER (WHERE dead_at IS NOT NULL) AS dead,
        count(*) FILTER (WHERE want_hash IS NULL) AS skipped,
        count(*) FILTER (WHERE pending AND dead_at IS NULL AND p.id IS NOT NULL AND a.backfill IS NULL) AS paused,
        count(*) FILTER (WHERE pending AND dead_at IS NULL AND a.backfill IS NOT NULL) AS awaiting_switch,
        min(queued_at) FILTER (WHERE pending AND dead_at IS NULL AND is_wanted) AS oldest_pending
    FROM embedline.ledger
    LEFT JOIN (SELECT id FROM embedline.run WHERE paused_at IS NOT NULL) p ON p.id = ledger.backfill
    LEFT JOIN embedline.awaiting_switch a USING (model_version, backfill)
    CROSS JOIN LATERAL (SELECT p.id IS NULL AND a.backfill IS NULL AS is_wanted) w
    WHERE model_version = m.id
) l
LEFT JOIN embedline.source_cursor c ON c.use_case = u.id AND c.relation = 'records'
LEFT JOIN LATERAL (
    SELECT finished_at FROM embedline.run
    WHERE use_case = u.id AND state = 'success' AND kind <> 'work' ORDER BY finished_at DESC LIMIT 1
) success ON true
LEFT JOIN LATERAL (
    SELECT external_id, kind, state, error FROM embedline.run
    WHERE use_case = u.id AND kind <> 'work' ORDER BY id DESC LIMIT 1
) latest ON true
JOIN embedline.my_use_case own ON own.use_case = u.id AND own.whole;

COMMENT ON VIEW embedline.status IS 'Coverage, backlog, oldest pending age and dead records of every use case';
COMMENT ON COLUMN embedline.status.wanted IS 'records of the source that should have a vector';
COMMENT ON COLUMN embedline.status.stored IS 'of these, the records whose vector is of their current input';
COMMENT ON COLUMN embedline.status.skipped IS 'records without an input (null): nothing to embed';
COMMENT ON COLUMN embedline.status.pending IS 'records waiting, those leased and those to be tried again included';
COMMENT ON COLUMN embedline.status.paused IS 'records of backfills that are paused: nobody takes them, and none is pending';
COMMENT ON COLUMN embedline.status.awaiting_switch IS
    'records that are served as they were until the fresh version beside this one takes over: nobody takes them, and none is pending';
COMMENT ON COLUMN embedline.status.held_back IS
    'what held the source''s horizon back at the last sync, so that the next one reads again what was written since';
COMMENT ON COLUMN embedline.status.use_case IS 'by name';
COMMENT ON COLUMN embedline.status.feature IS 'of a use case that declares several; else `embedding`';
COMMENT ON COLUMN embedline.status.model_version IS 'its number within the use case';
COMMENT ON COLUMN embedline.status.state IS 'building, ready or active';
COMMENT ON COLUMN embedline.status.coverage IS 'stored / wanted, 0 to 1';
COMMENT ON COLUMN embedline.status.leased IS 'of the pending ones, those a worker has in hand';
COMMENT ON COLUMN embedline.status.retrying IS 'of the pending ones, those that have failed before';
COMMENT ON COLUMN embedline.status.dead IS 'records set aside after retry.max_attempts; embedline retry --dead takes them up again';
COMMENT ON COLUMN embedline.status.deletes_withheld IS
    'records gone from the source that the delete guard keeps until they are allowed to go';
COMMENT ON COLUMN embedline.status.labels_withheld IS
    'labels gone from the source that the delete guard keeps until they are allowed to go';
COMMENT ON COLUMN embedline.status.oldest_pending_age IS 'how long the record that waits longest has waited';
COMMENT ON COLUMN embedline.status.synced_at IS 'when the source was last looked at, whole';
COMMENT ON COLUMN embedline.status.last_success IS 'when a run last ended well';
COMMENT ON COLUMN embedline.status.last_run IS 'Airflow''s id of the latest run, or that of a command';
COMMENT ON COLUMN embedline.status.last_run_kind IS 'scheduled, manual, backfill or cli';
COMMENT ON COLUMN embedline.status.last_run_state IS 'running, success or failed';
COMMENT ON COLUMN embedline.status.last_run_error IS 'why the latest run failed';
