-- What every search does. The public functions are in nearest.sql, references.sql,
-- hybrid.sql, duplicates.sql and mmr.sql.

CREATE OR REPLACE FUNCTION embedline.distance_sign(distance text)
RETURNS text
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
RETURN CASE distance
    WHEN 'cosine' THEN '<=>' WHEN 'l2' THEN '<->' WHEN 'inner_product' THEN '<#>' END;

CREATE OR REPLACE FUNCTION embedline.distance_operator(distance text)
RETURNS text
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
RETURN 'OPERATOR(' || quote_ident('pgvector') || '.' || embedline.distance_sign(distance) || ')';

CREATE OR REPLACE FUNCTION embedline.require_query(version embedline.model_version, query pgvector.vector)
RETURNS pgvector.vector
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF pgvector.vector_dims(query) <> version.dims THEN
        RAISE EXCEPTION 'the query has % dimensions, the vectors of % have %', pgvector.vector_dims(query),
            quote_literal((SELECT name FROM embedline.use_case WHERE id = version.use_case)), version.dims
            USING ERRCODE = 'invalid_parameter_value',
                  HINT = 'embed the query with the use case''s own model: embedline search';
    ELSIF version.distance = 'cosine' AND pgvector.vector_norm(query) = 0 THEN
        RAISE EXCEPTION 'the query is all zeros: it has no direction, and so no cosine distance'
            USING ERRCODE = 'invalid_parameter_value',
                  HINT = 'references that are subtracted may cancel each other out';
    END IF;
    RETURN (query);
END
$$;

CREATE OR REPLACE FUNCTION embedline.require_between(name text, value float8, lowest float8, highest float8)
RETURNS float8
LANGUAGE plpgsql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF value < lowest OR value > highest THEN
        RAISE EXCEPTION '% must be %, not %', name,
            CASE WHEN highest IS NULL THEN format('at least %s', lowest)
                 ELSE format('%s to %s', lowest, highest) END, value
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    RETURN value;
END
$$;

CREATE OR REPLACE FUNCTION embedline.refuse_key(version embedline.model_version, key text, unit int)
RETURNS void
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
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
SET search_path = pg_catalog, pg_temp
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

-- The k nearest of a selection (null: of all), in no order. Exact: the selection is made
-- first, by the indexes its conditions have, and its vectors are compared one by one. Else
-- the planner may take the HNSW index, which gives vectors, about the nearest first,
-- until k have passed.
CREATE OR REPLACE FUNCTION embedline.scan(
    version embedline.model_version, query pgvector.vector, k bigint, selection text, exact boolean)
RETURNS embedline.found
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    found embedline.found;
BEGIN
    EXECUTE format(
        'SELECT array_agg(key), array_agg(unit), array_agg(distance)
           FROM (%s SELECT v.key, v.unit, v.embedding %s $1::%I.%I AS distance %s %s LIMIT $2) n',
        CASE WHEN exact THEN 'SELECT * FROM (' END,
        embedline.distance_operator(version.distance), 'pgvector', version.storage,
        coalesce(selection, embedline.everything(version)),
        CASE WHEN exact THEN 'OFFSET 0) c ORDER BY distance, key, unit' ELSE 'ORDER BY distance' END)
       INTO found.keys, found.units, found.distances USING query, k;
    RETURN found;
END
$$;

-- A filter thins out what the index gives, and not evenly.
CREATE OR REPLACE FUNCTION embedline.default_ef_search(k bigint, filter jsonb)
RETURNS int
LANGUAGE sql IMMUTABLE
RETURN least(1000, greatest(40, 2 * k) * CASE WHEN filter IS NULL THEN 1 ELSE 2 END);

-- All of a search that nothing is left out of, in one statement; null where it takes more.
CREATE OR REPLACE FUNCTION embedline.nearest_at_once(
    version embedline.model_version, query pgvector.vector, k bigint, ef_search int)
