-- Carbonell and Goldstein 1998, with similarity as the negative distance: of cosine
-- similarities this is the same but for a constant.
CREATE OR REPLACE FUNCTION embedline.pick(
    version embedline.model_version, found embedline.found, k bigint, lambda float8)
RETURNS SETOF int
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    count   int := coalesce(cardinality(found.keys), 0);
    apart   float8[];  -- of each from the nearest that is picked
    vectors pgvector.vector[];
    step    text := format(
        'SELECT array_agg(least(a, v %s ($2)[$3]) ORDER BY n) FROM unnest($1, $2) WITH ORDINALITY u (a, v, n)',
        embedline.distance_operator(version.distance));
    left_over int[] := ARRAY(SELECT generate_series(1, count));
    picked  int;
BEGIN
    EXECUTE format(
        'SELECT array_agg(v.embedding::%I.vector ORDER BY n.place)
           FROM unnest($1, $2) WITH ORDINALITY n (key, unit, place)
           JOIN embedline.%I v ON v.key = n.key AND v.unit = n.unit', 'pgvector', version.table_name)
       INTO vectors USING found.keys, found.units;
    apart := array_fill(NULL::float8, ARRAY[count]);
    FOR n IN 1 .. least(k, count) LOOP
        picked := (
            SELECT i FROM unnest(left_over) i
             ORDER BY lambda * found.distances[i] - (1 - lambda) * coalesce(apart[i], 0), i LIMIT 1);
        RETURN NEXT picked;
        left_over := array_remove(left_over, picked);
        EXECUTE step INTO apart USING apart, vectors, picked;
    END LOOP;
END
$$;

CREATE OR REPLACE FUNCTION embeddings.mmr(
    use_case text, query pgvector.vector, k int DEFAULT 10, lambda float8 DEFAULT 0.5,
    candidates int DEFAULT NULL, feature text DEFAULT NULL, model_version int DEFAULT NULL,
    filter jsonb DEFAULT NULL, ef_search int DEFAULT NULL)
RETURNS SETOF embedline.neighbor
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    version embedline.model_version := embedline.asked(use_case, feature, model_version);
    found   embedline.found;
BEGIN
    IF query IS NULL OR k IS NULL OR lambda IS NULL THEN
        RETURN;
    END IF;
    k := embedline.require_between('k', k, 1, 1000);
    lambda := embedline.require_between('lambda', lambda, 0, 1);
    candidates := embedline.require_between('candidates', coalesce(candidates, greatest(50, 5 * k)), 1, 10000);
    found := embedline.search(version, query, greatest(k, candidates), filter, ef_search);
    RETURN QUERY
        SELECT c.* FROM embedline.pick(version, found, k, lambda) WITH ORDINALITY p (i, place)
          JOIN embedline.company(version, found) c ON c.key = found.keys[p.i] AND c.unit = found.units[p.i]
         ORDER BY p.place;
EXCEPTION WHEN undefined_table THEN
    PERFORM embedline.refuse_dropped(version);
    RAISE;
END
$$;
COMMENT ON FUNCTION embeddings.mmr(text, pgvector.vector, int, float8, int, text, int, jsonb, int) IS
    'k vectors near a query vector and apart from each other, by maximal marginal relevance, in the order they were '
    'picked: each time the one with the least lambda * its distance from the query - (1 - lambda) * its distance from '
    'the nearest picked before. lambda 1: as embeddings.nearest; 0: as far apart as they come. Picked out of the '
    '`candidates` nearest (null: 5 k, 50 at least). The rest as in embeddings.nearest';
