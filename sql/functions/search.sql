-- What every search does. The public functions are in nearest.sql, references.sql,
-- hybrid.sql, duplicates.sql and mmr.sql.

-- pgvector's settings, which are named below, are known once it is loaded.
SELECT '[1]'::vector;

CREATE OR REPLACE FUNCTION embedline.distance_operator(distance text)
RETURNS text
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
RETURN CASE distance
    WHEN 'cosine' THEN '<=>' WHEN 'l2' THEN '<->' WHEN 'inner_product' THEN '<#>' END;

CREATE OR REPLACE FUNCTION embedline.require_query(version embedline.model_version, query vector)
RETURNS void
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
AS $$
BEGIN
    IF vector_dims(query) <> version.dims THEN
        RAISE EXCEPTION 'the query has % dimensions, the vectors of % have %', vector_dims(query),
            quote_literal((SELECT name FROM embedline.use_case WHERE id = version.use_case)), version.dims
            USING ERRCODE = 'invalid_parameter_value',
                  HINT = 'embed the query with the use case''s own model: embedline search';
    ELSIF version.distance = 'cosine' AND vector_norm(query) = 0 THEN
        RAISE EXCEPTION 'the query is all zeros: it has no direction, and so no cosine distance'
            USING ERRCODE = 'invalid_parameter_value',
                  HINT = 'references that are subtracted may cancel each other out';
    END IF;
END
$$;

CREATE OR REPLACE FUNCTION embedline.require_count(name text, value bigint, most bigint DEFAULT NULL)
RETURNS void
LANGUAGE plpgsql IMMUTABLE
AS $$
BEGIN
    IF value < 1 OR value > most THEN
        RAISE EXCEPTION '% must be %, not %', name,
            CASE WHEN most IS NULL THEN 'at least 1' ELSE format('1 to %s', most) END, value
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
END
$$;

CREATE OR REPLACE FUNCTION embedline.refuse_key(version embedline.model_version, key text, unit int)
RETURNS void
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
AS $$
DECLARE
    use_case text := (SELECT name FROM embedline.use_case WHERE id = version.use_case);
BEGIN
    RAISE EXCEPTION 'use case % has no vector for key %, unit %',
        quote_literal(use_case), quote_nullable(key), coalesce(unit, 0)
        USING ERRCODE = 'no_data_found',
              HINT = format('embedline explain %s %L says why', use_case, key);
END
$$;

-- How many vectors a version has, about, and its HNSW index, if one is there and valid.
CREATE OR REPLACE FUNCTION embedline.vector_index(
    version embedline.model_version, OUT vectors bigint, OUT index regclass)
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
AS $$
BEGIN
    SELECT CASE WHEN c.reltuples < 0 THEN pg_relation_size(c.oid) / (4 * version.dims)
                ELSE c.reltuples END,
           (SELECT i.indexrelid
              FROM pg_index i
              JOIN pg_class x ON x.oid = i.indexrelid
              JOIN pg_am a ON a.oid = x.relam
              JOIN pg_opclass o ON o.oid = i.indclass[0]
             WHERE i.indrelid = c.oid AND i.indisvalid AND i.indpred IS NULL AND i.indkey[0] <> 0
               AND a.amname = 'hnsw'
               AND o.opcname = version.storage || '_'
                   || CASE version.distance WHEN 'inner_product' THEN 'ip' ELSE version.distance END || '_ops'
             LIMIT 1)
      INTO vectors, index
      FROM pg_class c
     WHERE c.oid = to_regclass(format('embedline.%I', version.table_name));
END
$$;

-- The k nearest of a selection; null: of all. Exact: the selection is made first, by the
-- indexes its conditions have, and its vectors are compared one by one. Else the HNSW
-- index gives vectors, about the nearest first, until k have passed.
CREATE OR REPLACE FUNCTION embedline.scan(
    version embedline.model_version, query vector, k bigint, max_distance float8, selection text, exact boolean,
    INOUT found embedline.found)
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
AS $$
DECLARE
    nearest text := format(
        'SELECT v.key, v.unit, v.embedding %s $1::%s AS distance %s',
        embedline.distance_operator(version.distance), version.storage,
        coalesce(selection, embedline.everything(version)));
BEGIN
    EXECUTE format(
        'SELECT array_agg(key ORDER BY distance, key, unit), array_agg(unit ORDER BY distance, key, unit),
                array_agg(distance ORDER BY distance, key, unit) FROM (%s) n WHERE distance <= $3 OR $3 IS NULL',
        CASE WHEN exact
             THEN format('SELECT * FROM (%s OFFSET 0) c ORDER BY distance, key, unit LIMIT $2', nearest)
             ELSE nearest || ' ORDER BY distance LIMIT $2' END)
       INTO found.keys, found.units, found.distances USING query, k, max_distance;
    found.plan := CASE WHEN exact THEN 'exact' ELSE 'hnsw' END;
END
$$;

