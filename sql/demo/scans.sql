-- Handwritten digits as images, and what a person has read in them.
CREATE TABLE public.scans (
    scan_id    bigint PRIMARY KEY,
    png        bytea NOT NULL,
    file       text NOT NULL,
    digit      text,
    split      text NOT NULL,
    scanned_at timestamptz NOT NULL
);
