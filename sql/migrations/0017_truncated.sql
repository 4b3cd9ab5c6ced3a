-- Which inputs were longer than the model takes.

ALTER TABLE embedline.input ADD truncated boolean;
COMMENT ON COLUMN embedline.input.truncated IS
    'whether it was longer than the model takes, encoder.max_length, and was cut; null: not known, or of an encoder that cuts nothing. Where nothing else is kept (storage.data: none), what was not cut has no row';
