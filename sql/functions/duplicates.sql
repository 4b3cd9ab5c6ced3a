-- The nearest of each in one statement, a batch by LATERAL: it uses an HNSW index, a
-- self-join does not. Of a pair the lesser (key, unit) stands first, in `keys` and `units`.
CREATE OR REPLACE FUNCTION embedline.close_pairs(
    version embedline.model_version, k bigint, max_distance float8, filter jsonb,
    OUT keys text[], OUT units int[], OUT other_keys text[], OUT other_units int[], OUT distances float8[])
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
SET hnsw.ef_search = 40
SET hnsw.iterative_scan = 'relaxed_order'
SET ivfflat.iterative_scan = 'relaxed_order'
SET hnsw.max_scan_tuples = 20000
SET jit = off
AS $$
DECLARE
    ef_search int := least(1000, greatest(40, 2 * k));
    others    text := embedline.selection(version, NULL);
    own       text := '';
    choice    embedline.choice;
BEGIN
    PERFORM set_config('hnsw.ef_search', ef_search::text, true);
    -- where records belong to tenants an index may give up before k are his who asks
    IF others IS NOT NULL THEN
        choice := embedline.choose(version, k + 1, NULL, ef_search);
        IF choice.exact THEN
            own := format('own AS MATERIALIZED (SELECT v.key, v.unit, v.embedding %s),', others);
            others := 'FROM own v';
        ELSE
            PERFORM set_config('hnsw.max_scan_tuples', choice.max_scan_tuples::text, true);
        END IF;
    END IF;
    EXECUTE format(
        'WITH %4$s near AS (
            SELECT a.key, a.unit, b.key AS other_key, b.unit AS other_unit, b.distance
              FROM (SELECT v.key, v.unit, v.embedding %1$s) a
             CROSS JOIN LATERAL (
                   SELECT v.key, v.unit, v.embedding %2$s a.embedding AS distance %3$s ORDER BY distance LIMIT $1) b
             WHERE b.distance <= $2)
         SELECT array_agg(key), array_agg(unit), array_agg(other_key), array_agg(other_unit), array_agg(distance)
           FROM (SELECT key, unit, other_key, other_unit, distance FROM near
                  WHERE (key, unit) < (other_key, other_unit)
                 UNION
                 SELECT other_key, other_unit, key, unit, distance FROM near
                  WHERE (key, unit) > (other_key, other_unit)) p',
        coalesce(embedline.selection(version, filter), embedline.everything(version)),
        embedline.distance_operator(version.distance), coalesce(others, embedline.everything(version)), own)
       INTO keys, units, other_keys, other_units, distances USING k + 1, max_distance;
END
$$;

CREATE OR REPLACE FUNCTION embeddings.duplicates(
    use_case text, max_distance float8, k int DEFAULT 10, filter jsonb DEFAULT NULL, feature text DEFAULT NULL)
RETURNS TABLE (
    key text, unit int, other_key text, other_unit int, distance float8, label text, other_label text,
    conflict boolean, prediction text, other_prediction text, data text, other_data text)
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    version embedline.model_version := embedline.asked(use_case, feature);
    pairs   record;
BEGIN
    IF max_distance IS NULL OR k IS NULL THEN
        RETURN;
    END IF;
    k := embedline.require_between('k', k, 1, NULL);
    pairs := embedline.close_pairs(version, k, max_distance, filter);
    RETURN QUERY
        WITH member AS MATERIALIZED (
            SELECT DISTINCT ON (c.key, c.unit) c.*
              FROM embedline.company(version, ROW(
                   pairs.keys || pairs.other_keys, pairs.units || pairs.other_units,
                   pairs.distances || pairs.distances, NULL)::embedline.found) c)
        SELECT p.key, p.unit, p.other_key, p.other_unit, p.distance, a.label, b.label,
               a.label <> b.label, a.prediction, b.prediction, a.data, b.data
          FROM unnest(pairs.keys, pairs.units, pairs.other_keys, pairs.other_units, pairs.distances)
               p (key, unit, other_key, other_unit, distance)
          JOIN member a ON a.key = p.key AND a.unit = p.unit
          JOIN member b ON b.key = p.other_key AND b.unit = p.other_unit
         ORDER BY p.distance, p.key, p.unit, p.other_key, p.other_unit;
EXCEPTION WHEN undefined_table THEN
    PERFORM embedline.refuse_dropped(version);
    RAISE;
END
$$;
COMMENT ON FUNCTION embeddings.duplicates(text, float8, int, jsonb, text) IS
    'Pairs of vectors no farther apart than `max_distance`, each pair once, the closest first; `conflict`: their '
    'labels differ. Looks at the k nearest of every vector that `filter` lets through; the other of a pair may be any. '
    'With an HNSW index about a millisecond for each such vector; without one it compares each with all. `filter` and '
    '`feature` as in embeddings.nearest';
