-- The k nearest of all vectors of a serving version, in no order. A session plans these
-- statements, one for each such version, but once; what EXECUTE is given it plans every time,
-- for a tenth to a fifth of a search. The function is made anew whenever views are.

-- No INTO: it would keep a scan without an index to one process.
CREATE OR REPLACE FUNCTION embedline.scans_of_serving()
RETURNS text
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN (
        SELECT 'BEGIN CASE version' || coalesce(string_agg(format('
            WHEN %s THEN
                RETURN (SELECT ROW(array_agg(n.key), array_agg(n.unit), array_agg(n.distance), NULL)::embedline.found
                          FROM (SELECT v.key, v.unit, v.embedding %s query::%I.%I AS distance
                                  FROM embedline.%I v ORDER BY distance LIMIT k) n);',
            m.id, embedline.distance_operator(m.distance), 'pgvector', m.storage, m.table_name), '' ORDER BY m.id),
            ' WHEN 0 THEN') || ' ELSE RETURN NULL; END CASE; END'
          FROM embedline.model_version m WHERE m.state = 'active');
END
$$;

-- Two at once would fail. Who comes second leaves it to the next run: what has no statement
-- there is searched by EXECUTE.
CREATE OR REPLACE FUNCTION embedline.renew_scan_serving()
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF embedline.scans_of_serving() IS NOT DISTINCT FROM (
           SELECT p.prosrc FROM pg_proc p
            WHERE p.pronamespace = 'embedline'::regnamespace AND p.proname = 'scan_serving')
       OR NOT pg_try_advisory_xact_lock(hashtextextended('embedline.scan_serving', 0))
    THEN
        RETURN;
    END IF;
    -- without a sort: a plan is made for any k, and sorting looks good to one for many
    EXECUTE format(
        'CREATE OR REPLACE FUNCTION embedline.scan_serving(version int, query %I.vector, k bigint)
         RETURNS embedline.found
         LANGUAGE plpgsql STABLE
         SET search_path = pg_catalog, pg_temp
         SET plan_cache_mode = force_generic_plan
         SET enable_sort = off
         AS %L', 'pgvector', embedline.scans_of_serving());
END
$$;

SELECT embedline.renew_scan_serving();
