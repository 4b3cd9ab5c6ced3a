-- Made anew by another name, with what lies beside each vector.
DROP FUNCTION IF EXISTS embedline.renew_scan_serving(), embedline.scans_of_serving(),
    embedline.scan_serving(int, pgvector.vector, bigint);

COMMENT ON DOMAIN embedline.pgvector_is_loaded IS
    'no column is of it: a dump makes it before the functions, and with it loads pgvector, whose settings they name';
