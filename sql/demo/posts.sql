-- Posts with their words, and the named entities that annotators found in them.
CREATE TABLE public.posts (
    post_id   bigint PRIMARY KEY,
    words     text[] NOT NULL,
    tags      text[],
    split     text NOT NULL,
    posted_at timestamptz NOT NULL
);
