-- Whether a run still lives.

ALTER TABLE embedline.run ADD seen_at timestamptz NOT NULL DEFAULT now();
COMMENT ON COLUMN embedline.run.seen_at IS
    'when a process of it last gave a sign of life: at the start of each stage, and every few minutes in it';
