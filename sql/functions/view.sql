-- A stretch of a text with what is around it.
CREATE OR REPLACE FUNCTION embeddings.context(data text, span int4range, characters int DEFAULT 40)
RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE WHEN lower(span) > characters THEN '…' ELSE '' END
    || substr(data, greatest(lower(span) - characters, 0) + 1, least(lower(span), characters))
    || '[' || substr(data, lower(span) + 1, upper(span) - lower(span)) || ']'
    || substr(data, upper(span) + 1, characters)
    || CASE WHEN length(data) > upper(span) + characters THEN '…' ELSE '' END;
COMMENT ON FUNCTION embeddings.context(text, int4range, int) IS
    'A stretch of a text, its `span` of characters, in brackets, among so many `characters` on either side';

-- The label of each vector, as a lateral join over `v`. Labels are those of the first
-- feature's parts of a record: another part has none.
CREATE OR REPLACE FUNCTION embedline.label_of_unit(version embedline.model_version)
RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT CASE WHEN u.labelled_unit <> replace(version.unit, 'object', 'record')
    THEN 'LEFT JOIN (SELECT NULL::text AS label) l ON true'
    ELSE CASE version.unit
    -- The number of a word, else any labelled span it lies in, of which it is the
    -- beginning when no word before it does.
    WHEN 'word' THEN format(
        'LEFT JOIN LATERAL (
            SELECT CASE WHEN l.span IS NULL THEN l.label
                        WHEN EXISTS (SELECT FROM embedline.%1$I w
                                      WHERE w.key = v.key AND w.unit < v.unit AND w.span && l.span)
                        THEN ''I-'' || l.label ELSE ''B-'' || l.label END AS label
              FROM embedline.label l
             WHERE l.use_case = %2$s AND l.key = v.key
               AND (l.span && v.span OR l.span IS NULL AND l.unit IN (v.unit, -1))
             ORDER BY l.unit = -1, l.unit LIMIT 1) l ON true', version.table_name, version.use_case)
    WHEN 'entity' THEN format(
        'LEFT JOIN LATERAL (
            SELECT l.label FROM embedline.label l
             WHERE l.use_case = %s AND l.key = v.key AND (l.span = v.span OR l.unit = -1)
             ORDER BY l.unit = -1, l.unit LIMIT 1) l ON true', version.use_case)
    ELSE format(
        'LEFT JOIN embedline.label l ON l.use_case = %s AND l.key = v.key AND l.unit = 0', version.use_case)
    END END
      FROM embedline.use_case u WHERE u.id = version.use_case
$$;

-- One feature's vectors, each with its record, prediction and label.
CREATE OR REPLACE FUNCTION embedline.feature_view(version embedline.model_version, from_source boolean)
RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT format(
        'SELECT v.key, v.unit, v.span, i.data, r.link, r.tags, v.embedding,
                p.prediction, p.score, l.label, r.event_time, r.environment,
                %1$s AS model_version, v.embedded_at%6$s
         FROM embedline.%2$I v
         LEFT JOIN embedline.record r
                ON r.use_case = %3$s AND r.key = v.key
         LEFT JOIN embedline.input i
                ON i.model_version = %4$s AND i.key = v.key
         LEFT JOIN embedline.prediction p
                ON p.use_case = %3$s AND p.key = v.key AND p.unit = v.unit
               AND p.model_version = %5$s
         %7$s%8$s',
        version.version, version.table_name, version.use_case, version.id,
        CASE WHEN from_source THEN 0 ELSE version.id END,
        CASE WHEN version.unit IN ('word', 'entity') THEN ',
                CASE WHEN upper(v.span) <= length(i.data)
                     THEN substr(i.data, lower(v.span) + 1, upper(v.span) - lower(v.span)) END AS text,
                CASE WHEN upper(v.span) <= length(i.data)
                     THEN embeddings.context(i.data, v.span) END AS context'
             WHEN version.unit = 'object' THEN ', v.box'
             WHEN version.spec #>> '{encoder,type}' = 'words' THEN ', i.unknown_words, i.truncated'
             ELSE '' END,
        embedline.label_of_unit(version),
        coalesce(E'\n         WHERE ' || embedline.tenant_filter(version.use_case, 'r'), ''))
$$;

