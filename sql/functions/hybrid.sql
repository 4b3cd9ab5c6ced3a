-- The words of a text. Its first 50,000 characters, so that whatever they are they fit
-- into a tsvector (1 MB), and an index over this never makes a write fail.
CREATE OR REPLACE FUNCTION embeddings.words(language regconfig, data text)
RETURNS tsvector
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN to_tsvector(language, left(data, 50000));
COMMENT ON FUNCTION embeddings.words(regconfig, text) IS
    'The words of a text''s first 50,000 characters, by a text search configuration (\dF), as embeddings.hybrid looks '
    'for them; for an index, see docs/sql.md, "Hybrid search"';

-- The vectors of the records that match words, with the rank of each: the best is 1, and
-- the parts of a record have the same.
CREATE OR REPLACE FUNCTION embedline.matching(
    version embedline.model_version, query_text text, language regconfig, k bigint, filter jsonb,
    OUT keys text[], OUT units int[], OUT ranks bigint[])
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
SET jit = off
AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM embedline.input i WHERE i.model_version = version.id AND i.data IS NOT NULL) THEN
        RAISE EXCEPTION 'use case % keeps no text to search in',
            quote_literal((SELECT name FROM embedline.use_case WHERE id = version.use_case))
            USING ERRCODE = 'undefined_object',
                  HINT = 'storage.data: all, in its file, keeps what is embedded from then on; embeddings.nearest '
                         'searches by the vector alone';
    END IF;
    -- literals, as the predicate and the expression of an index have them
    EXECUTE format(
        'WITH matched AS MATERIALIZED (
            SELECT i.key, ts_rank_cd(embeddings.words(%1$L::regconfig, i.data), q.query, 1) AS likeness
              FROM embedline.input i, (SELECT websearch_to_tsquery(%1$L::regconfig, $1) AS query OFFSET 0) q
             WHERE i.model_version = %2$s
               AND embeddings.words(%1$L::regconfig, i.data) @@ websearch_to_tsquery(%1$L::regconfig, $1))
         SELECT array_agg(key), array_agg(unit), array_agg(rank)
           FROM (SELECT s.key, s.unit, dense_rank() OVER (ORDER BY m.likeness DESC, m.key) AS rank
                   FROM matched m JOIN (SELECT v.key, v.unit %3$s) s ON s.key = m.key) r
          WHERE rank <= $2',
        language::regconfig, version.id,
        coalesce(embedline.selection(version, filter), embedline.everything(version)))
       INTO keys, units, ranks USING query_text, k;
END
$$;

CREATE OR REPLACE FUNCTION embeddings.hybrid(
    use_case text, query_text text, query pgvector.vector, k int DEFAULT 10, language regconfig DEFAULT 'simple',
    text_weight float8 DEFAULT 1, vector_weight float8 DEFAULT 1, rrf_k int DEFAULT 60,
    candidates int DEFAULT NULL, feature text DEFAULT NULL, model_version int DEFAULT NULL,
    filter jsonb DEFAULT NULL, ef_search int DEFAULT NULL)
RETURNS TABLE (
    key text, unit int, fused float8, vector_rank bigint, text_rank bigint, distance float8,
    prediction text, score float8, label text, data text, event_time timestamptz, text text)
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    version embedline.model_version := embedline.asked(use_case, feature, model_version);
    pool    bigint;
    near    embedline.found;
    matched record;
BEGIN
    IF query IS NULL OR query_text IS NULL OR k IS NULL OR language IS NULL THEN
        RETURN;
    END IF;
    k := embedline.require_between('k', k, 1, NULL);
    rrf_k := embedline.require_between('rrf_k', coalesce(rrf_k, 60), 0, NULL);
    text_weight := embedline.require_between('text_weight', coalesce(text_weight, 1), 0, 1e9);
    vector_weight := embedline.require_between('vector_weight', coalesce(vector_weight, 1), 0, 1e9);
    candidates := embedline.require_between('candidates', candidates, 1, NULL);
    pool := greatest(k, coalesce(candidates, greatest(40, 2 * k::bigint)));
    near := embedline.search(version, query, pool, filter, ef_search);
    matched := embedline.matching(version, query_text, language, pool, filter);
    RETURN QUERY
        WITH by_vector AS (
            SELECT n.key, n.unit, row_number() OVER (ORDER BY n.distance, n.key, n.unit) AS rank
              FROM unnest(near.keys, near.units, near.distances) n (key, unit, distance)
        ), best AS MATERIALIZED (
            SELECT key, unit, v.rank AS vector_rank, t.rank AS text_rank,
                   coalesce(vector_weight / (rrf_k + v.rank), 0)
                   + coalesce(text_weight / (rrf_k + t.rank), 0) AS fused
              FROM by_vector v
              FULL JOIN unnest(matched.keys, matched.units, matched.ranks) t (key, unit, rank) USING (key, unit)
             ORDER BY fused DESC, v.rank, t.rank, key, unit LIMIT k
        )
        SELECT b.key, b.unit, b.fused, b.vector_rank, b.text_rank, c.distance, c.prediction, c.score, c.label,
               c.data, c.event_time, c.text
          FROM best b
          JOIN embedline.company(version, embedline.measured(version, query,
               (SELECT array_agg(key ORDER BY key, unit) FROM best),
               (SELECT array_agg(unit ORDER BY key, unit) FROM best))) c
            ON c.key = b.key AND c.unit = b.unit
         ORDER BY b.fused DESC, b.vector_rank, b.text_rank, b.key, b.unit;
EXCEPTION WHEN undefined_table THEN
    PERFORM embedline.refuse_dropped(version);
    RAISE;
END
$$;
COMMENT ON FUNCTION embeddings.hybrid(
    text, text, pgvector.vector, int, regconfig, float8, float8, int, int, text, int, jsonb, int) IS
    'The k best by vector and by words, fused by reciprocal rank: vector_weight / (rrf_k + vector_rank) + text_weight / '
    '(rrf_k + text_rank), of the `candidates` best of each (null: 2 k, 40 at least). `query_text` is read as a web '
    'search is: words, "a phrase", or, -without; `language` is a text search configuration (\dF). `score` is that of '
    'the prediction, as elsewhere; `fused` is the sum. The rest as in embeddings.nearest';

-- The distances of vectors that were found in another way.
CREATE OR REPLACE FUNCTION embedline.measured(
    version embedline.model_version, query pgvector.vector, keys text[], units int[])
RETURNS embedline.found
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    found embedline.found;
BEGIN
    EXECUTE format(
        'SELECT array_agg(v.key), array_agg(v.unit), array_agg(v.embedding %s $1::%I.%I)
           FROM unnest($2, $3) n (key, unit) JOIN embedline.%I v ON v.key = n.key AND v.unit = n.unit',
        embedline.distance_operator(version.distance), 'pgvector', version.storage, version.table_name)
       INTO found.keys, found.units, found.distances USING query, keys, units;
    RETURN found;
END
$$;
