-- Filters: one jsonb object, whose values enter a statement as quoted literals only.

CREATE OR REPLACE FUNCTION embedline.refuse_filter(said text)
RETURNS void
LANGUAGE plpgsql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RAISE EXCEPTION '%', said
        USING ERRCODE = 'invalid_parameter_value', HINT =
            'valid: {"prediction": "a" or ["a", "b", null], "label": …, "environment": …, "key": …: each one value '
            'or a list; "misclassified": true or false; "labelled": true or false; "score": [least, most]; '
            '"event_time": [since, until], until excluded; either end may be null; "tags": {"tag": value, …}}';
END
$$;

-- The values of a text column that a filter names.
CREATE OR REPLACE FUNCTION embedline.filter_values(name text, value jsonb)
RETURNS text[]
LANGUAGE plpgsql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF jsonb_typeof(value) <> 'array' THEN
        value := jsonb_build_array(value);
    END IF;
    IF jsonb_path_exists(value, 'strict $[*] ? (@.type() == "object" || @.type() == "array")') THEN
        PERFORM embedline.refuse_filter(format('filter %s takes a value or a list of values, not %s', name, value));
    END IF;
    RETURN ARRAY(SELECT jsonb_array_elements_text(value));
END
$$;

-- By the first 100 characters, which the index has.
CREATE OR REPLACE FUNCTION embedline.text_condition(col text, wanted text[])
RETURNS text
LANGUAGE plpgsql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    given     text[] := array_remove(wanted, NULL);
    condition text := format('left(%s, 100) = ANY (%L::text[])', col,
                             ARRAY(SELECT DISTINCT left(g, 100) FROM unnest(given) g));
BEGIN
    IF EXISTS (SELECT FROM unnest(given) g WHERE length(g) >= 100) THEN
        condition := format('(%s AND %s = ANY (%L::text[]))', condition, col, given);
    END IF;
    IF cardinality(given) = cardinality(wanted) THEN
        RETURN condition;
    ELSIF cardinality(given) = 0 THEN
        RETURN format('%s IS NULL', col);
    END IF;
    RETURN format('(%s OR %s IS NULL)', condition, col);
END
$$;