-- The features of whole records side by side. Driven by the records: any feature may
-- lack a vector, where its own input is null.
CREATE OR REPLACE FUNCTION embedline.wide_view(use_case_id int, from_source boolean)
RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    -- none where no feature is of whole records
    SELECT CASE WHEN count(*) > 0 THEN format(
        'SELECT r.key, %1$s, r.link, r.tags, p.prediction, p.score, l.label, r.event_time, r.environment
         FROM embedline.record r %2$s
         LEFT JOIN embedline.prediction p ON p.use_case = r.use_case AND p.key = r.key AND p.unit = 0
               AND p.model_version = %3$s
         LEFT JOIN embedline.label l ON l.use_case = r.use_case AND l.key = r.key AND l.unit = 0 AND %6$s
         WHERE r.use_case = %4$s AND (%5$s)%7$s',
        string_agg(format('v%1$s.embedding AS %2$I, i%1$s.data AS %3$I',
                          n, feature || '_embedding', feature || '_data'), ', ' ORDER BY n),
        string_agg(format('LEFT JOIN embedline.%2$I v%1$s ON v%1$s.key = r.key AND v%1$s.unit = 0
         LEFT JOIN embedline.input i%1$s ON i%1$s.model_version = %3$s AND i%1$s.key = r.key',
                          n, table_name, id), ' ' ORDER BY n),
        CASE WHEN from_source THEN 0 ELSE min(id) FILTER (WHERE n = 1) END,
        use_case_id,
        string_agg(format('v%s.key IS NOT NULL', n), ' OR ' ORDER BY n),
        bool_and(labelled_unit = 'record')::text,
        coalesce(' AND ' || embedline.tenant_filter(use_case_id, 'r'), '')) END
      FROM (SELECT m.*, u.labelled_unit, row_number() OVER (ORDER BY array_position(u.features, m.feature)) AS n
              FROM embedline.use_case u JOIN embedline.model_version m ON m.use_case = u.id
             WHERE u.id = use_case_id AND m.state = 'active' AND m.feature = ANY (u.features)
               AND m.unit = 'record') AS f
$$;

-- The view's name of a feature: the use case's own where it has but one.
CREATE OR REPLACE FUNCTION embedline.view_of(use_case text, feature text)
RETURNS text
LANGUAGE sql IMMUTABLE
RETURN use_case || CASE feature WHEN 'embedding' THEN '' ELSE '__' || feature END;

CREATE OR REPLACE FUNCTION embedline.view_name(version embedline.model_version)
RETURNS text
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN (SELECT embedline.view_of(u.name, version.feature)
              FROM embedline.use_case u WHERE u.id = version.use_case);
END
$$;

-- (Re)creates the views of a use case over its active model versions. A change of
-- dimension or type cannot be a CREATE OR REPLACE: then a view is dropped and made
-- again in the same transaction, with the grants and options it had. Runs with its owner's
-- rights, and takes no text from whoever calls it.
CREATE OR REPLACE FUNCTION embedline.refresh_views(use_case_id int, from_source boolean)
RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    use_case embedline.use_case;
    active   embedline.model_version;
    wide     text;
    names    text[] := '{}';
    stale    text;
BEGIN
    UPDATE embedline.use_case SET predicted_by_source = from_source
     WHERE id = use_case_id AND predicted_by_source <> from_source;
    SELECT * INTO STRICT use_case FROM embedline.use_case WHERE id = use_case_id;
    FOR active IN SELECT * FROM embedline.model_version m
        WHERE m.use_case = use_case_id AND m.state = 'active' AND m.feature = ANY (use_case.features)
    LOOP
        names := names || embedline.view_name(active);
        PERFORM embedline.set_view(
            use_case_id, embedline.view_name(active), embedline.feature_view(active, from_source),
            format('Use case %s: one row per %s of model version %s, with its record, prediction and label. '
                   'To search: ORDER BY embedding %s <vector> LIMIT k, or embeddings.nearest(%L, <vector>, k%s).',
                   use_case.name, active.unit, active.version,
                   embedline.distance_sign(active.distance), use_case.name,
                   CASE active.feature WHEN 'embedding' THEN '' ELSE format(', feature => %L', active.feature) END));
    END LOOP;
    wide := embedline.wide_view(use_case_id, from_source);
    IF use_case.features <> '{embedding}' AND wide IS NOT NULL THEN
        names := names || use_case.name;
        PERFORM embedline.set_view(
            use_case_id, use_case.name, wide,
            format('Use case %s: one row per record, its vectors side by side. To search one of them: '
                   'embeddings.nearest(%L, <vector>, k, feature => …).', use_case.name, use_case.name));
    END IF;
    FOR stale IN DELETE FROM embedline.view v
        WHERE v.use_case = use_case_id AND v.name <> ALL (names) RETURNING v.name
    LOOP
        EXECUTE format('DROP VIEW IF EXISTS embeddings.%I', stale);
    END LOOP;
    PERFORM embedline.renew_nearest_serving();
