-- Who asks: the role that was set, else the one that logged in. Neither can be forged;
-- current_user is the owner, where a function runs with its owner's rights.
CREATE OR REPLACE FUNCTION embedline.asker()
RETURNS name
LANGUAGE sql STABLE PARALLEL RESTRICTED
RETURN CASE current_setting('role') WHEN 'none' THEN session_user
       ELSE current_setting('role')::name END;

-- Who may read the table of all records may see all of them. Both are asked: a view that
-- a function of somebody else's reads shows no more than either may see.
CREATE OR REPLACE FUNCTION embedline.sees_all()
RETURNS boolean
LANGUAGE sql STABLE PARALLEL RESTRICTED
RETURN has_table_privilege(current_user, 'embedline.record'::regclass, 'SELECT')
   AND has_table_privilege(embedline.asker(), 'embedline.record'::regclass, 'SELECT');

CREATE OR REPLACE VIEW embedline.my_tenant WITH (security_barrier) AS
SELECT t.use_case, t.tenant
FROM embedline.tenant_reader t
JOIN pg_catalog.pg_roles r ON r.rolname = t.role
WHERE (pg_has_role(current_user, r.oid, 'USAGE')
       OR has_table_privilege(current_user, 'embedline.record'::regclass, 'SELECT'))
  AND (pg_has_role(embedline.asker(), r.oid, 'USAGE')
       OR has_table_privilege(embedline.asker(), 'embedline.record'::regclass, 'SELECT'));
COMMENT ON VIEW embedline.my_tenant IS 'The tenants that were granted to whoever asks';
COMMENT ON COLUMN embedline.my_tenant.use_case IS 'use_case.id; null: in every use case';
COMMENT ON COLUMN embedline.my_tenant.tenant IS 'null: every tenant';

CREATE OR REPLACE VIEW embedline.my_use_case WITH (security_barrier) AS
SELECT u.id AS use_case,
       NOT u.tenanted
       OR (SELECT embedline.sees_all())
       OR EXISTS (SELECT FROM embedline.my_tenant t
                   WHERE t.tenant IS NULL AND (t.use_case IS NULL OR t.use_case = u.id)) AS whole,
       ARRAY(SELECT t.tenant FROM embedline.my_tenant t WHERE t.use_case IS NULL OR t.use_case = u.id) AS tenants
FROM embedline.use_case u;
COMMENT ON VIEW embedline.my_use_case IS 'What of each use case whoever asks may see';
COMMENT ON COLUMN embedline.my_use_case.use_case IS 'use_case.id';
COMMENT ON COLUMN embedline.my_use_case.whole IS 'all of its records, and so what is told of them together, as counts';
COMMENT ON COLUMN embedline.my_use_case.tenants IS 'else those of these tenants';

-- What a query over the records `record` of a use case must have in its WHERE, so that
-- whoever asks sees those of his tenants; null where its records belong to none. What
-- is asked of roles is asked once a query.
CREATE OR REPLACE FUNCTION embedline.tenant_filter(use_case_id int, record text)
RETURNS text
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF NOT (SELECT u.tenanted FROM embedline.use_case u WHERE u.id = use_case_id) THEN
        RETURN NULL;
    END IF;
    RETURN format(
        '((SELECT embedline.sees_all() OR EXISTS (SELECT FROM embedline.my_tenant t
             WHERE t.tenant IS NULL AND (t.use_case IS NULL OR t.use_case = %1$s)))
          OR %2$I.tenant = ANY (ARRAY(SELECT t.tenant FROM embedline.my_tenant t
             WHERE t.use_case IS NULL OR t.use_case = %1$s)))', use_case_id, record);
END
$$;

-- Counts of a run tell of records of all tenants.
DROP POLICY IF EXISTS tenants ON embedline.run;
CREATE POLICY tenants ON embedline.run USING (
    (SELECT NOT u.tenanted FROM embedline.use_case u WHERE u.id = run.use_case)
    OR embedline.sees_all()
    OR EXISTS (SELECT FROM embedline.my_tenant t
                WHERE t.tenant IS NULL AND (t.use_case IS NULL OR t.use_case = run.use_case)));

