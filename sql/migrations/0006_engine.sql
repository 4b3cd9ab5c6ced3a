-- Where a run's time went, and what made its vectors.

ALTER TABLE embedline.run
    ADD stages jsonb NOT NULL DEFAULT '{}',
    ADD encoder jsonb NOT NULL DEFAULT '{}';
COMMENT ON COLUMN embedline.run.stages IS
    'seconds that the lanes of its workers spent on each stage (claim, read, wait, encode, write), and `wall`: the workers'' own; lanes overlap, so the stages may add up to more';
COMMENT ON COLUMN embedline.run.encoder IS
    'by number of the model version, what its vectors were made with: device, dtype';
COMMENT ON COLUMN embedline.run.embed_seconds IS
    'seconds in which workers were reading, embedding or writing records, waiting and loading the model apart; what overlaps is counted once';
