-- The words of some records, as tags: predicted and labelled, null where nothing was
-- said. Words that have no vector are here by their labels; those of labels given by
-- characters are not.
CREATE OR REPLACE FUNCTION embedline.tagged_words(version embedline.model_version, keys text[])
RETURNS TABLE (key text, unit int, predicted text, labelled text)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN QUERY EXECUTE format(
        'SELECT v.key::text, v.unit, p.prediction, l.label
           FROM unnest($1) AS k (key)
           JOIN embedline.%1$I v ON v.key = k.key
           LEFT JOIN embedline.prediction p ON p.use_case = %2$s AND p.key = v.key
                 AND p.unit = v.unit AND p.model_version = %3$s
           %4$s
         UNION ALL
         SELECT l.key::text, l.unit, NULL, l.label
           FROM unnest($1) AS k (key)
           JOIN embedline.label l ON l.use_case = %2$s AND l.key = k.key AND l.unit >= 0 AND l.span IS NULL
          WHERE NOT EXISTS (SELECT FROM embedline.%1$I v WHERE v.key = l.key AND v.unit = l.unit)',
        version.table_name, version.use_case, version.id, embedline.label_of_unit(version)) USING keys;
END
$$;
COMMENT ON FUNCTION embedline.tagged_words(embedline.model_version, text[]) IS
    'The words of some records of a version of words, each with the tag that was predicted and the one that it has';

-- seqeval's strict rule: an entity is a B and what follows it of the same type (IOB2),
-- or, where classes have E or S, an S, or what is from a B to an E (IOBES).
CREATE OR REPLACE FUNCTION embedline.entities_of_words(version embedline.model_version, keys text[])
RETURNS TABLE (key text, place int4range, type text, is_label boolean)
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    WITH word AS (
        SELECT w.key, w.unit, t.is_label, left(t.tag, 1) AS prefix, substr(t.tag, 3) AS type
          FROM embedline.tagged_words(version, keys) w
         CROSS JOIN LATERAL (VALUES (false, w.predicted), (true, w.labelled)) AS t (is_label, tag)
         WHERE t.tag ~ '^[BIES]-'
    ), follower AS (
        -- of the word before it, which is of the same entity
        SELECT *, prefix IN ('I', 'E') AND lag(unit) OVER w = unit - 1 AND lag(type) OVER w = type
                  AND lag(prefix) OVER w IN ('B', 'I') AS follows
          FROM word WINDOW w AS (PARTITION BY key, is_label ORDER BY unit)
    ), chunk AS (
        SELECT *, count(*) FILTER (WHERE follows IS NOT TRUE) OVER (PARTITION BY key, is_label ORDER BY unit) AS chunk
          FROM follower
    )
    SELECT key, int4range(min(unit), max(unit) + 1), min(type), is_label
      FROM chunk
     GROUP BY key, is_label, chunk
    HAVING (array_agg(prefix ORDER BY unit))[1] IN ('B', 'S')
       AND (NOT EXISTS (SELECT FROM unnest(version.classes) AS c WHERE c ~ '^[ES]-')
            OR (array_agg(prefix ORDER BY unit DESC))[1] IN ('E', 'S'))
$$;
COMMENT ON FUNCTION embedline.entities_of_words(embedline.model_version, text[]) IS
    'The entities that the words of some records make, predicted and labelled, each with the numbers of its words';

CREATE OR REPLACE FUNCTION embedline.entities_of_spans(version embedline.model_version, keys text[])
RETURNS TABLE (key text, place int4range, type text, is_label boolean)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN QUERY EXECUTE format(
        'SELECT v.key::text, v.span, p.prediction, false
           FROM unnest($1) AS k (key)
           JOIN embedline.%1$I v ON v.key = k.key
           JOIN embedline.prediction p ON p.use_case = %2$s AND p.key = v.key
                AND p.unit = v.unit AND p.model_version = %3$s
          WHERE p.prediction <> ''O''
         UNION
         SELECT l.key::text, l.span, l.label, true
           FROM unnest($1) AS k (key)
           JOIN embedline.label l ON l.use_case = %2$s AND l.key = k.key
          WHERE l.unit >= 0 AND l.span IS NOT NULL',
        version.table_name, version.use_case, version.id) USING keys;
END
$$;
COMMENT ON FUNCTION embedline.entities_of_spans(embedline.model_version, text[]) IS
    'The entities of some records of a version of entities, predicted and labelled, each with its characters';

CREATE OR REPLACE FUNCTION embedline.entity_counts(version_id int, keys text[])
RETURNS TABLE (key text, type text, found bigint, wrong bigint, missed bigint)
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    WITH entity AS (
        SELECT e.*
          FROM embedline.model_version m
         CROSS JOIN LATERAL (
            SELECT * FROM embedline.entities_of_words(m, keys) WHERE m.unit = 'word'
            UNION ALL
            SELECT * FROM embedline.entities_of_spans(m, keys) WHERE m.unit = 'entity') AS e
         WHERE m.id = version_id
    )
    SELECT key, type, count(*) FILTER (WHERE predicted AND labelled),
           count(*) FILTER (WHERE NOT labelled), count(*) FILTER (WHERE NOT predicted)
      FROM (SELECT key, place, type, bool_or(NOT is_label) AS predicted, bool_or(is_label) AS labelled
              FROM entity GROUP BY key, place, type) AS e
     GROUP BY key, type
$$;
COMMENT ON FUNCTION embedline.entity_counts(int, text[]) IS
    'Of some records by type: entities predicted and labelled at the same place, predicted alone, and labelled alone';
