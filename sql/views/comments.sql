-- What tables and types hold, where the migration that made them does not say.

COMMENT ON TYPE embedline.neighbor IS 'A row of what the search functions of the schema `embeddings` return';
COMMENT ON COLUMN embedline.neighbor.key IS 'the record''s key as text; of several columns, a JSON list of texts';
COMMENT ON COLUMN embedline.neighbor.unit IS '0: the whole record; else the number of its word, entity or object';
COMMENT ON COLUMN embedline.neighbor.distance IS 'in the distance of the use case; inner_product: negated';
COMMENT ON COLUMN embedline.neighbor.prediction IS 'what the model said of it';
COMMENT ON COLUMN embedline.neighbor.score IS 'how sure the model was';
COMMENT ON COLUMN embedline.neighbor.label IS 'what is true of it, as far as somebody has said';
COMMENT ON COLUMN embedline.neighbor.data IS 'the input when its vector was made, as much as storage.data keeps';
COMMENT ON COLUMN embedline.neighbor.event_time IS 'when the record happened';
COMMENT ON COLUMN embedline.neighbor.text IS 'of words and entities: the characters of the input that it is';

COMMENT ON TYPE embedline.found IS 'What a search has found, in arrays of one length';
COMMENT ON COLUMN embedline.found.keys IS 'of the records';
COMMENT ON COLUMN embedline.found.units IS 'of their parts';
COMMENT ON COLUMN embedline.found.distances IS 'from the query';
COMMENT ON COLUMN embedline.found.exhausted IS 'true: the index had given up before k were found';

COMMENT ON TYPE embedline.choice IS 'How a search chooses its way';
COMMENT ON COLUMN embedline.choice.exact IS 'all that match are compared, without an index';
COMMENT ON COLUMN embedline.choice.vectors IS 'there are in the table, about';
COMMENT ON COLUMN embedline.choice.index IS 'the HNSW index of the version''s distance; null: none is valid';
COMMENT ON COLUMN embedline.choice.exact_up_to IS 'so many matches are compared one by one; the index is read for more';
COMMENT ON COLUMN embedline.choice.matches IS 'of the filter, counted up to one more than that';
COMMENT ON COLUMN embedline.choice.max_scan_tuples IS 'vectors that the index may look at before it gives up';

COMMENT ON TABLE embedline.migration IS 'The files of sql/ as they were put into this store';
COMMENT ON COLUMN embedline.migration.name IS 'folder and file';
COMMENT ON COLUMN embedline.migration.digest IS 'sha256 of its text';
COMMENT ON COLUMN embedline.migration.applied_at IS 'when it was last put in';

COMMENT ON TABLE embedline.use_case IS 'What is embedded: one row for each file of use_cases/ that has run';
COMMENT ON COLUMN embedline.use_case.id IS 'other tables name it so';
COMMENT ON COLUMN embedline.use_case.name IS 'as its file has it, and its view';
COMMENT ON COLUMN embedline.use_case.created_at IS 'when it was first run';

COMMENT ON TABLE embedline.model_version IS
    'Every recipe by which vectors of a use case''s feature were made, each with a table of its own';
COMMENT ON COLUMN embedline.model_version.id IS 'other tables name it so';
COMMENT ON COLUMN embedline.model_version.use_case IS 'whose it is';
COMMENT ON COLUMN embedline.model_version.feature IS 'which of its inputs; `embedding` where it has but one';
COMMENT ON COLUMN embedline.model_version.version IS 'its number within the use case, as people say it';
COMMENT ON COLUMN embedline.model_version.spec IS 'the recipe itself: encoder, pooling, layers, inputs, weights';
COMMENT ON COLUMN embedline.model_version.dims IS 'numbers in a vector';
COMMENT ON COLUMN embedline.model_version.storage IS 'pgvector''s type: vector has 4 bytes a number, halfvec 2';
COMMENT ON COLUMN embedline.model_version.distance IS 'by which its vectors are compared';
COMMENT ON COLUMN embedline.model_version.classes IS 'of the model''s own predictions, in the order of their probabilities';
COMMENT ON COLUMN embedline.model_version.table_name IS 'where its vectors are, in the schema `embedline`';
COMMENT ON COLUMN embedline.model_version.state IS
    'building: not complete; ready: waits to be promoted; active: its view shows it; retired: kept for a rollback';
