-- Which inputs were longer than the model takes.

ALTER TABLE embedline.input ADD truncated boolean;
COMMENT ON COLUMN embedline.input.truncated IS
    'whether it was longer than the model takes, and was cut: encoder.max_length; null: not known, or of an encoder that cuts nothing. With storage.data: none only those that were cut have a row';