RETURNS embedline.neighbor[]
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    near embedline.neighbor[];
BEGIN
    -- of more, a plan for this k may sort them faster
    IF k BETWEEN 1 AND 1000 THEN
        near := embedline.nearest_serving(version.id, query, k, ef_search);
    END IF;
    RETURN CASE WHEN cardinality(near) = k THEN near END;
END
$$;

-- A search that chooses its way; k null: all, however far.
CREATE OR REPLACE FUNCTION embedline.search(
    version embedline.model_version, query pgvector.vector, k bigint, filter jsonb, ef_search int)
RETURNS embedline.found
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
SET hnsw.ef_search = 40
SET hnsw.iterative_scan = 'relaxed_order'
SET ivfflat.iterative_scan = 'relaxed_order'
SET hnsw.max_scan_tuples = 20000
SET enable_sort = on
SET jit = off
AS $$
DECLARE
    selection text := embedline.selection(version, filter);
    choice    embedline.choice;
    found     embedline.found;
BEGIN
    query := embedline.require_query(version, query);
    k := embedline.require_between('k', k, 1, NULL);
    ef_search := coalesce(embedline.require_between('ef_search', ef_search, 1, 1000),
                          embedline.default_ef_search(k, filter));
    IF ef_search <> 40 THEN
        PERFORM set_config('hnsw.ef_search', ef_search::text, true);
    END IF;
    IF selection IS NULL AND k IS NOT NULL THEN
        SELECT array_agg(n.key), array_agg(n.unit), array_agg(n.distance)
          INTO found.keys, found.units, found.distances
          FROM unnest(embedline.nearest_at_once(version, query, k, ef_search)) n;
        IF found.keys IS NULL THEN
            found := embedline.scan(version, query, k, NULL, false);
        END IF;
    ELSE
        choice := embedline.choose(version, k, filter, ef_search);
        IF choice.exact THEN
            RETURN embedline.scan(version, query, k, selection, true);
        END IF;
        -- an order without a sort is the index's
        PERFORM set_config('hnsw.max_scan_tuples', choice.max_scan_tuples::text, true),
                set_config('enable_sort', 'off', true);
        found := embedline.scan(version, query, k, selection, false);
        PERFORM set_config('enable_sort', 'on', true);
    END IF;
    -- the scan has ended before k were found
    IF coalesce(cardinality(found.keys), 0) < k AND (embedline.vector_index(version)).index IS NOT NULL THEN
        found := embedline.scan(version, query, k, selection, true);
        found.exhausted := true;
    END IF;
    RETURN found;
END
$$;

-- Exact or by the index? Comparing one by one costs about 5 us for each match, the index
-- about 20 us for each vector it has to look at, k * vectors / matches of them: they are
-- even where matches² = 4 * k * vectors (`make bench-search`). Somewhat more are compared,
-- as the answer is exact then; fewer where it takes a join to count them. The index is
-- given ten times the vectors it has to look at if no more match than were counted: an
-- iterative scan that comes to its end gives what it has kept, however far (measured:
-- recall 0.87 with three times as many).
CREATE OR REPLACE FUNCTION embedline.choose(
    version embedline.model_version, k bigint, filter jsonb, ef_search int)
RETURNS embedline.choice
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    choice  embedline.choice;
    counted text;
BEGIN
    SELECT i.vectors, i.index INTO choice.vectors, choice.index FROM embedline.vector_index(version) i;
    choice.exact := true;
    IF choice.index IS NULL OR k IS NULL THEN
        RETURN choice;
    END IF;
    counted := coalesce(embedline.selection(version, filter, true), embedline.everything(version));
    choice.exact_up_to := ceil(sqrt(12.0 * k * choice.vectors)
        / CASE WHEN starts_with(counted, embedline.everything(version) || ' ') THEN 4 ELSE 1 END);
    EXECUTE format('SELECT count(*) FROM (SELECT %s LIMIT %s) m', counted, choice.exact_up_to + 1)
       INTO choice.matches;
    choice.exact := choice.matches <= choice.exact_up_to;
    IF NOT choice.exact THEN
        choice.max_scan_tuples := greatest(2 * ef_search, least(1e9, 10.0 * k * choice.vectors / choice.matches));
    END IF;
    RETURN choice;
