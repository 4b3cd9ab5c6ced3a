from __future__ import annotations

from datetime import timedelta

import pytest

from embedding_tasks.connections import Connection
from embedding_tasks.demo import corpora, tweets
from embedding_tasks.demo.tour import parse_rows
from embedding_tasks.errors import ConfigError


@pytest.fixture
def production(db: Connection) -> Connection:
    assert tweets.rows_made(db) is None
    assert tweets.create(db, 2100) == 2100
    return db


def test_every_day_has_its_share_of_every_sentiment(production: Connection) -> None:
    rows = production.execute(
        "SELECT posted_at::date, count(*), count(DISTINCT sentiment)"
        " FROM tweets LEFT JOIN future.tweet_labels USING (tweet_id)"
        " GROUP BY 1 ORDER BY 1"
    ).fetchall()
    assert [count for _, count, _ in rows] == [100] * tweets.DAYS_AT_FIRST
    everything = production.execute(
        "SELECT posted_at::date, count(DISTINCT sentiment) FROM ("
        " SELECT * FROM tweets UNION ALL SELECT * FROM future.tweets) t JOIN ("
        " SELECT * FROM tweet_labels UNION ALL SELECT * FROM future.tweet_labels) l"
        " USING (tweet_id) GROUP BY 1"
    ).fetchall()
    assert len(everything) == tweets.DAYS
    assert {sentiments for _, sentiments in everything} == {3}


def test_what_a_model_is_trained_on_is_labelled_and_the_rest_later(
    production: Connection,
) -> None:
    rows = production.execute(
        "SELECT split, count(*) = count(sentiment),"
        " max(labeled_at - posted_at) FROM tweets LEFT JOIN tweet_labels"
        " USING (tweet_id) GROUP BY 1 ORDER BY 1"
    ).fetchall()
    late = timedelta(days=tweets.LABEL_DELAY_DAYS)
    assert rows == [
        ("production", False, late),
        ("training", True, timedelta(0)),
        ("validation", True, timedelta(0)),
    ]


def test_a_day_brings_news_edits_deletions_and_labels_and_passes_once(
    production: Connection,
) -> None:
    day = tweets.days_after_first()[0]
    happened = tweets.pass_day(production, day)
    assert happened["new"] == 100
    assert all(count > 0 for count in happened.values()), happened
    count = "SELECT count(*) FROM tweets"
    before = production.execute(count).fetchone()
    assert tweets.pass_day(production, day) == happened
    assert production.execute(count).fetchone() == before


def test_all_of_the_corpus_is_real_text(production: Connection) -> None:
    corpus = corpora.tweets()
    assert len(corpus) == tweets.CORPUS_ROWS
    assert corpus["text"].str.len().min() > 5
    assert set(corpus["sentiment"]) == {"negative", "neutral", "positive"}


@pytest.mark.parametrize("text", ["few", "-1", "10", "1e4", ""])
def test_a_number_of_rows_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="valid: a number from 500, or 'all'"):
        parse_rows(text)
    assert parse_rows("all") is None
