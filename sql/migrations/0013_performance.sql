-- Predictions beside their labels, counted by day, so that the performance of any window
-- of days is known without reading a row again.

CREATE TABLE embedline.outcome_day (
    model_version int NOT NULL REFERENCES embedline.model_version,
    day           date NOT NULL,
    rows          bigint NOT NULL,
    digest        numeric NOT NULL,
    counted_at    timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (model_version, day)
);
COMMENT ON TABLE embedline.outcome_day IS
    'the days whose predictions and labels are counted in embedline.outcome or embedline.entity_outcome: a day of another digest is counted anew';
COMMENT ON COLUMN embedline.outcome_day.model_version IS 'whose predictions they are';
COMMENT ON COLUMN embedline.outcome_day.day IS 'UTC; of the record''s event time, else of its prediction; never of its label';
COMMENT ON COLUMN embedline.outcome_day.rows IS 'predictions of this day; of words and entities, records';
COMMENT ON COLUMN embedline.outcome_day.digest IS 'sum of a hash of all that the counts depend on';
COMMENT ON COLUMN embedline.outcome_day.counted_at IS 'when it was last counted';

CREATE TABLE embedline.outcome (
    model_version int NOT NULL,
    day           date NOT NULL,
    environment   text COLLATE "C" NOT NULL,
    tag           text COLLATE "C" NOT NULL,
    value         text COLLATE "C" NOT NULL,
    class         text COLLATE "C" NOT NULL,
    label         text COLLATE "C",
    bin           smallint NOT NULL,
    rows          bigint NOT NULL,
    score         float8 NOT NULL,
    losses        bigint NOT NULL,
    loss          float8 NOT NULL,
    loss_square   float8 NOT NULL,
    lag           float8 NOT NULL,
    FOREIGN KEY (model_version, day) REFERENCES embedline.outcome_day ON DELETE CASCADE
);
CREATE INDEX outcome_of_day ON embedline.outcome (model_version, day, tag, value);
COMMENT ON TABLE embedline.outcome IS
    'counts of predictions of whole records by what was predicted, what is true of them and how sure the model was';
COMMENT ON COLUMN embedline.outcome.model_version IS 'whose predictions they are';
COMMENT ON COLUMN embedline.outcome.day IS 'as of embedline.outcome_day';
COMMENT ON COLUMN embedline.outcome.environment IS 'of the record; empty: it has none';
COMMENT ON COLUMN embedline.outcome.tag IS 'empty: all records; else those that have this tag';
COMMENT ON COLUMN embedline.outcome.value IS 'of the tag';
COMMENT ON COLUMN embedline.outcome.class IS 'predicted';
COMMENT ON COLUMN embedline.outcome.label IS 'null: there is none yet';
COMMENT ON COLUMN embedline.outcome.bin IS 'of the score: n is from n / 20 on; -1: there is no score, or none from 0 to 1';
COMMENT ON COLUMN embedline.outcome.rows IS 'predictions';
COMMENT ON COLUMN embedline.outcome.score IS 'sum of their scores; 0 in bin -1';
COMMENT ON COLUMN embedline.outcome.losses IS 'predictions that have a log loss: a label and its probability are known';
COMMENT ON COLUMN embedline.outcome.loss IS 'sum of those log losses: -ln of the probability of the label';
COMMENT ON COLUMN embedline.outcome.loss_square IS 'sum of their squares';
COMMENT ON COLUMN embedline.outcome.lag IS
    'sum of seconds from the record''s event time, else its prediction, to its label''s time, else its arrival';

CREATE TABLE embedline.entity_outcome (
    model_version int NOT NULL,
    day           date NOT NULL,
    environment   text COLLATE "C" NOT NULL,
    tag           text COLLATE "C" NOT NULL,
    value         text COLLATE "C" NOT NULL,
    type          text COLLATE "C" NOT NULL,
    records       bigint NOT NULL,
    labelled      bigint NOT NULL,
    lag           float8 NOT NULL,
    found         bigint NOT NULL,
    wrong         bigint NOT NULL,
    missed        bigint NOT NULL,
    PRIMARY KEY (model_version, day, environment, tag, value, type),
    FOREIGN KEY (model_version, day) REFERENCES embedline.outcome_day ON DELETE CASCADE
);
COMMENT ON TABLE embedline.entity_outcome IS
    'counts of entities by type, and, where the type is empty, of the records they are in';
COMMENT ON COLUMN embedline.entity_outcome.model_version IS 'whose predictions they are';
COMMENT ON COLUMN embedline.entity_outcome.day IS 'as of embedline.outcome_day';
COMMENT ON COLUMN embedline.entity_outcome.environment IS 'of the record; empty: it has none';
COMMENT ON COLUMN embedline.entity_outcome.tag IS 'empty: all records; else those that have this tag';
COMMENT ON COLUMN embedline.entity_outcome.value IS 'of the tag';
COMMENT ON COLUMN embedline.entity_outcome.type IS 'of entities; empty: the row counts records';
COMMENT ON COLUMN embedline.entity_outcome.records IS 'that have a prediction of any word or entity';
COMMENT ON COLUMN embedline.entity_outcome.labelled IS 'of them';
COMMENT ON COLUMN embedline.entity_outcome.lag IS 'of those: sum of seconds till the label, as in embedline.outcome';
COMMENT ON COLUMN embedline.entity_outcome.found IS 'entities predicted and labelled, of the same place and type';
COMMENT ON COLUMN embedline.entity_outcome.wrong IS 'predicted, and not labelled so';
COMMENT ON COLUMN embedline.entity_outcome.missed IS 'labelled, and not predicted so';
