-- Searches by several references, and what lies in the middle.

-- A mean of directions where the distance is of directions.
CREATE OR REPLACE FUNCTION embedline.mean_sql(version embedline.model_version)
RETURNS text
LANGUAGE sql STABLE
RETURN format(CASE version.distance WHEN 'cosine' THEN '%1$I.avg(%1$I.l2_normalize(v.embedding::%1$I.vector))'
                                    ELSE '%1$I.avg(v.embedding::%1$I.vector)' END, 'pgvector');

CREATE OR REPLACE FUNCTION embedline.mean(version embedline.model_version, filter jsonb)
RETURNS pgvector.vector
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    mean pgvector.vector;
BEGIN
    EXECUTE format('SELECT %s %s', embedline.mean_sql(version),
                   coalesce(embedline.selection(version, filter), embedline.everything(version))) INTO mean;
    RETURN mean;
END
$$;

-- Of all vectors of these keys, each of which has one.
CREATE OR REPLACE FUNCTION embedline.mean_of(version embedline.model_version, keys text[])
RETURNS pgvector.vector
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    asked   text[] := ARRAY(SELECT DISTINCT unnest(keys));
    found   text[];
    mean    pgvector.vector;
BEGIN
    EXECUTE format('SELECT array_agg(DISTINCT v.key), %s %s', embedline.mean_sql(version),
                   embedline.selection(version, jsonb_build_object('key', asked)))
       INTO found, mean;
    IF cardinality(asked) > coalesce(cardinality(found), 0) THEN
        PERFORM embedline.refuse_key(
            version, (SELECT k FROM unnest(asked) k WHERE (k = ANY (found)) IS NOT TRUE ORDER BY k LIMIT 1), 0);
    END IF;
    RETURN mean;
END
$$;

CREATE OR REPLACE FUNCTION embeddings.centroid(
    use_case text, filter jsonb DEFAULT NULL, feature text DEFAULT NULL, model_version int DEFAULT NULL)
RETURNS pgvector.vector
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    version embedline.model_version := embedline.asked(use_case, feature, model_version);
BEGIN
    RETURN embedline.mean(version, filter);
EXCEPTION WHEN undefined_table THEN
    PERFORM embedline.refuse_dropped(version);
    RAISE;
END
$$;
COMMENT ON FUNCTION embeddings.centroid(text, jsonb, text, int) IS
    'The mean of the vectors that a filter lets through (cosine: of their directions); null: there are none. `filter`, '
    '`feature` and `model_version` as in embeddings.nearest';

CREATE OR REPLACE FUNCTION embeddings.medoid(
    use_case text, k int DEFAULT 1, filter jsonb DEFAULT NULL, feature text DEFAULT NULL,
    model_version int DEFAULT NULL)
RETURNS SETOF embedline.neighbor
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    version embedline.model_version := embedline.asked(use_case, feature, model_version);
    middle  pgvector.vector := embedline.mean(version, filter);
BEGIN
    k := embedline.require_between('k', k, 1, NULL);
    IF middle IS NOT NULL AND k IS NOT NULL THEN
        RETURN QUERY SELECT * FROM embedline.company(version, embedline.scan(
            version, embedline.require_query(version, middle), k,
            coalesce(embedline.selection(version, filter), embedline.everything(version)), true));
    END IF;
EXCEPTION WHEN undefined_table THEN
    PERFORM embedline.refuse_dropped(version);
    RAISE;
END
$$;
COMMENT ON FUNCTION embeddings.medoid(text, int, jsonb, text, int) IS
    'The record in the middle of those that a filter lets through, or the k nearest to the middle, by exact '
    'comparison with the centroid; that is the one with the least sum of distances (l2: of squared ones) to all others. '
    'The rest as in embeddings.nearest';

CREATE OR REPLACE FUNCTION embeddings.nearest_to(
    use_case text, likes text[], dislikes text[] DEFAULT '{}', k int DEFAULT 10, feature text DEFAULT NULL,
    filter jsonb DEFAULT NULL, ef_search int DEFAULT NULL)
RETURNS SETOF embedline.neighbor
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    version embedline.model_version := embedline.asked(use_case, feature);
    query   pgvector.vector;
    away    pgvector.vector;
BEGIN
    IF likes IS NULL OR k IS NULL THEN
        RETURN;
    ELSIF cardinality(likes) = 0 THEN
        RAISE EXCEPTION 'likes names no key' USING ERRCODE = 'invalid_parameter_value',
            HINT = 'one key at least: embeddings.nearest_to(use_case, ARRAY[''key''])';
    END IF;
    k := embedline.require_between('k', k, 1, NULL);
    query := embedline.mean_of(version, likes);
    IF cardinality(dislikes) > 0 THEN
        away := embedline.mean_of(version, dislikes);
        query := query OPERATOR(pgvector.+) (query OPERATOR(pgvector.-) away);
    END IF;
    RETURN QUERY SELECT n.* FROM embedline.answer(
                     version, query, k + embedline.vectors_of(version, likes || dislikes), filter, ef_search) n
                  WHERE (n.key = ANY (likes || dislikes)) IS NOT TRUE LIMIT k;
EXCEPTION WHEN undefined_table THEN
    PERFORM embedline.refuse_dropped(version);
    RAISE;
END
$$;
COMMENT ON FUNCTION embeddings.nearest_to(text, text[], text[], int, text, jsonb, int) IS
    'The k vectors nearest to several stored records at once, and away from others: to the mean of what `likes` '
    'names, plus its difference from the mean of what `dislikes` names. The records named are left out; of one with '
    'several vectors (words, entities, objects) all count. `filter` and `ef_search` as in embeddings.nearest';

CREATE OR REPLACE FUNCTION embedline.vectors_of(version embedline.model_version, keys text[])
RETURNS bigint
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    count bigint;
BEGIN
    EXECUTE format('SELECT count(*) %s WHERE v.key = ANY ($1)', embedline.everything(version)) INTO count USING keys;
    RETURN count;
END
$$;
