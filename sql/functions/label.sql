-- seqeval's rule for B, I, E and S (its default mode), which CoNLL's script follows too.
CREATE OR REPLACE FUNCTION embedline.begins_entity(previous text, tag text)
RETURNS boolean
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT tag ~ '^[BS]-' OR coalesce(previous, 'O') = 'O' OR previous ~ '^[ES]-'
        OR regexp_replace(previous, '^[BIES]-', '') <> regexp_replace(tag, '^[BIES]-', '')
$$;

-- Null where a text is no JSON, or none that jsonb takes (a NUL, half a character).
CREATE OR REPLACE FUNCTION embedline.jsonb_or_null(value text)
RETURNS jsonb
LANGUAGE plpgsql IMMUTABLE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN value::jsonb;
EXCEPTION WHEN data_exception THEN
    RETURN NULL;
END
$$;

-- The label of a record whose words or entities are labelled, in rows. `value` has the
-- source's `label`, an array of tags or of {start, end, label} (characters from 0, the
-- end excluded), and its `words` where it gives them. Unit -1 says that the record is
-- labelled. Tags become one row for each word that is not O, or, where entities are
-- wanted and words are known, one for each entity.
CREATE OR REPLACE FUNCTION embedline.label_rows(value jsonb, entities boolean)
RETURNS TABLE (unit int, span int4range, label text)
LANGUAGE sql IMMUTABLE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
    WITH item AS (
        SELECT (n - 1)::int AS place, item, item ->> 0 AS tag, value #>> ARRAY['words', (n - 1)::text] AS word
          FROM jsonb_array_elements(CASE jsonb_typeof(value -> 'label')
                   WHEN 'array' THEN value -> 'label' ELSE '[]' END) WITH ORDINALITY AS i (item, n)
    ), tag AS (
        SELECT place, item #>> '{}' AS tag, word,
               (sum(length(word) + 1) OVER (ORDER BY place) - length(word) - 1)::int AS start
          FROM item WHERE jsonb_typeof(item) IN ('string', 'null')
    ), chunk AS (
        SELECT *, count(*) FILTER (WHERE begins) OVER (ORDER BY place) AS chunk
          FROM (SELECT *, regexp_replace(tag, '^[BIES]-', '') AS kind,
                       embedline.begins_entity(lag(tag) OVER (ORDER BY place), tag) AS begins
                  FROM tag) AS t
         WHERE tag <> 'O'
    )
    SELECT -1, NULL::int4range, 'O'
     WHERE jsonb_typeof(value -> 'label') = 'array'
    UNION ALL
    SELECT place, NULL, tag FROM tag WHERE tag <> 'O' AND NOT entities
    UNION ALL
    SELECT min(place), int4range(min(start), max(start + length(word))), min(kind)
      FROM chunk WHERE entities GROUP BY chunk HAVING count(word) = count(*)
    UNION ALL
    SELECT place, int4range((item ->> 'start')::int, (item ->> 'end')::int),
           regexp_replace(item ->> 'label', '^[BIES]-', '')
      FROM item
     WHERE jsonb_typeof(item) = 'object'
       AND regexp_replace(item ->> 'label', '^[BIES]-', '') NOT IN ('', 'O')
       AND CASE WHEN (item ->> 'start') ~ '^\d{1,9}$' AND (item ->> 'end') ~ '^\d{1,9}$'
                THEN (item ->> 'start')::int < (item ->> 'end')::int END
$$;
