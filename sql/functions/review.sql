-- The vectors of a version that have a label.
CREATE OR REPLACE FUNCTION embedline.labelled(version embedline.model_version)
RETURNS TABLE (key text, unit int, label text)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN QUERY EXECUTE 'SELECT v.key, v.unit, l.label ' || embedline.selection(version, '{"labelled": true}');
END
$$;
COMMENT ON FUNCTION embedline.labelled(embedline.model_version) IS
    'Every vector of a model version that has a label, with it: of a word or an entity its own, of an object the record''s';

CREATE OR REPLACE FUNCTION embedline.dismiss(
    use_case text, key text, kind text, unit int DEFAULT 0, feature text DEFAULT NULL, remark text DEFAULT NULL)
RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_variable
DECLARE
    version embedline.model_version := embedline.asked(use_case, feature);
BEGIN
    INSERT INTO embedline.dismissed AS d
           (use_case, feature, key, unit, kind, input_hash, labels, dismissed_by, remark)
    SELECT version.use_case, version.feature, f.key, f.unit, f.kind, l.want_hash,
           (SELECT g.digest FROM embedline.labels_digest g WHERE g.use_case = version.use_case AND g.key = f.key),
           embedline.asker(), remark
      FROM embedline.flag f
      JOIN embedline.ledger l ON l.model_version = f.model_version AND l.key = f.key AND l.want_hash IS NOT NULL
     WHERE f.model_version = version.id AND f.key = dismiss.key AND f.unit = dismiss.unit AND f.kind = dismiss.kind
    ON CONFLICT ON CONSTRAINT dismissed_pkey DO UPDATE
       SET input_hash = EXCLUDED.input_hash, labels = EXCLUDED.labels, dismissed_by = EXCLUDED.dismissed_by,
           dismissed_at = now(), remark = EXCLUDED.remark;
    RETURN FOUND;
END
$$;
COMMENT ON FUNCTION embedline.dismiss(text, text, text, int, text, text) IS
    'Says of a flag of the serving version that there is nothing wrong: embedline.review leaves it out until the record '
    'or one of its labels changes. False where there is no such flag. To take it back: DELETE FROM embedline.dismissed';
