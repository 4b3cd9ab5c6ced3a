-- Other ways of finding what changed, and audits of them.

ALTER TABLE embedline.source_cursor RENAME full_at TO audited_at;
ALTER TABLE embedline.source_cursor
    ADD bound timestamptz,
    ADD audit_horizon xid8,
    ADD prune_horizon xid8,
    ADD prune_at timestamptz;
COMMENT ON COLUMN embedline.source_cursor.audited_at IS
    'when everything was last looked at, changed or not: a full read or an audit';
COMMENT ON COLUMN embedline.source_cursor.audit_horizon IS 'the horizon of that look';
COMMENT ON COLUMN embedline.source_cursor.bound IS
    'strategy timestamp: every transaction that began earlier had been seen; null: not known, so all is read';
COMMENT ON COLUMN embedline.source_cursor.prune_horizon IS
    'strategy outbox: what lies below it may leave the outbox once `prune_at` is old enough';
COMMENT ON COLUMN embedline.source_cursor.prune_at IS 'when `prune_horizon` was taken';