COMMENT ON COLUMN embedline.model_version.created_at IS 'when its building began';
COMMENT ON COLUMN embedline.model_version.ready_at IS 'when it was complete';
COMMENT ON COLUMN embedline.model_version.activated_at IS 'when it began to serve';
COMMENT ON COLUMN embedline.model_version.retired_at IS 'when another took its place';

COMMENT ON TABLE embedline.run IS 'Every run: what asked for it, what it found and did, how it ended';
COMMENT ON COLUMN embedline.run.id IS 'vectors and records of the ledger name it so';
COMMENT ON COLUMN embedline.run.use_case IS 'whose it is';
COMMENT ON COLUMN embedline.run.external_id IS 'Airflow''s run id, or that of a command';
COMMENT ON COLUMN embedline.run.since IS 'of a window: event times from';
COMMENT ON COLUMN embedline.run.until IS 'of a window: event times before';
COMMENT ON COLUMN embedline.run.reembed IS 'vectors that were there were made anew';
COMMENT ON COLUMN embedline.run.state IS 'running, success or failed';
COMMENT ON COLUMN embedline.run.error IS 'why it failed';
COMMENT ON COLUMN embedline.run.started_at IS 'when its first stage began';
COMMENT ON COLUMN embedline.run.finished_at IS 'when it succeeded, or last failed';
COMMENT ON COLUMN embedline.run.new IS 'records the sync saw for the first time';
COMMENT ON COLUMN embedline.run.changed IS 'records whose input the sync found changed';
COMMENT ON COLUMN embedline.run.deleted IS 'records that had left the source, and so the store';
COMMENT ON COLUMN embedline.run.vectors IS 'stored, for the records embedded';
COMMENT ON COLUMN embedline.run.failed IS 'records that could not be embedded, to be tried again or dead';

COMMENT ON TABLE embedline.source_cursor IS 'How far the last complete look at a relation of the source reached';
COMMENT ON COLUMN embedline.source_cursor.use_case IS 'whose it is';
COMMENT ON COLUMN embedline.source_cursor.relation IS 'records, or labels of a table of their own';
COMMENT ON COLUMN embedline.source_cursor.definition IS
    'what was read, and how: where the file says another, everything is read again';
COMMENT ON COLUMN embedline.source_cursor.synced_at IS 'when that look was';

COMMENT ON TABLE embedline.ledger IS
    'What is wanted, what is stored, who holds it, what is dead: one row per record and live model version';
COMMENT ON COLUMN embedline.ledger.model_version IS 'model_version.id';
COMMENT ON COLUMN embedline.ledger.key IS 'the record''s key as text; of several columns, a JSON list of texts';
COMMENT ON COLUMN embedline.ledger.pending IS 'its vectors are not of the input that is wanted';
COMMENT ON COLUMN embedline.ledger.queued_at IS 'since when it is wanted';
COMMENT ON COLUMN embedline.ledger.attempts IS 'how often it has failed since it last changed';
COMMENT ON COLUMN embedline.ledger.next_attempt_at IS 'nobody takes it before';
COMMENT ON COLUMN embedline.ledger.lease_token IS 'of the lease it is part of; what is written must show it';
COMMENT ON COLUMN embedline.ledger.lease_holder IS 'the run and the worker that have it in hand';
COMMENT ON COLUMN embedline.ledger.lease_until IS 'free for others then, unless the lease is renewed';
COMMENT ON COLUMN embedline.ledger.dead_at IS 'when it was set aside, after its last attempt; embedline retry --dead takes it up';
COMMENT ON COLUMN embedline.ledger.error IS 'why it last failed';

COMMENT ON TABLE embedline.record IS 'What is known of a record beside its input, whichever model embeds it';
COMMENT ON COLUMN embedline.record.use_case IS 'whose it is';
COMMENT ON COLUMN embedline.record.key IS 'the record''s key as text; of several columns, a JSON list of texts';
COMMENT ON COLUMN embedline.record.event_time IS 'when it happened: source.event_time';
COMMENT ON COLUMN embedline.record.environment IS 'training, production and so on: source.environment';
COMMENT ON COLUMN embedline.record.link IS 'where a person can see it: source.link';
COMMENT ON COLUMN embedline.record.tags IS 'columns to filter by: source.tags';
COMMENT ON COLUMN embedline.record.tenant IS 'whose it is: source.tenant';

