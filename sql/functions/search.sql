CREATE OR REPLACE FUNCTION embedline.distance_operator(distance text)
RETURNS text
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
RETURN CASE distance
    WHEN 'cosine' THEN '<=>' WHEN 'l2' THEN '<->' WHEN 'inner_product' THEN '<#>' END;

-- The active model version of a use case and feature (null: its first one), or an
-- error that lists those there are.
CREATE OR REPLACE FUNCTION embedline.active_version(use_case text, feature text)
RETURNS embedline.model_version
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
AS $$
DECLARE
    found embedline.model_version;
    valid text;
BEGIN
    SELECT m.* INTO found
      FROM embedline.model_version m JOIN embedline.use_case u ON u.id = m.use_case
     WHERE u.name = active_version.use_case AND m.state = 'active'
       AND m.feature = coalesce(active_version.feature, u.features[1]);
    IF found.id IS NOT NULL THEN
        RETURN found;
    END IF;
    SELECT string_agg(m.feature, ', ' ORDER BY m.feature) INTO valid
      FROM embedline.model_version m JOIN embedline.use_case u ON u.id = m.use_case
     WHERE u.name = active_version.use_case AND m.state = 'active';
    IF valid IS NOT NULL THEN
        RAISE EXCEPTION 'use case % has no feature %', quote_literal(use_case), quote_nullable(feature)
            USING ERRCODE = 'undefined_object', HINT = 'valid: ' || valid;
    END IF;
    RAISE EXCEPTION 'no use case % with vectors', quote_literal(use_case)
        USING ERRCODE = 'undefined_object',
              HINT = coalesce('valid: ' || (
                  SELECT string_agg(DISTINCT u.name, ', ' ORDER BY u.name)
                    FROM embedline.use_case u JOIN embedline.model_version m
                      ON m.use_case = u.id AND m.state = 'active'), 'none has run yet');
END
$$;

-- All of an answer is of one model version. A STABLE function reads rows by the calling
-- query's snapshot, but finds relations by their present name: behind the view's there
-- may be another version by now. So it is the view's text that is asked, which that same
-- snapshot has, and which names the version's own table.
CREATE OR REPLACE FUNCTION embeddings.nearest(
    use_case text, query vector, k int DEFAULT 10, feature text DEFAULT NULL, model_version int DEFAULT NULL)
RETURNS SETOF embedline.neighbor
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
AS $$
DECLARE
    version embedline.model_version := embedline.active_version(use_case, feature);
    vectors text := embedline.view_name(version);
BEGIN
    IF query IS NULL OR k IS NULL THEN
        RETURN;
    END IF;
    IF k < 1 THEN
        RAISE EXCEPTION 'k must be at least 1, not %', k
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF model_version <> version.version THEN
        RAISE EXCEPTION 'the query is a vector of model version %, but version % serves % now',
            model_version, version.version, quote_literal(use_case)
            USING ERRCODE = 'object_not_in_prerequisite_state',
                  HINT = format('embed it with the model of version %s and ask again; embedline search does',
                                version.version);
    END IF;
    IF vector_dims(query) <> version.dims THEN
        RAISE EXCEPTION 'the query has % dimensions, the vectors of % have %',
            vector_dims(query), quote_literal(use_case), version.dims
            USING ERRCODE = 'invalid_parameter_value',
                  HINT = 'embed the query with the use case''s own model: embedline search';
    END IF;
    -- An HNSW scan returns at most ef_search rows; iterating makes it return k.
    PERFORM set_config('hnsw.ef_search', least(1000, greatest(40, 2 * k))::text, true),
            set_config('hnsw.iterative_scan', 'relaxed_order', true);
    -- The nearest first, then their company: joined before the limit, a planner short
    -- of statistics may sort the whole join.
    RETURN QUERY EXECUTE format(
        'SELECT t.key, t.unit, n.distance, t.prediction, t.score, t.label, t.data, t.event_time, %s
           FROM (SELECT v.key, v.unit, v.embedding %s $1::%s(%s) AS distance
                   FROM embedline.%I v ORDER BY 3 LIMIT $2) n
           JOIN (%s) t ON t.key = n.key AND t.unit = n.unit
          ORDER BY n.distance, t.key, t.unit',
        CASE WHEN version.unit IN ('word', 'entity') THEN 't.text' ELSE 'NULL::text' END,
        embedline.distance_operator(version.distance), version.storage, version.dims,
        version.table_name,
        -- a store made anew by an upgrade keeps the text from the next sync on
        coalesce((SELECT v.definition || E'\n' FROM embedline.view v WHERE v.name = vectors),
                 format('TABLE embeddings.%I', vectors))) USING query, k;
EXCEPTION WHEN undefined_table THEN
    RAISE EXCEPTION 'model version % of % was dropped while it was being asked',
        version.version, quote_literal(use_case)
        USING ERRCODE = 'object_not_in_prerequisite_state',
              HINT = 'another version serves by now: ask again';
END
$$;
COMMENT ON FUNCTION embeddings.nearest(text, vector, int, text, int) IS
    'The k vectors of a use case (of its first feature, or the one named) nearest to a query vector made by the '
    'same model, nearest first, in the use case''s own distance (inner_product: negated), with prediction, score '
    'and label beside each. Refused where the version that serves is not `model_version`, when that is given';

CREATE OR REPLACE FUNCTION embeddings.neighbors(
    use_case text, key text, k int DEFAULT 10, unit int DEFAULT NULL, feature text DEFAULT NULL)
RETURNS SETOF embedline.neighbor
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
AS $$
DECLARE
    version embedline.model_version := embedline.active_version(neighbors.use_case, neighbors.feature);
    query   vector;
BEGIN
    IF key IS NULL OR k IS NULL THEN
        RETURN;
    END IF;
    EXECUTE format('SELECT unit, embedding::vector FROM embedline.%I v
                     WHERE v.key = $1 AND v.unit = coalesce($2, v.unit) ORDER BY unit LIMIT 1',
                   version.table_name)
       INTO unit, query USING neighbors.key, neighbors.unit;
    IF query IS NULL THEN
        RAISE EXCEPTION 'use case % has no vector for key %, unit %',
            quote_literal(neighbors.use_case), quote_literal(neighbors.key), coalesce(neighbors.unit, 0)
            USING ERRCODE = 'no_data_found',
                  HINT = format('embedline explain %s %L says why',
                                neighbors.use_case, neighbors.key);
    END IF;
    RETURN QUERY
        SELECT n.* FROM embeddings.nearest(
            neighbors.use_case, query, neighbors.k + 1, neighbors.feature, version.version) n
         WHERE (n.key, n.unit) <> (neighbors.key, neighbors.unit)
         LIMIT neighbors.k;
EXCEPTION WHEN undefined_table THEN
    RAISE EXCEPTION 'model version % of % was dropped while it was being asked',
        version.version, quote_literal(neighbors.use_case)
        USING ERRCODE = 'object_not_in_prerequisite_state',
              HINT = 'another version serves by now: ask again';
END
$$;
COMMENT ON FUNCTION embeddings.neighbors(text, text, int, int, text) IS
    'The k vectors nearest to one stored vector (the record''s first, or the unit named), itself left out, '
    'nearest first';