END
$$;

-- What a column of a use case's view holds.
CREATE OR REPLACE FUNCTION embedline.column_comment(name text)
RETURNS text
LANGUAGE sql IMMUTABLE
RETURN CASE name
    WHEN 'key' THEN 'the record''s key as text; of several columns, a JSON list of texts'
    WHEN 'unit' THEN '0: the whole record; else the number of its word, entity or object'
    WHEN 'span' THEN 'of words and entities: characters of the input, from 0'
    WHEN 'box' THEN 'of objects: xmin, ymin, xmax, ymax in pixels'
    WHEN 'text' THEN 'of words and entities: the characters of the input that it is'
    WHEN 'context' THEN 'the text in brackets, among what is around it'
    WHEN 'data' THEN 'the input when its vector was made, as much as storage.data keeps'
    WHEN 'unknown_words' THEN 'share of the words that the encoder has no vector for'
    WHEN 'truncated' THEN 'whether the text was longer than the model takes, and was cut; null: not known'
    WHEN 'link' THEN 'where a person can see the record: source.link'
    WHEN 'tags' THEN 'columns to filter by: source.tags'
    WHEN 'embedding' THEN 'the vector, made by `model_version`'
    WHEN 'prediction' THEN 'what the model said of it'
    WHEN 'score' THEN 'how sure the model was'
    WHEN 'label' THEN 'what is true of it, as far as somebody has said'
    WHEN 'event_time' THEN 'when the record happened: source.event_time'
    WHEN 'environment' THEN 'training, production and so on: source.environment'
    WHEN 'model_version' THEN 'that serves; to a search: nearest(…, model_version => …)'
    WHEN 'embedded_at' THEN 'when the vector was written'
    ELSE CASE WHEN name LIKE '%\_embedding' THEN 'the vector of the feature '
              ELSE 'the input of the feature ' END || regexp_replace(name, '_[a-z]+$', '') END;

CREATE OR REPLACE FUNCTION embedline.comment_on_columns(view regclass)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    col name;
BEGIN
    FOR col IN SELECT a.attname FROM pg_attribute a WHERE a.attrelid = view AND a.attnum > 0 LOOP
        EXECUTE format('COMMENT ON COLUMN %s.%I IS %L', view, col, embedline.column_comment(col));
    END LOOP;
END
$$;

CREATE OR REPLACE FUNCTION embedline.set_view(use_case_id int, view_name text, query text, comment text)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    -- in one line: searches run this text, and what a writer called a feature is in it
    made text := query || E'\n-- ' || translate(comment, E'\n\r', '  ');
BEGIN
    IF to_regclass(format('embeddings.%I', view_name)) IS NOT NULL
       AND EXISTS (SELECT FROM embedline.view v WHERE v.name = view_name AND v.definition = made)
       AND NOT EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = to_regclass(format('embeddings.%I', view_name))
                       AND a.attnum > 0 AND col_description(a.attrelid, a.attnum) IS NULL)
    THEN
        RETURN;
    END IF;
    PERFORM embedline.replace_view(view_name, query);
    -- else a function in somebody's WHERE might see what the view hides from him
    IF EXISTS (SELECT FROM embedline.use_case u WHERE u.id = use_case_id AND u.tenanted) THEN
        EXECUTE format('ALTER VIEW embeddings.%I SET (security_barrier = true)', view_name);
    END IF;
    EXECUTE format('COMMENT ON VIEW embeddings.%I IS %L', view_name, comment);
    PERFORM embedline.comment_on_columns(format('embeddings.%I', view_name));
    INSERT INTO embedline.view AS v (name, use_case, definition) VALUES (view_name, use_case_id, made)
        ON CONFLICT (name) DO UPDATE SET definition = EXCLUDED.definition;
END
$$;

CREATE OR REPLACE FUNCTION embedline.grant_on_view(
    name text, columns text, privilege text, grantee oid, grantable boolean)
RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT format('GRANT %s %s ON embeddings.%I TO %s', privilege, columns, name,
                  CASE grantee WHEN 0 THEN 'PUBLIC' ELSE grantee::regrole::text END)
           || CASE WHEN grantable THEN ' WITH GRANT OPTION' ELSE '' END
$$;

CREATE OR REPLACE FUNCTION embedline.replace_view(name text, query text)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
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
        BEGIN
            EXECUTE statement;
        EXCEPTION WHEN undefined_column THEN
            NULL;  -- a right on a column that the view no longer has
        END;
    END LOOP;
END
$$;

REVOKE EXECUTE ON FUNCTION embedline.refresh_views(int, boolean) FROM PUBLIC;