COMMENT ON COLUMN embedline.input.model_version IS 'model_version.id: two versions may be made of different columns';
COMMENT ON COLUMN embedline.input.key IS 'the record''s';
COMMENT ON COLUMN embedline.input.data IS 'the text, cut as storage.data says; null: nothing is kept';

COMMENT ON TABLE embedline.prediction IS 'What a model said of a record or a part of it';
COMMENT ON COLUMN embedline.prediction.use_case IS 'whose it is';
COMMENT ON COLUMN embedline.prediction.key IS 'the record''s';
COMMENT ON COLUMN embedline.prediction.unit IS '0: the whole record; else the number of its word, entity or object';
COMMENT ON COLUMN embedline.prediction.model_version IS
    'model_version.id, whose head made it; 0: it comes from a column of the source';
COMMENT ON COLUMN embedline.prediction.prediction IS 'the class';
COMMENT ON COLUMN embedline.prediction.score IS 'how sure the model was';
COMMENT ON COLUMN embedline.prediction.predicted_at IS 'when it was written';

COMMENT ON TABLE embedline.label IS 'What is true of a record or a part of it, as far as somebody has said';
COMMENT ON COLUMN embedline.label.use_case IS 'whose it is';
COMMENT ON COLUMN embedline.label.key IS 'the record''s';
COMMENT ON COLUMN embedline.label.label IS 'the class';
COMMENT ON COLUMN embedline.label.span IS 'characters of the input, from 0, of a labelled entity';

COMMENT ON TABLE embedline.view IS 'The views of the schema `embeddings` that Embedline keeps';
COMMENT ON COLUMN embedline.view.name IS 'in the schema `embeddings`';
COMMENT ON COLUMN embedline.view.use_case IS 'whose it is';
COMMENT ON COLUMN embedline.view.definition IS 'the text it was made of';

COMMENT ON TABLE embedline.trained_model IS
    'Models trained on a use case''s own rows: an autoencoder, the discriminator of a GAN';
COMMENT ON COLUMN embedline.trained_model.id IS 'the latest is the highest';
COMMENT ON COLUMN embedline.trained_model.use_case IS 'on whose rows';
COMMENT ON COLUMN embedline.trained_model.feature IS 'for which feature';
COMMENT ON COLUMN embedline.trained_model.kind IS 'autoencoder or gan';
COMMENT ON COLUMN embedline.trained_model.seed IS 'of all that is drawn at random';
COMMENT ON COLUMN embedline.trained_model.rows IS 'it was trained on';
COMMENT ON COLUMN embedline.trained_model.columns IS 'of the source that it reads';
COMMENT ON COLUMN embedline.trained_model.seconds IS 'that the training took';
COMMENT ON COLUMN embedline.trained_model.run_id IS 'the run that asked for it; null: none is kept';
COMMENT ON COLUMN embedline.trained_model.made_at IS 'when it was trained';

COMMENT ON COLUMN embedline.forgotten.use_case IS 'whose record it was';
COMMENT ON COLUMN embedline.forgotten.forgotten_at IS 'when it was erased';

COMMENT ON COLUMN embedline.vector_index.id IS 'the latest is the highest';
COMMENT ON COLUMN embedline.vector_index.model_version IS 'model_version.id';
COMMENT ON COLUMN embedline.vector_index.name IS 'of the index, in the schema `embedline`';
COMMENT ON COLUMN embedline.vector_index.method IS 'hnsw, or what somebody made by hand';
COMMENT ON COLUMN embedline.vector_index.parameters IS 'it was made with';
COMMENT ON COLUMN embedline.vector_index.seconds IS 'that the work took; null: it was only measured';
COMMENT ON COLUMN embedline.vector_index.k IS 'of the searches that measured its recall';
COMMENT ON COLUMN embedline.vector_index.ef_search IS 'of the searches that measured its recall';
COMMENT ON COLUMN embedline.vector_index.recorded_at IS 'when the work was done';

COMMENT ON COLUMN embedline.role.kind IS 'owner, writer or reader';
COMMENT ON COLUMN embedline.role.name IS 'of the role in this server';

COMMENT ON COLUMN embedline.tenant_reader.role IS 'by name, as a store can be restored where the role is not there yet';
