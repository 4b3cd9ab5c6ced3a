-- The k nearest of all vectors of a serving version, each with its company, the nearest
-- first. A session plans these statements, one for each such version, but once; what
-- EXECUTE is given it plans every time, for a tenth to a fifth of a search. The function is
-- made anew whenever views are. Of records that belong to tenants it gives none.

-- No INTO: it would keep a scan without an index to one process.
CREATE OR REPLACE FUNCTION embedline.statements_of_serving()
RETURNS text
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN (
        SELECT 'BEGIN
            IF ef_search <> 40 THEN
                PERFORM set_config(''hnsw.ef_search'', ef_search::text, true);
            END IF;
            CASE version' || coalesce(string_agg(format('
            WHEN %s THEN
                RETURN ARRAY(
                    SELECT ROW(n.key, n.unit, n.distance, b.*, NULL)::embedline.neighbor
                      FROM (SELECT v.key, v.unit, v.embedding %s query::%I.%I AS distance
                              FROM embedline.%I v ORDER BY distance LIMIT k) n
                     CROSS JOIN LATERAL embedline.beside(%s, %s, n.key, n.unit) b
                     WHERE NOT (SELECT u.tenanted FROM embedline.use_case u WHERE u.id = %s)
                     ORDER BY n.distance, n.key, n.unit);',
            m.id, embedline.distance_operator(m.distance), 'pgvector', m.storage, m.table_name,
            m.use_case, m.id, m.use_case), '' ORDER BY m.id),
            ' WHEN 0 THEN') || ' ELSE RETURN NULL; END CASE; END'
          FROM embedline.model_version m WHERE m.state = 'active');
END
$$;

-- Two at once would fail. Who comes second leaves it to the next run: what has no statement
-- there is searched by EXECUTE.
CREATE OR REPLACE FUNCTION embedline.renew_nearest_serving()
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF embedline.statements_of_serving() IS NOT DISTINCT FROM (
           SELECT p.prosrc FROM pg_proc p
            WHERE p.pronamespace = 'embedline'::regnamespace AND p.proname = 'nearest_serving')
       OR NOT pg_try_advisory_xact_lock(hashtextextended('embedline.nearest_serving', 0))
    THEN
        RETURN;
    END IF;
    -- loads pgvector: only then may somebody who is no superuser set hnsw.… of a function
    PERFORM '[1]'::pgvector.vector;
    -- without a sort: a plan is made for any k, and sorting looks good to one for many
    EXECUTE format(
        'CREATE OR REPLACE FUNCTION embedline.nearest_serving(
            version int, query %I.vector, k bigint, ef_search int)
         RETURNS embedline.neighbor[]
         LANGUAGE plpgsql STABLE
         SET search_path = pg_catalog, pg_temp
         SET plan_cache_mode = force_generic_plan
         SET enable_sort = off
         SET jit = off
         SET hnsw.ef_search = 40
         SET hnsw.iterative_scan = ''relaxed_order''
         SET hnsw.max_scan_tuples = 20000
         SET ivfflat.iterative_scan = ''relaxed_order''
         AS %L', 'pgvector', embedline.statements_of_serving());
END
$$;

SELECT embedline.renew_nearest_serving();