CREATE OR REPLACE FUNCTION embedline.use_case_named(use_case text)
RETURNS int
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    found int := (SELECT u.id FROM embedline.use_case u WHERE u.name = use_case);
BEGIN
    IF use_case IS NOT NULL AND found IS NULL THEN
        RAISE EXCEPTION 'the store has no use case %', quote_literal(use_case)
            USING ERRCODE = 'undefined_object', HINT = (
                SELECT 'valid: ' || string_agg(u.name, ', ' ORDER BY u.name) FROM embedline.use_case u);
    END IF;
    RETURN found;
END
$$;

CREATE OR REPLACE FUNCTION embedline.grant_tenant(role name, tenant text, use_case text DEFAULT NULL)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF to_regrole(quote_ident(role)) IS NULL THEN
        RAISE EXCEPTION 'role % does not exist', quote_literal(role)
            USING ERRCODE = 'undefined_object', HINT = 'CREATE ROLE, and then grant it the tenant';
    END IF;
    INSERT INTO embedline.tenant_reader (role, tenant, use_case)
        VALUES (grant_tenant.role, grant_tenant.tenant, embedline.use_case_named(grant_tenant.use_case))
        ON CONFLICT DO NOTHING;
END
$$;
COMMENT ON FUNCTION embedline.grant_tenant(name, text, text) IS
    'Lets a role, and who has it, see the records of a tenant (null: of every tenant) in a use case (null: in all '
    'whose file names source.tenant)';

CREATE OR REPLACE FUNCTION embedline.revoke_tenant(role name, tenant text, use_case text DEFAULT NULL)
RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    DELETE FROM embedline.tenant_reader t
     WHERE t.role = revoke_tenant.role AND t.tenant IS NOT DISTINCT FROM revoke_tenant.tenant
       AND t.use_case IS NOT DISTINCT FROM embedline.use_case_named(revoke_tenant.use_case);
    RETURN FOUND;
END
$$;
COMMENT ON FUNCTION embedline.revoke_tenant(name, text, text) IS
    'Takes back what embedline.grant_tenant has given with the same arguments; false where there was nothing';

-- The statements that give objects of the schemas `embedline` and `embeddings` to their
-- owner, those first that are not his yet.
CREATE OR REPLACE FUNCTION embedline.ownership(owner text)
RETURNS SETOF text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT format('ALTER SCHEMA %I OWNER TO %I', nspname, owner)
      FROM pg_namespace
     WHERE nspname IN ('embedline', 'embeddings') AND nspowner IS DISTINCT FROM to_regrole(quote_ident(owner))
    UNION ALL
    SELECT format('ALTER %s %I.%I OWNER TO %I',
                  CASE relkind WHEN 'v' THEN 'VIEW' WHEN 'm' THEN 'MATERIALIZED VIEW' WHEN 'c' THEN 'TYPE'
                       ELSE 'TABLE' END, nspname, relname, owner)
      FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
     WHERE nspname IN ('embedline', 'embeddings') AND relkind IN ('r', 'p', 'v', 'm', 'c')
       AND relowner IS DISTINCT FROM to_regrole(quote_ident(owner))
    UNION ALL
    SELECT format('ALTER ROUTINE %s OWNER TO %I', p.oid::regprocedure, owner)
      FROM pg_proc p JOIN pg_namespace n ON n.oid = pronamespace
     WHERE nspname IN ('embedline', 'embeddings') AND proowner IS DISTINCT FROM to_regrole(quote_ident(owner))
$$;

-- The statements that make three roles and give each its rights; those that would
-- change nothing are left out where they take more than the owner's own right.
CREATE OR REPLACE FUNCTION embedline.rights(owner text, writer text, reader text)
RETURNS SETOF text
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    owner_id oid := to_regrole(quote_ident(owner));
    is_super boolean := (SELECT rolsuper FROM pg_roles WHERE rolname = current_user);
