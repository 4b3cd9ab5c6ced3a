CREATE OR REPLACE FUNCTION embeddings.nearest(
    use_case text, query pgvector.vector, k int DEFAULT 10, feature text DEFAULT NULL, model_version int DEFAULT NULL,
    filter jsonb DEFAULT NULL, ef_search int DEFAULT NULL)
RETURNS SETOF embedline.neighbor
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    version embedline.model_version := embedline.asked(use_case, feature, model_version);
BEGIN
    IF query IS NOT NULL AND k IS NOT NULL THEN
        RETURN QUERY SELECT * FROM embedline.answer(version, query, k, filter, ef_search);
    END IF;
EXCEPTION WHEN undefined_table THEN
    PERFORM embedline.refuse_dropped(version);
    RAISE;
END
$$;
COMMENT ON FUNCTION embeddings.nearest(text, pgvector.vector, int, text, int, jsonb, int) IS
    'The k vectors of a use case nearest to a query vector made by the same model, nearest first, in the use '
    'case''s own distance (inner_product: negated), with prediction, score and label beside each. `feature`: of a '
    'use case that declares several (null: the first). `model_version`: that of the query, refused where another one '
    'serves. `filter`: an object of any of `prediction`, `label`, `environment`, `key` (a value, or a list of which any '
    'will do), `misclassified`, `labelled` (true or false), `score` ([least, most]), `event_time` ([since, until]) and '
    '`tags` ({tag: value}); k rows come back whenever k match. `ef_search` (1 to 1000; null: 40, or 2 k if that is more; '
    'with a filter twice as much): the higher, the nearer to exact, and the slower, where an HNSW index is used';

-- How often this transaction has read each index over the vectors.
CREATE OR REPLACE FUNCTION embedline.index_scans(version embedline.model_version)
RETURNS jsonb
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN (SELECT jsonb_object_agg(x.indexrelid, pg_stat_get_xact_numscans(x.indexrelid))
              FROM pg_index x
              JOIN pg_attribute c ON c.attrelid = x.indrelid AND c.attnum = x.indkey[0] AND c.attname = 'embedding'
             WHERE x.indrelid = to_regclass(format('embedline.%I', version.table_name)));
END
$$;

CREATE OR REPLACE FUNCTION embeddings.explain_nearest(
    use_case text, query pgvector.vector, k int DEFAULT 10, feature text DEFAULT NULL, model_version int DEFAULT NULL,
    filter jsonb DEFAULT NULL, ef_search int DEFAULT NULL)
RETURNS jsonb
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    version embedline.model_version := embedline.asked(use_case, feature, model_version);
    choice  embedline.choice;
    before  jsonb;
    used    record;
    found   embedline.found;
    began   timestamptz;
BEGIN
    k := embedline.require_between('k', k, 1, NULL);
    ef_search := coalesce(ef_search, embedline.default_ef_search(k, filter));
    choice := embedline.choose(version, k, filter, ef_search);
    before := embedline.index_scans(version);
    began := clock_timestamp();
    found := embedline.search(version, query, k, filter, ef_search);
    SELECT i.oid::regclass AS index, a.amname AS method INTO used
      FROM jsonb_each(embedline.index_scans(version)) s
      JOIN pg_class i ON i.oid = s.key::oid
      JOIN pg_am a ON a.oid = i.relam
     WHERE s.value > before -> s.key LIMIT 1;
    RETURN jsonb_build_object(
        'plan', coalesce(used.method || CASE WHEN found.exhausted THEN ', then exact' ELSE '' END, 'exact'),
        'vectors', choice.vectors,
        'matches', CASE WHEN choice.exact THEN choice.matches::text
                        ELSE 'more than ' || choice.exact_up_to END,
        'exact_up_to', choice.exact_up_to,
        'index', coalesce(used.index, choice.index),
        'ef_search', CASE used.method WHEN 'hnsw' THEN ef_search END,
        'max_scan_tuples', CASE used.method WHEN 'hnsw' THEN choice.max_scan_tuples END,
        'probes', CASE used.method WHEN 'ivfflat' THEN current_setting('ivfflat.probes')::int END,
        'rows', coalesce(cardinality(found.keys), 0),
        'model_version', version.version,
        'milliseconds', round(extract(epoch FROM clock_timestamp() - began)::numeric * 1000, 3));