-- A search that chooses its way. Comparing one by one costs about 2.4 us for each match,
-- the index about 30 us for each vector it has to look at, k * vectors / matches of them:
-- they are even where matches² = 12 * k * vectors (MiniLM, 38,000 and 50,000 vectors).
CREATE OR REPLACE FUNCTION embedline.search(
    version embedline.model_version, query vector, k bigint, filter jsonb, ef_search int,
    max_distance float8 DEFAULT NULL)
RETURNS embedline.found
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
SET hnsw.ef_search = 40
SET hnsw.iterative_scan = 'relaxed_order'
SET hnsw.max_scan_tuples = 20000
SET enable_sort = on
SET jit = off
AS $$
DECLARE
    selection text := embedline.selection(version, filter);
    found     embedline.found;
BEGIN
    PERFORM embedline.require_query(version, query);
    PERFORM embedline.require_count('k', k);
    PERFORM embedline.require_count('ef_search', ef_search, 1000);
    SELECT * INTO found.vectors, found.index FROM embedline.vector_index(version);
    IF found.index IS NULL OR k IS NULL THEN
        RETURN embedline.scan(version, query, k, max_distance, selection, true, found);
    END IF;
    found.bound := ceil(sqrt(12.0 * k * found.vectors));
    IF selection IS NULL THEN
        found.matches := found.vectors;
    ELSE
        EXECUTE format('SELECT count(*) FROM (SELECT %s LIMIT %s) m', selection, found.bound + 1)
           INTO found.matches;
    END IF;
    IF found.matches <= found.bound THEN
        RETURN embedline.scan(version, query, k, max_distance, selection, true, found);
    END IF;
    found.ef_search := coalesce(ef_search, least(1000, greatest(40, 2 * k)));
    -- ten times the vectors to look at if as few match as may, and these lie anywhere
    found.max_scan_tuples := greatest(2 * found.ef_search, least(1e9, 10.0 * k * found.vectors / found.bound));
    -- an order without a sort is the index's
    PERFORM set_config('hnsw.ef_search', found.ef_search::text, true),
            set_config('hnsw.max_scan_tuples', found.max_scan_tuples::text, true),
            set_config('enable_sort', 'off', true);
    found := embedline.scan(version, query, k, NULL, selection, false, found);
    IF coalesce(cardinality(found.keys), 0) < k THEN
        PERFORM set_config('enable_sort', 'on', true);
        found := embedline.scan(version, query, k, max_distance, selection, true, found);
        found.plan := 'hnsw, then exact';
    END IF;
    RETURN found;
END
$$;

-- What was found, each with its company, in the order it was found in. Looked up row by
-- row: a planner short of statistics may join whole tables. All of an answer is of one
-- model version: behind a view's name there may be another by now, so where more than the
-- side tables is asked it is the view's text, which the query's snapshot has, and which
-- names the version's own table.
CREATE OR REPLACE FUNCTION embedline.company(version embedline.model_version, found embedline.found)
RETURNS SETOF embedline.neighbor
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
AS $$
DECLARE
    predictor int := embedline.predictor(version);
    labelled  boolean;
    name      text;
BEGIN
    IF version.unit IN ('word', 'entity') THEN
        name := embedline.view_name(version);
        RETURN QUERY EXECUTE format(
            'SELECT n.key, n.unit, n.distance, t.prediction, t.score, t.label, t.data, t.event_time, t.text
               FROM unnest($1, $2, $3) WITH ORDINALITY n (key, unit, distance, place)
               JOIN (%s) t ON t.key = n.key AND t.unit = n.unit
              ORDER BY n.place',
            -- a store made anew by an upgrade keeps the text from the next sync on
            coalesce((SELECT v.definition || E'\n' FROM embedline.view v WHERE v.name = company.name),
                     format('TABLE embeddings.%I', name))) USING found.keys, found.units, found.distances;
        RETURN;
    END IF;
    labelled := (SELECT u.labelled_unit = 'record' FROM embedline.use_case u WHERE u.id = version.use_case);
    RETURN QUERY
        SELECT n.key, n.unit, n.distance, p.prediction, p.score, l.label, i.data, r.event_time, NULL::text
          FROM unnest(found.keys, found.units, found.distances)
               WITH ORDINALITY n (key, unit, distance, place)
          LEFT JOIN LATERAL (
               SELECT * FROM embedline.record r
                WHERE r.use_case = version.use_case AND r.key = n.key LIMIT 1) r ON true
          LEFT JOIN LATERAL (
               SELECT * FROM embedline.input i
                WHERE i.model_version = version.id AND i.key = n.key LIMIT 1) i ON true
          LEFT JOIN LATERAL (
               SELECT * FROM embedline.prediction p
                WHERE p.use_case = version.use_case AND p.key = n.key AND p.unit = n.unit
                  AND p.model_version = predictor LIMIT 1) p ON true
          LEFT JOIN LATERAL (
               SELECT * FROM embedline.label l
                WHERE labelled AND l.use_case = version.use_case AND l.key = n.key AND l.unit = 0 LIMIT 1) l ON true
         ORDER BY n.place;
END
$$;