BEGIN
    RETURN QUERY SELECT format('CREATE ROLE %I NOLOGIN', r)
        FROM unnest(ARRAY[owner, writer, reader]) AS r WHERE to_regrole(quote_ident(r)) IS NULL;
    IF NOT is_super AND (owner_id IS NULL OR NOT pg_has_role(current_user, owner_id, 'USAGE')) THEN
        RETURN NEXT format('GRANT %I TO %I', owner, current_user);
    END IF;
    -- an owner of schemas must be able to create them
    IF owner_id IS NULL OR NOT has_database_privilege(owner_id, current_database(), 'CREATE') THEN
        RETURN NEXT format('GRANT CREATE ON DATABASE %I TO %I', current_database(), owner);
    END IF;
    RETURN QUERY SELECT format('GRANT CONNECT ON DATABASE %I TO %I', current_database(), r)
        FROM unnest(ARRAY[owner, writer, reader]) AS r
        WHERE NOT coalesce(has_database_privilege(to_regrole(quote_ident(r)), current_database(), 'CONNECT'),
                           has_database_privilege('public', current_database(), 'CONNECT'));
    IF NOT coalesce(has_database_privilege(to_regrole(quote_ident(writer)), current_database(), 'TEMPORARY'),
                    has_database_privilege('public', current_database(), 'TEMPORARY')) THEN
        RETURN NEXT format('GRANT TEMPORARY ON DATABASE %I TO %I', current_database(), writer);
    END IF;
    RETURN QUERY SELECT format('GRANT USAGE ON SCHEMA %I TO %I', 'pgvector', r)
        FROM unnest(ARRAY[owner, writer, reader]) AS r
        WHERE NOT coalesce(has_schema_privilege(to_regrole(quote_ident(r)), 'pgvector', 'USAGE'),
                           has_schema_privilege('public', 'pgvector', 'USAGE'));
    RETURN QUERY SELECT * FROM embedline.ownership(owner);
    -- roles that others take the place of, by another --prefix
    RETURN QUERY SELECT format(s, r.name)
        FROM embedline.role r JOIN pg_roles p ON p.rolname = r.name
       CROSS JOIN unnest(ARRAY[
           'REVOKE ALL ON ALL TABLES IN SCHEMA embedline, embeddings FROM %I',
           'REVOKE ALL ON ALL ROUTINES IN SCHEMA embedline, embeddings FROM %I',
           'REVOKE ALL ON SCHEMA embedline, embeddings FROM %I']) AS s
       WHERE r.name NOT IN (owner, writer, reader);
    RETURN QUERY SELECT format(s, owner, writer, reader) FROM unnest(ARRAY[
        'REVOKE ALL ON SCHEMA embedline, embeddings FROM PUBLIC',
        'GRANT USAGE ON SCHEMA embedline, embeddings TO %2$I, %3$I',
        'GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA embedline TO %2$I',
        -- these say who may do what, or are run by functions with the owner's rights
        'REVOKE INSERT, UPDATE, DELETE ON embedline.migration, embedline.role, embedline.tenant_reader,'
            ' embedline.view, embedline.my_tenant FROM %2$I',
        'GRANT SELECT ON ALL TABLES IN SCHEMA embeddings TO %2$I, %3$I',
        'GRANT SELECT ON embedline.status, embedline.index_status, embedline.class_probability, embedline.run,'
            ' embedline.monitor, embedline.monitor_history, embedline.monitor_alarms, embedline.confusion,'
            ' embedline.label_coverage, embedline.review, embedline.map, embedline.my_tenant, embedline.use_case, embedline.model_version,'
            ' embedline.migration TO %3$I',
        'REVOKE EXECUTE ON ALL ROUTINES IN SCHEMA embedline FROM PUBLIC',
        'GRANT EXECUTE ON ALL ROUTINES IN SCHEMA embedline TO %2$I',
        -- the views ask these as whoever reads them
        'GRANT EXECUTE ON FUNCTION embedline.asker(), embedline.sees_all() TO PUBLIC',
        'GRANT EXECUTE ON ALL ROUTINES IN SCHEMA embeddings TO %2$I, %3$I',
        'ALTER DEFAULT PRIVILEGES FOR ROLE %1$I IN SCHEMA embedline'
            ' GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO %2$I',
        'ALTER DEFAULT PRIVILEGES FOR ROLE %1$I IN SCHEMA embeddings GRANT SELECT ON TABLES TO %2$I, %3$I'
    ]) AS s;
END
$$;
