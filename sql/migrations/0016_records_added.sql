-- When a record came: a baseline that was frozen before is not of it.

ALTER TABLE embedline.record ADD added_at timestamptz;
ALTER TABLE embedline.record ALTER added_at SET DEFAULT now();
COMMENT ON COLUMN embedline.record.added_at IS
    'when a sync first took it; null: before version 16 of this schema';