EXCEPTION WHEN undefined_table THEN
    PERFORM embedline.refuse_dropped(version);
    RAISE;
END
$$;
COMMENT ON FUNCTION embeddings.explain_nearest(text, pgvector.vector, int, text, int, jsonb, int) IS
    'Makes the search that embeddings.nearest would, and says how it went: `plan` (exact; hnsw; hnsw, then exact: the '
    'index had looked at `max_scan_tuples` vectors before k had passed the filter; ivfflat: an index of your own was '
    'read, from `probes` lists on until there were k), `vectors` there are, about, `matches` of the filter, counted as '
    'far as `exact_up_to`, up to which they are compared one by one, `index` (that was read, or else the HNSW index '
    'there is; null: no valid one of this distance), `ef_search`, `rows` that came back, and `milliseconds`';

CREATE OR REPLACE FUNCTION embeddings.neighbors(
    use_case text, key text, k int DEFAULT 10, unit int DEFAULT NULL, feature text DEFAULT NULL,
    filter jsonb DEFAULT NULL, ef_search int DEFAULT NULL)
RETURNS SETOF embedline.neighbor
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    version    embedline.model_version := embedline.asked(use_case, feature);
    query      pgvector.vector;
    found_unit int;
BEGIN
    IF key IS NULL OR k IS NULL THEN
        RETURN;
    END IF;
    k := embedline.require_between('k', k, 1, NULL);
    EXECUTE format('SELECT v.unit, v.embedding::%I.vector %s AND v.unit = coalesce($1, v.unit)
                     ORDER BY v.unit LIMIT 1',
                   'pgvector', embedline.selection(version, jsonb_build_object('key', key)))
       INTO found_unit, query USING unit;
    IF query IS NULL THEN
        PERFORM embedline.refuse_key(version, key, unit);
    END IF;
    RETURN QUERY SELECT n.* FROM embedline.answer(version, query, k::bigint + 1, filter, ef_search) n
                  WHERE (n.key, n.unit) <> (neighbors.key, found_unit) LIMIT k;
EXCEPTION WHEN undefined_table THEN
    PERFORM embedline.refuse_dropped(version);
    RAISE;
END
$$;
COMMENT ON FUNCTION embeddings.neighbors(text, text, int, int, text, jsonb, int) IS
    'The k vectors nearest to one that is stored (the record''s first, or that of its word, entity or object '
    'number `unit`), itself left out, nearest first; `filter` and `ef_search` as in embeddings.nearest';

CREATE OR REPLACE FUNCTION embeddings.within(
    use_case text, query pgvector.vector, max_distance float8, k int DEFAULT 100, feature text DEFAULT NULL,
    model_version int DEFAULT NULL, filter jsonb DEFAULT NULL, ef_search int DEFAULT NULL)
RETURNS SETOF embedline.neighbor
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    version embedline.model_version := embedline.asked(use_case, feature, model_version);
BEGIN
    IF query IS NULL OR max_distance IS NULL THEN
        RETURN;
    END IF;
    RETURN QUERY SELECT n.* FROM embedline.answer(version, query, k, filter, ef_search) n
                  WHERE n.distance <= max_distance;
EXCEPTION WHEN undefined_table THEN
    PERFORM embedline.refuse_dropped(version);
    RAISE;
END
$$;
COMMENT ON FUNCTION embeddings.within(text, pgvector.vector, float8, int, text, int, jsonb, int) IS
    'The vectors no farther from a query vector than `max_distance`, nearest first, k at most; k null: all of '
    'them, found without an index. The rest as in embeddings.nearest';