-- An end of a range as what a statement has, null where it is open. A session's `TimeZone`
-- and `DateStyle` have no say: a time without a zone is UTC, and 01/02/2026 is none.
CREATE OR REPLACE FUNCTION embedline.range_end(name text, given jsonb)
RETURNS text
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
SET timezone = 'UTC'
SET datestyle = 'ISO, YMD'
AS $$
BEGIN
    IF name = 'score' THEN
        PERFORM (given #>> '{}')::float8;
        RETURN format('%L::float8', given #>> '{}');
    END IF;
    RETURN format('%L::timestamptz', (given #>> '{}')::timestamptz);
EXCEPTION WHEN data_exception THEN
    PERFORM embedline.refuse_filter(format('filter %s: %s is no %s', name, given, CASE name WHEN 'score' THEN
        'number' ELSE 'time, as "2026-03-01" or "2026-03-01T12:00+01:00" (without a zone it is UTC)' END));
END
$$;

CREATE OR REPLACE FUNCTION embedline.range_condition(name text, value jsonb, col text, upper_operator text)
RETURNS text
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF (CASE jsonb_typeof(value) WHEN 'array' THEN jsonb_array_length(value) END) IS DISTINCT FROM 2 THEN
        PERFORM embedline.refuse_filter(format('filter %s takes two ends in a list, not %s', name, value));
    END IF;
    RETURN concat_ws(' AND ', format('%s IS NOT NULL', col),
        CASE WHEN value ->> 0 IS NOT NULL THEN format('%s >= %s', col, embedline.range_end(name, value -> 0)) END,
        CASE WHEN value ->> 1 IS NOT NULL THEN
            format('%s %s %s', col, upper_operator, embedline.range_end(name, value -> 1)) END);
END
$$;

CREATE OR REPLACE FUNCTION embedline.boolean_condition(name text, value jsonb, condition text)
RETURNS text
LANGUAGE plpgsql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF jsonb_typeof(value) <> 'boolean' THEN
        PERFORM embedline.refuse_filter(format('filter %s takes true or false, not %s', name, value));
    END IF;
    RETURN format('(%s) = %s', condition, value);
END
$$;

-- One key of a filter as a condition over v, the vectors, r, the records, p, the
-- predictions, and l, the labels.
CREATE OR REPLACE FUNCTION embedline.condition(name text, value jsonb)
RETURNS text
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    CASE name
    WHEN 'key' THEN
        RETURN format('v.key = ANY (%L::text[])', embedline.filter_values(name, value));
    WHEN 'prediction' THEN
        RETURN embedline.text_condition('p.prediction', embedline.filter_values(name, value));
    WHEN 'label' THEN
        RETURN embedline.text_condition('l.label', embedline.filter_values(name, value));
    WHEN 'environment' THEN
        RETURN embedline.text_condition('r.environment', embedline.filter_values(name, value));
    WHEN 'score' THEN
        RETURN embedline.range_condition(name, value, 'p.score', '<=');
    WHEN 'event_time' THEN
        RETURN embedline.range_condition(name, value, 'r.event_time', '<');
    WHEN 'misclassified' THEN
        RETURN embedline.boolean_condition(name, value, 'p.prediction <> l.label');
    WHEN 'labelled' THEN
        RETURN embedline.boolean_condition(name, value, 'l.label IS NOT NULL');
    WHEN 'tags' THEN
        IF jsonb_typeof(value) <> 'object' THEN
            PERFORM embedline.refuse_filter(format('filter tags takes an object, not %s', value));
        END IF;
        RETURN format('r.tags @> %L::jsonb', value);
    ELSE
        PERFORM embedline.refuse_filter(format('a filter has no key %s', quote_literal(name)));
    END CASE;
END
$$;

-- What a filter lets through, as the `FROM … WHERE …` of a statement over v, the version's
-- vectors; null: all of them. Every search takes its rows from here, and where records
-- belong to tenants only those of whoever asks. To be `counted`, which need not be exact,
-- the one side table that the conditions are about will do (measured: a third of the
-- time), as long as they do not ask for what it lacks.
CREATE OR REPLACE FUNCTION embedline.selection(
    version embedline.model_version, filter jsonb, counted boolean DEFAULT false)
RETURNS text
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    conditions text[] := '{}';
    own        text := embedline.tenant_filter(version.use_case, 'r');
    records    boolean := own IS NOT NULL OR coalesce(filter ?| '{event_time,environment,tags}', false);
    predicted  boolean := coalesce(filter ?| '{prediction,score,misclassified}', false);
    labelled   boolean := coalesce(filter ?| '{label,labelled,misclassified}', false);
    tables     text;
BEGIN
    IF filter IS NOT NULL THEN
        IF jsonb_typeof(filter) <> 'object' THEN
            PERFORM embedline.refuse_filter(format('a filter is a JSON object, not %s', filter));
        END IF;
        conditions := ARRAY(SELECT embedline.condition(f.key, f.value) FROM jsonb_each(filter) f);
    END IF;
    conditions := array_remove(conditions || own, NULL);
    IF cardinality(conditions) = 0 THEN
        RETURN NULL;
    END IF;
    IF counted AND version.unit = 'record' AND records::int + predicted::int + labelled::int = 1
       AND NOT coalesce(filter ? 'key'
                        OR jsonb_path_exists(filter - '{score,event_time}'::text[],
                                             '$.* ? (@ == null || @ == false)'), false)
    THEN
        conditions := CASE
            WHEN records THEN ARRAY[format('r.use_case = %s', version.use_case)]
            WHEN predicted THEN ARRAY[format('p.use_case = %s AND p.model_version = %s',
                                             version.use_case, embedline.predictor(version))]
            ELSE ARRAY[format('l.use_case = %s AND l.unit = 0', version.use_case)] END || conditions;
        tables := 'FROM embedline.' || CASE WHEN records THEN 'record r' WHEN predicted THEN 'prediction p'
                                            ELSE 'label l' END;
    ELSE
        tables := concat_ws(' ', embedline.everything(version),
            CASE WHEN records THEN format(
                'LEFT JOIN embedline.record r ON r.use_case = %s AND r.key = v.key', version.use_case) END,
            CASE WHEN predicted THEN format(
                'LEFT JOIN embedline.prediction p ON p.use_case = %s AND p.key = v.key AND p.unit = v.unit '
                'AND p.model_version = %s', version.use_case, embedline.predictor(version)) END,
            CASE WHEN labelled THEN embedline.label_of_unit(version) END);
    END IF;
    RETURN concat_ws(' ', tables, 'WHERE', array_to_string(conditions, ' AND '));
END
$$;

CREATE OR REPLACE FUNCTION embedline.everything(version embedline.model_version)
RETURNS text
LANGUAGE sql STABLE
RETURN format('FROM embedline.%I v', version.table_name);

-- The `model_version` of the predictions that stand beside its vectors.
CREATE OR REPLACE FUNCTION embedline.predictor(version embedline.model_version)
RETURNS int
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN (SELECT CASE WHEN u.predicted_by_source THEN 0 ELSE version.id END
              FROM embedline.use_case u WHERE u.id = version.use_case);
END
$$;
