-- The demo's source: `public` is what has happened, `future` what has not yet.
CREATE TABLE public.tweets (
    tweet_id   bigint PRIMARY KEY,
    text       text,
    split      text NOT NULL,
    confidence real,
    posted_at  timestamptz NOT NULL
);
CREATE TABLE public.tweet_labels (
    tweet_id   bigint PRIMARY KEY,
    sentiment  text NOT NULL,
    labeled_at timestamptz NOT NULL
);
CREATE SCHEMA future;
CREATE TABLE future.tweets (LIKE public.tweets);
CREATE TABLE future.tweet_labels (LIKE public.tweet_labels);
CREATE TABLE future.day (day date PRIMARY KEY, what jsonb NOT NULL);
CREATE TABLE future.made (rows int NOT NULL);
