"""What the demo ends with: answers, and the SQL that gives them."""

from __future__ import annotations

from typing import LiteralString

from rich.console import Console
from rich.markup import escape
from rich.syntax import Syntax
from rich.table import Table

from embedding_tasks.connections import Connection

QUESTIONS: list[tuple[str, LiteralString]] = [
    (
        "Coverage and backlog",
        """\
SELECT use_case, wanted, stored, round(coverage::numeric, 4) AS coverage,
       pending, dead, last_run
FROM embedline.status ORDER BY use_case""",
    ),
    (
        "By day: records, labels so far, accuracy of the predictions",
        """\
SELECT event_time::date AS day, min(environment) AS environment,
       count(*) AS records, count(label) AS labelled,
       round(avg((prediction = label)::int), 3) AS accuracy
FROM embeddings.tweets GROUP BY 1 ORDER BY 1""",
    ),
    (
        "The surest wrong prediction, and its five nearest neighbours",
        """\
WITH wrong AS (SELECT key, prediction, score, label, data FROM embeddings.tweets
               WHERE prediction <> label ORDER BY score DESC, key LIMIT 1)
SELECT key, 0 AS distance, prediction, round(score::numeric, 3) AS score, label,
       left(data, 50) AS text FROM wrong
UNION ALL
SELECT n.key, round(n.distance::numeric, 4), n.prediction,
       round(n.score::numeric, 3), n.label, left(n.data, 50)
FROM wrong, embeddings.neighbors('tweets', wrong.key, 5) n
ORDER BY distance""",
    ),
    (
        "Accuracy so far, beside what the model was trained on",
        """\
SELECT environment, count(*) AS records, count(label) AS labelled,
       round(avg((prediction = label)::int), 3) AS accuracy
FROM embeddings.tweets GROUP BY 1 ORDER BY 1""",
    ),
    (
        "Entities: words the tagger and the annotators disagree on, in their context",
        """\
SELECT key, unit, text, prediction, round(score::numeric, 2) AS score, label,
       context
FROM embeddings.entities WHERE environment = 'production' AND prediction <> label
ORDER BY score DESC, key, unit LIMIT 5""",
    ),
    (
        "Entities: a word, and the words that mean most nearly the same here",
        """\
WITH word AS (SELECT key, unit, text FROM embeddings.entities
              WHERE prediction = 'B-geo-loc' AND label = 'B-geo-loc'
              ORDER BY score DESC, key LIMIT 1)
SELECT word.text AS word, n.text AS near, round(n.distance::numeric, 4) AS distance,
       n.prediction, n.label, left(n.data, 40) AS sentence
FROM word, embeddings.neighbors('entities', word.key, 5, word.unit) n
ORDER BY n.distance""",
    ),
    (
        "Digits: the classes of production, and how well each is read",
        """\
SELECT prediction, count(*) AS scans, count(label) AS labelled,
       round(avg((prediction = label)::int), 3) AS precision,
       round(avg(score)::numeric, 3) AS score
FROM embeddings.digits WHERE environment = 'production' GROUP BY 1 ORDER BY 1""",
    ),
    (
        "Digits: the surest misreading, and what it looks like",
        """\
WITH wrong AS (SELECT key, prediction, label, link FROM embeddings.digits
               WHERE environment = 'production' AND prediction <> label
               ORDER BY score DESC LIMIT 1)
SELECT wrong.link AS scan, wrong.prediction AS read, wrong.label AS truth,
       n.key AS near, round(n.distance::numeric, 4) AS distance, n.prediction, n.label
FROM wrong, embeddings.neighbors('digits', wrong.key, 5) n ORDER BY n.distance""",
    ),
    (
        "Monitoring: what has drifted, since when, and how far. From 20 March on the"
        " digits' scanner is out of focus; the tweets change topics along the way",
        """\
SELECT use_case, metric, since, raised, round(value::numeric, 3) AS value,
       round(low::numeric, 3) AS low, round(high::numeric, 3) AS high
FROM embedline.monitor_alarms ORDER BY use_case, metric""",
    ),
    (
        "Digits, day by day: none of the days before is an alarm",
        """\
SELECT last_day AS day, rows, round(value::numeric, 3) AS moved,
       round(greatest(least, noise)::numeric, 3) AS usual_to, state
FROM embedline.monitor_history
WHERE use_case = 'digits' AND metric = 'centroid' ORDER BY 1""",
    ),
    (
        "Digits: labels that look wrong. Of the sevens of production one in seven was"
        " labelled 1 on purpose",
        """\
SELECT rank, link AS scan, label, suggested_label AS suggested, prediction AS read,
       round(score::numeric, 3) AS score
FROM embedline.review WHERE use_case = 'digits' AND kind = 'label'
ORDER BY rank LIMIT 8""",
    ),
]

NEXT = """
What next
  make airflow                      the Airflow UI with these DAGs, until Ctrl-C
  make psql                         the store, in psql: \\d embeddings.tweets
  .venv/bin/embedline search tweets "delayed flight" -k 5
  .venv/bin/embedline monitor digits --html digits.html
  .venv/bin/embedline status
  a use case of your own: README.md, "A use case of your own in five minutes"
"""


def show(console: Console, store: Connection) -> None:
    for title, question in QUESTIONS:
        console.print(f"\n[bold]{title}[/bold]")
        console.print(Syntax(question, "sql", background_color="default"))
        cursor = store.execute(question)
        described = cursor.description or []
        table = Table(*(c.name for c in described), box=None, pad_edge=False)
        for row in cursor:
            table.add_row(*("" if v is None else escape(str(v)) for v in row))
        console.print(table)
    console.print(NEXT, highlight=False, markup=False)
