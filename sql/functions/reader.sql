-- The search functions run as the store's owner, so that who asks needs no right in the
-- machine room: SELECT on the view of a use case is the right to search it.

-- Who asks: within them current_user is the owner.
CREATE OR REPLACE FUNCTION embedline.reader()
RETURNS text
LANGUAGE sql STABLE
RETURN CASE current_setting('role') WHEN 'none' THEN session_user::text ELSE current_setting('role') END;

-- The model version that a question is asked of, where who asks may read it. All questions
-- begin here. More that a reader may not see, some of the records, is left out by
-- embedline.selection.
CREATE OR REPLACE FUNCTION embedline.asked(use_case text, feature text, model_version int DEFAULT NULL)
RETURNS embedline.model_version
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    version embedline.model_version;
    view    text;
BEGIN
    SELECT m.* INTO version
      FROM embedline.use_case u JOIN embedline.model_version m ON m.use_case = u.id
     WHERE u.name = asked.use_case AND m.state = 'active'
       AND m.feature = coalesce(asked.feature, u.features[1]);
    IF version.id IS NULL THEN
        PERFORM embedline.refuse_name(use_case, feature);
    END IF;
    view := embedline.view_of(use_case, version.feature);
    IF NOT coalesce(has_table_privilege(
        embedline.reader(), to_regclass('embeddings.' || quote_ident(view)), 'SELECT'), false)
    THEN
        RAISE EXCEPTION 'permission denied for view embeddings.%', quote_ident(view)
            USING ERRCODE = 'insufficient_privilege',
                  HINT = format('as the store''s owner: GRANT SELECT ON embeddings.%I TO %I',
                                view, embedline.reader());
    ELSIF model_version <> version.version THEN
        RAISE EXCEPTION 'the query is a vector of model version %, but version % serves % now',
            model_version, version.version, quote_literal(use_case)
            USING ERRCODE = 'object_not_in_prerequisite_state',
                  HINT = format('embed it with the model of version %s and ask again; embedline search does',
                                version.version);
    END IF;
    RETURN version;
END
$$;

-- Of a use case or a feature (null: its first one) that nothing serves; lists those there
-- are.
CREATE OR REPLACE FUNCTION embedline.refuse_name(use_case text, feature text)
RETURNS void
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    valid text := (
        SELECT string_agg(m.feature, ', ' ORDER BY m.feature)
          FROM embedline.model_version m JOIN embedline.use_case u ON u.id = m.use_case
         WHERE u.name = refuse_name.use_case AND m.state = 'active');
BEGIN
    IF valid IS NOT NULL THEN
        RAISE EXCEPTION 'use case % has no feature %', quote_literal(use_case), quote_nullable(feature)
            USING ERRCODE = 'undefined_object', HINT = 'valid: ' || valid;
    END IF;
    RAISE EXCEPTION 'no use case % with vectors', quote_nullable(use_case)
        USING ERRCODE = 'undefined_object',
              HINT = coalesce('valid: ' || (
                  SELECT string_agg(DISTINCT u.name, ', ' ORDER BY u.name)
                    FROM embedline.use_case u JOIN embedline.model_version m
                      ON m.use_case = u.id AND m.state = 'active'), 'none has run yet');
END
$$;

-- A STABLE function reads rows by the calling query's snapshot, but finds relations as
-- they are by now.
CREATE OR REPLACE FUNCTION embedline.refuse_dropped(version embedline.model_version)
RETURNS void
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF to_regclass(format('embedline.%I', version.table_name)) IS NOT NULL THEN
        RETURN;
    END IF;
    RAISE EXCEPTION 'model version % of % was dropped while it was being asked',
        version.version, quote_literal((SELECT name FROM embedline.use_case WHERE id = version.use_case))
        USING ERRCODE = 'object_not_in_prerequisite_state',
              HINT = 'another version serves by now: ask again';
END
$$;
