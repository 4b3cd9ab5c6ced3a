CREATE OR REPLACE FUNCTION embedline.flags(version embedline.model_version)
RETURNS SETOF embedline.flag
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN QUERY EXECUTE format(
        'SELECT f.* FROM embedline.flag f JOIN embedline.%I v ON v.key = f.key AND v.unit = f.unit
          WHERE f.model_version = %s AND v.embedded_at <= f.found_at',
        version.table_name, version.id);
END
$$;
COMMENT ON FUNCTION embedline.flags(embedline.model_version) IS
    'The rows of embedline.flag of one model version whose vectors are still those that were looked at: '
    'SELECT f.* FROM embedline.model_version m, embedline.flags(m) f WHERE m.state = ''active''';
