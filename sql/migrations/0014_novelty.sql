-- Rows that somebody should look at.

CREATE TABLE embedline.flag (
    model_version int NOT NULL REFERENCES embedline.model_version,
    key           text COLLATE "C" NOT NULL,
    unit          int NOT NULL,
    kind          text NOT NULL,
    day           date NOT NULL,
    score         float8 NOT NULL,
    cluster       int,
    detail        jsonb NOT NULL DEFAULT '{}',
    found_at      timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (model_version, key, unit, kind)
);
COMMENT ON TABLE embedline.flag IS 'rows that monitoring has found something about; embedline.review shows them';
COMMENT ON COLUMN embedline.flag.model_version IS 'whose vector, prediction or input it is about';
COMMENT ON COLUMN embedline.flag.key IS 'the record''s';
COMMENT ON COLUMN embedline.flag.unit IS '0: the whole record; else the number of its part';
COMMENT ON COLUMN embedline.flag.kind IS 'what was found';
COMMENT ON COLUMN embedline.flag.day IS 'of the record, UTC';
COMMENT ON COLUMN embedline.flag.score IS 'larger: look at it first';
COMMENT ON COLUMN embedline.flag.cluster IS 'the group of rows it was found with; null: none';
COMMENT ON COLUMN embedline.flag.detail IS 'why';
COMMENT ON COLUMN embedline.flag.found_at IS 'when it was first found';
