-- (Re)creates embeddings.<use case> over the active model version. A change of
-- dimension or type cannot be a CREATE OR REPLACE: then the view is dropped and made
-- again in the same transaction, with the grants and options it had.
CREATE OR REPLACE FUNCTION embedline.refresh_view(use_case_id int, from_source boolean)
RETURNS void
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    use_case embedline.use_case;
    active   embedline.model_version;
    query    text;
    comment  text;
BEGIN
    SELECT * INTO STRICT use_case FROM embedline.use_case WHERE id = use_case_id;
    SELECT * INTO STRICT active FROM embedline.model_version m
        WHERE m.use_case = use_case_id AND m.state = 'active';
    query := format(
        'SELECT v.key, v.unit, v.span, i.data, r.link, r.tags, v.embedding,
                p.prediction, p.score, l.label, r.event_time, r.environment,
                %1$s AS model_version, v.embedded_at
         FROM embedline.%2$I v
         LEFT JOIN embedline.record r
                ON r.use_case = %3$s AND r.key = v.key
         LEFT JOIN embedline.input i
                ON i.model_version = %4$s AND i.key = v.key
         LEFT JOIN embedline.prediction p
                ON p.use_case = %3$s AND p.key = v.key AND p.unit = v.unit
               AND p.model_version = %5$s
         LEFT JOIN embedline.label l
                ON l.use_case = %3$s AND l.key = v.key AND l.unit = v.unit',
        active.version, active.table_name, use_case_id, active.id,
        CASE WHEN from_source THEN 0 ELSE active.id END);
    comment := format(
        'Use case %s: one row per vector of model version %s, with its record, prediction and label. '
        'To search: ORDER BY embedding %s <vector> LIMIT k, or embeddings.nearest(%L, <vector>, k).',
        use_case.name, active.version, embedline.distance_operator(active.distance), use_case.name);
    IF use_case.view_definition = query || E'\n-- ' || comment
       AND to_regclass(format('embeddings.%I', use_case.name)) IS NOT NULL THEN
        RETURN;
    END IF;
    PERFORM embedline.replace_view(use_case.name, query);
    EXECUTE format('COMMENT ON VIEW embeddings.%I IS %L', use_case.name, comment);
    UPDATE embedline.use_case SET view_definition = query || E'\n-- ' || comment
        WHERE id = use_case_id;
END
$$;

CREATE OR REPLACE FUNCTION embedline.grant_on_view(
    name text, columns text, privilege text, grantee oid, grantable boolean)
RETURNS text
LANGUAGE sql STABLE
SET search_path FROM CURRENT
AS $$
    SELECT format('GRANT %s %s ON embeddings.%I TO %s', privilege, columns, name,
                  CASE grantee WHEN 0 THEN 'PUBLIC' ELSE grantee::regrole::text END)
           || CASE WHEN grantable THEN ' WITH GRANT OPTION' ELSE '' END
$$;

CREATE OR REPLACE FUNCTION embedline.replace_view(name text, query text)
RETURNS void
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    view      regclass;
    remade    text[];
    statement text;
BEGIN
    EXECUTE format('CREATE OR REPLACE VIEW embeddings.%I AS %s', name, query);
EXCEPTION WHEN invalid_table_definition OR datatype_mismatch THEN
    view := format('embeddings.%I', name)::regclass;
    SELECT array_agg(s) INTO remade FROM (
        SELECT format('ALTER VIEW embeddings.%I SET (%s)', name, array_to_string(reloptions, ', '))
          FROM pg_class WHERE oid = view AND reloptions IS NOT NULL
        UNION ALL
        SELECT embedline.grant_on_view(name, '', a.privilege_type, a.grantee, a.is_grantable)
          FROM pg_class c, aclexplode(c.relacl) a
         WHERE c.oid = view AND a.grantee <> c.relowner
        UNION ALL
        SELECT embedline.grant_on_view(
                   name, format('(%I)', c.attname), a.privilege_type, a.grantee, a.is_grantable)
          FROM pg_attribute c, aclexplode(c.attacl) a WHERE c.attrelid = view
    ) AS made (s);
    EXECUTE format('DROP VIEW embeddings.%I', name);
    EXECUTE format('CREATE VIEW embeddings.%I AS %s', name, query);
    FOREACH statement IN ARRAY coalesce(remade, '{}') LOOP
        EXECUTE statement;
    END LOOP;
END
$$;