END
$$;

-- What lies beside a vector of a whole record or of one of its images. Looked up row by
-- row: a planner short of statistics may join whole tables. Becomes part of the statement
-- that asks for it.
CREATE OR REPLACE FUNCTION embedline.beside(use_case int, version int, key text, unit int)
RETURNS TABLE (prediction text, score float8, label text, data text, event_time timestamptz)
LANGUAGE sql STABLE ROWS 1
BEGIN ATOMIC
    SELECT p.prediction, p.score, l.label, i.data, r.event_time
      FROM embedline.use_case u
      LEFT JOIN LATERAL (
           SELECT r.event_time FROM embedline.record r
            WHERE r.use_case = u.id AND r.key = beside.key LIMIT 1) r ON true
      LEFT JOIN LATERAL (
           SELECT i.data FROM embedline.input i
            WHERE i.model_version = beside.version AND i.key = beside.key LIMIT 1) i ON true
      LEFT JOIN LATERAL (
           SELECT p.prediction, p.score FROM embedline.prediction p
            WHERE p.use_case = u.id AND p.key = beside.key AND p.unit = beside.unit
              AND p.model_version = CASE WHEN u.predicted_by_source THEN 0 ELSE beside.version END LIMIT 1) p ON true
      LEFT JOIN LATERAL (
           SELECT l.label FROM embedline.label l
            WHERE l.use_case = u.id AND l.key = beside.key AND l.unit = 0 AND u.labelled_unit = 'record'
            LIMIT 1) l ON true
     WHERE u.id = beside.use_case;
END;

-- What was found, each with its company, the nearest first. All of an answer is of one
-- model version: behind a view's name there may be another by now, so where more than the
-- side tables is asked it is the view's text, which the query's snapshot has, and which
-- names the version's own table.
CREATE OR REPLACE FUNCTION embedline.company(version embedline.model_version, found embedline.found)
RETURNS SETOF embedline.neighbor
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    seen text;
BEGIN
    IF version.unit IN ('word', 'entity') THEN
        seen := embedline.view_name(version);
        RETURN QUERY EXECUTE format(
            'SELECT n.key, n.unit, n.distance, t.prediction, t.score, t.label, t.data, t.event_time, t.text
               FROM unnest($1, $2, $3) n (key, unit, distance)
               JOIN (%s) t ON t.key = n.key AND t.unit = n.unit
              ORDER BY n.distance, n.key, n.unit',
            -- a store made anew by an upgrade keeps the text from the next sync on
            coalesce((SELECT v.definition || E'\n' FROM embedline.view v WHERE v.name = seen),
                     format('TABLE embeddings.%I', seen))) USING found.keys, found.units, found.distances;
        RETURN;
    END IF;
    RETURN QUERY
        SELECT n.key, n.unit, n.distance, b.*, NULL::text
          FROM unnest(found.keys, found.units, found.distances) n (key, unit, distance)
         CROSS JOIN LATERAL embedline.beside(version.use_case, version.id, n.key, n.unit) b
         ORDER BY n.distance, n.key, n.unit;
END
$$;

-- A search, with its company.
CREATE OR REPLACE FUNCTION embedline.answer(
    version embedline.model_version, query pgvector.vector, k bigint, filter jsonb, ef_search int)
RETURNS SETOF embedline.neighbor
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    near embedline.neighbor[];
BEGIN
    IF filter IS NULL AND version.unit NOT IN ('word', 'entity') AND (ef_search BETWEEN 1 AND 1000) IS NOT FALSE THEN
        near := embedline.nearest_at_once(version, embedline.require_query(version, query), k,
                                          coalesce(ef_search, embedline.default_ef_search(k, NULL)));
    END IF;
    IF near IS NULL THEN
        RETURN QUERY SELECT * FROM embedline.company(
            version, embedline.search(version, query, k, filter, ef_search));
    ELSE
        RETURN QUERY SELECT * FROM unnest(near);
    END IF;
END
$$;
