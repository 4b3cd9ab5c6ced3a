-- Made anew by another name, with what lies beside each vector.
DROP FUNCTION IF EXISTS embedline.renew_scan_serving(), embedline.scans_of_serving(),
    embedline.scan_serving(int, pgvector.vector, bigint);
