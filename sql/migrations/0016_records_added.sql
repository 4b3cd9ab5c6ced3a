-- When a record came: a baseline that was frozen before is not of it.

ALTER TABLE embedline.record ADD added_at timestamptz;
ALTER TABLE embedline.record ALTER added_at SET DEFAULT now();
COMMENT ON COLUMN embedline.record.added_at IS
    'when a sync first took it; null: before version 16 of this schema';

COMMENT ON DOMAIN embedline.pgvector_is_loaded IS
    'no column is of it: a dump makes it before the functions, and with it loads pgvector, whose settings they name';
