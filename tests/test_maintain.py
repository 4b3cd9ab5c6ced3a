"""Indexes of the vector tables: planned, built, measured, replaced, taken out."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import psutil
import psycopg
import pytest
from psycopg import sql

from embedding_tasks import maintenance, run
from embedding_tasks.connections import Connection, connect
from embedding_tasks.errors import ConfigError
from embedding_tasks.index_policy import Step
from embedding_tasks.local.signals import interruptible
from embedding_tasks.store import index, migrate, recall
from embedding_tasks.store.connection import open_store
from embedding_tasks.store.index import Memory, Progress
from tests.fix_indexes import fill, indexes, live, maintain, planned, records
from tests.fix_project import Project

Write = Callable[..., None]


def test_an_index_that_is_due_is_built_measured_and_used(
    indexed: Project, store: Connection
) -> None:
    assert planned(indexed, store) == [
        ("build", "60 vectors, at least 50, and no index")
    ]
    assert indexes(store) == {}
    assert maintain(indexed) == ["build"]
    name = f"hnsw_{live(store)[0].id}_cosine_m16_ef64"
    assert indexes(store) == {name: True}
    row = store.execute(
        "SELECT search, index, recall, k, ef_search, rows_measured, bytes > 0,"
        " build_seconds > 0, parameters FROM embedline.index_status"
    ).fetchone()
    options = "m=16, ef_construction=64"
    assert row == ("approximate", name, 1.0, 10, 40, 60, True, True, options)
    assert maintain(indexed) == []
    assert planned(indexed, store)[0][0] == "none"
    plan = explained(store)
    assert name in plan


def explained(store: Connection) -> str:
    with store.transaction():
        store.execute("SET LOCAL enable_seqscan = off")
        store.execute("SET LOCAL enable_sort = off")
        rows = store.execute(
            sql.SQL(
                "EXPLAIN SELECT key FROM {0} ORDER BY embedding <=>"
                " (SELECT embedding FROM {0} LIMIT 1) LIMIT 5"
            ).format(live(store)[0].table)
        )
        return "\n".join(line for (line,) in rows)


def test_few_vectors_are_searched_exactly(
    project: Project, store: Connection, write_messages: Write
) -> None:
    write_messages(range(60))
    project.run()
    assert maintain(project) == []
    ((work, why),) = planned(project, store)
    assert (work, why[:45]) == ("none", "60 vectors are searched exactly; an index fro")
    row = store.execute("SELECT search, index FROM embedline.index_status").fetchone()
    assert row == ("exact", None)


def test_an_index_waits_for_the_load_but_not_for_ever(
    indexed: Project, store: Connection, write_messages: Write
) -> None:
    write_messages(range(60, 100))
    run.sync_stage(indexed.request())
    ((work, why),) = planned(indexed, store)
    assert (work, why[:24]) == ("none", "40 records wait to be em")
    assert maintain(indexed) == []
    store.execute("UPDATE embedline.ledger SET queued_at = now() - interval '25 h'")
    assert planned(indexed, store)[0][0] == "build"
    assert maintain(indexed) == ["build"]


def test_a_trickle_does_not_hold_an_index_up(
    indexed: Project, store: Connection, write_messages: Write
) -> None:
    write_messages(range(60, 62))
    run.sync_stage(indexed.request())
    assert maintain(indexed) == ["build"]


def test_an_index_that_serves_stays_through_a_load_and_when_rows_go(
    indexed: Project, store: Connection, write_messages: Write
) -> None:
    maintain(indexed)
    before = store.execute(
        "SELECT oid FROM pg_class WHERE relname LIKE 'hnsw%'"
    ).fetchall()
    write_messages(range(60, 300))
    run.sync_stage(indexed.request())
    assert maintain(indexed) == []
    indexed.run()
    assert maintain(indexed, storage={"index": {"min_rows": 10_000}}) == []
    after = store.execute(
        "SELECT oid FROM pg_class WHERE relname LIKE 'hnsw%'"
    ).fetchall()
    assert before == after


def interrupting(step: Step, progress: Progress) -> None:
    raise KeyboardInterrupt


def slow_to_build(project: Project, store: Connection, rows: int = 20_000) -> None:
    fill(store, rows)
    project.use_case(storage={"index": {"ef_construction": 400, "m": 40}})


def test_a_build_that_is_interrupted_leaves_nothing(
    indexed: Project, store: Connection
) -> None:
    slow_to_build(indexed, store)
    with pytest.raises(KeyboardInterrupt):
        maintenance.maintain(open_store, [indexed.use_case()], interrupting)
    assert indexes(store) == {}
    assert records(store) == []
    busy = "SELECT count(*) FROM pg_stat_progress_create_index"
    assert store.execute(busy).fetchone() == (0,)


def test_ctrl_c_ends_a_build_at_once(
    indexed: Project, store: Connection, store_dsn: str
) -> None:
    slow_to_build(indexed, store)

    def press() -> None:
        busy = "SELECT FROM pg_stat_progress_create_index WHERE blocks_done > 0"
        with connect(store_dsn, role="store") as own:
            while own.execute(busy).fetchone() is None:
                time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=press)
    thread.start()
    with pytest.raises(KeyboardInterrupt), interruptible():
        maintenance.maintain(open_store, [indexed.use_case()])
    thread.join()
    assert indexes(store) == {}
    assert records(store) == []


def test_what_a_killed_build_has_left_is_taken_out_and_built_again(
    indexed: Project, store: Connection
) -> None:
    slow_to_build(indexed, store, rows=5000)

    def kill(step: Step, progress: Progress) -> None:
        store.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_progress_create_index"
        )

    with pytest.raises(Exception, match="lost the store database"):
        maintenance.maintain(open_store, [indexed.use_case()], kill)
    assert list(indexes(store).values()) == [False]
    assert [work for work, _ in planned(indexed, store)] == ["drop", "build"]
    assert maintain(indexed) == ["drop", "build"]
    assert list(indexes(store).values()) == [True]


def test_two_builders_build_once(indexed: Project, store: Connection) -> None:
    slow_to_build(indexed, store, rows=3000)
    waits = []

    def tell(step: Step, progress: Progress) -> None:
        waits.append(progress.phase)

    with ThreadPoolExecutor(2) as pool:
        case = indexed.use_case()
        work = partial(maintenance.maintain, open_store, [case], tell)
        done = [f.result() for f in [pool.submit(work), pool.submit(work)]]
    assert sorted(len(steps) for steps in done) == [0, 1]
    assert "waiting for another builder" in waits
    assert len(records(store)) == 1


def test_other_parameters_are_built_beside_the_index_that_serves(
    indexed: Project, store: Connection
) -> None:
    maintain(indexed)
    slow_to_build(indexed, store, rows=3000)
    valid = []

    def tell(step: Step, progress: Progress) -> None:
        valid.append(sum(indexes(store).values()))

    case = indexed.use_case()
    done = maintenance.maintain(open_store, [case], tell)
    assert [step.work for step in done] == ["build", "drop"]
    assert min(valid) >= 1
    (name,) = indexes(store)
    assert name.endswith("cosine_m40_ef400")
    assert maintain(indexed) == []


def test_the_recall_of_an_index_is_not_measured_by_the_one_it_replaces(
    indexed: Project, store: Connection
) -> None:
    """A search takes whichever is cheaper."""
    fill(store, 3000)
    maintain(indexed)
    options = {"min_rows": 50, "m": 32, "ef_construction": 128}
    assert maintain(indexed, storage={"index": options}) == ["build", "drop"]
    row = store.execute("SELECT index, scans FROM embedline.index_status").fetchone()
    assert row is not None
    assert row[0].endswith("m32_ef128")
    assert row[1] >= recall.QUERIES


def test_another_distance_gets_another_index(
    indexed: Project, store: Connection
) -> None:
    maintain(indexed)
    indexed.use_case(storage={"distance": "l2"})
    indexed.run()
    assert maintain(indexed) == ["build", "drop"]
    (found,) = index.existing(store, live(store)[0])
    assert found.operator_class == "vector_l2_ops"


@pytest.mark.parametrize("kind", ["vector", "halfvec"])
@pytest.mark.parametrize("distance", ["cosine", "l2", "inner_product"])
def test_every_type_and_distance_has_an_index_that_finds(
    indexed: Project, store: Connection, kind: str, distance: str
) -> None:
    indexed.use_case(storage={"type": kind, "distance": distance})
    indexed.run()
    assert maintain(indexed) in (["build"], [])
    work, rows, share = records(store)[-1]
    assert (work, rows) == ("build", 60)
    # pgvector's index of halfvec by cosine has normalized vectors, rounded to 11 bits:
    # these all but equal ones it cannot tell apart
    assert share >= (0.6 if (kind, distance) == ("halfvec", "cosine") else 1.0)
    assert list(indexes(store).values()) == [True]


def test_an_index_made_by_hand_is_kept_and_measured(
    indexed: Project, store: Connection
) -> None:
    store.execute(
        sql.SQL(
            "CREATE INDEX mine ON {} USING ivfflat (embedding vector_cosine_ops)"
            " WITH (lists = 1)"
        ).format(live(store)[0].table)
    )
    assert maintain(indexed) == ["measure"]
    assert indexes(store) == {"mine": True}
    assert records(store) == [("measure", 60, 1.0)]
    assert maintain(indexed) == []


def test_none_means_none(indexed: Project, store: Connection) -> None:
    maintain(indexed)
    assert maintain(indexed, storage={"index": {"type": "none"}}) == ["drop"]
    assert indexes(store) == {}
    assert planned(indexed, store) == [("none", "storage.index.type is none")]


def test_a_vacuum_comes_early_where_searches_are_exact(
    indexed: Project, store: Connection
) -> None:
    def share() -> str:
        row = store.execute(
            "SELECT option_value FROM pg_class, pg_options_to_table(reloptions)"
            " WHERE relname = %s AND option_name = 'autovacuum_vacuum_scale_factor'",
            [live(store)[0].table_name],
        ).fetchone()
        assert row is not None
        return str(row[0])

    shares = [share()]
    maintain(indexed)
    shares.append(share())
    assert maintain(indexed, storage={"index": {"m": 8}}) == ["build", "drop"]
    shares.append(share())
    maintain(indexed, storage={"index": {"type": "none"}})
    shares.append(share())
    assert shares == ["0.05", "0.3", "0.3", "0.05"]


def test_an_index_that_has_swollen_is_made_anew(
    indexed: Project, store: Connection
) -> None:
    """Nothing is dead any more, but of what was deleted its pages stay."""
    fill(store, 3000)
    assert maintain(indexed) == ["build"]
    version = live(store)[0]
    before = index.existing(store, version)[0].bytes
    store.execute(
        sql.SQL("DELETE FROM {} WHERE key > 'more 0 2'").format(version.table)
    )
    store.execute("SELECT pg_stat_force_next_flush()")
    store.execute(sql.SQL("VACUUM {}").format(version.table))
    ((work, why),) = planned(indexed, store)
    assert work == "reindex"
    assert "times as large as when it was built" in why
    assert maintain(indexed) == ["reindex"]
    (after,) = index.existing(store, version)
    assert after.bytes < before / 1.5
    assert maintain(indexed) == []


def test_dead_rows_have_the_index_made_anew_and_go(
    indexed: Project, store: Connection
) -> None:
    fill(store, 8000)
    store.execute("ALTER SYSTEM SET autovacuum = off")
    store.execute("SELECT pg_reload_conf()")
    try:
        maintain(indexed)
        version = live(store)[0]
        store.execute(
            sql.SQL("UPDATE {} SET embedded_at = now() WHERE key < 'more 0 3'").format(
                version.table
            )
        )
        store.execute("SELECT pg_stat_force_next_flush()")
        (work, why), *_ = planned(indexed, store)
        assert work == "reindex"
        assert "rows are dead; then a vacuum" in why
        assert maintain(indexed) == ["reindex"]
    finally:
        store.execute("ALTER SYSTEM RESET autovacuum")
        store.execute("SELECT pg_reload_conf()")
    assert maintenance.look(store, version).dead == 0
    assert [row[0] for row in records(store)] == ["build", "reindex"]
    assert maintain(indexed) == []


def test_no_timeout_of_the_role_ends_a_build(
    indexed: Project, store: Connection
) -> None:
    slow_to_build(indexed, store, rows=6000)
    store.execute(
        sql.SQL("ALTER DATABASE {} SET statement_timeout = '300ms'").format(
            sql.Identifier(store.info.dbname)
        )
    )
    with pytest.raises(psycopg.errors.QueryCanceled), open_store() as fresh:
        fresh.execute("SELECT pg_sleep(1)")
    assert maintain(indexed) == ["build"]


def test_a_build_that_gets_no_shared_memory_goes_on_alone(
    indexed: Project,
    store: Connection,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    fill(store, 20_000)
    version = live(store)[0]
    store.execute(
        sql.SQL("ALTER TABLE {} SET (parallel_workers = 2)").format(version.table)
    )
    too_much = Memory(2**40, 2**40)
    monkeypatch.setattr(index, "memory", lambda store, rows, version: too_much)
    with caplog.at_level(logging.WARNING, "embedding_tasks"):
        assert maintain(indexed) == ["build"]
    assert "built by one process alone" in caplog.text
    assert list(indexes(store).values()) == [True]


def test_a_build_has_the_memory_it_needs_up_to_what_is_allowed(
    indexed: Project, store: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = live(store)[0]
    needed = int(1.3 * 10**6 * (version.dims * 4 + 600))
    assert index.memory(store, 10**6, version).needed == needed
    monkeypatch.setenv("EMBEDLINE_INDEX_MEMORY", "100MB")
    assert index.memory(store, 10**6, version) == Memory(needed, 100 * 2**20)
    assert index.memory(store, 10, version).given == 64 * 2**20
    monkeypatch.setenv("EMBEDLINE_INDEX_MEMORY", "much")
    with pytest.raises(ConfigError, match="'much' is no size; valid: e"):
        index.memory(store, 10**6, version)


def test_a_build_in_a_container_keeps_to_its_memory(
    indexed: Project,
    store: Connection,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    machine = psutil.virtual_memory()._replace(total=2**36)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: machine)
    v2, v1 = tmp_path / "memory.max", tmp_path / "memory.limit_in_bytes"
    monkeypatch.setattr(index, "_MEMORY_LIMITS", (v2, v1))
    assert store.info.host.startswith("/")
    version = live(store)[0]
    for file, limit, given in (
        (v2, None, 2**34),  # a quarter of the machine's
        (v1, "9223372036854771712\n", 2**34),  # so it says that there is none
        (v1, "4294967296\n", 2**30),  # a quarter of the container's
        (v2, "max\n", 2**30),
        (v2, "2147483648\n", 2**29),
        (v2, "536870912\n", 2**28),  # the server itself has more
    ):
        if limit is not None:
            file.write_text(limit)
        assert index.memory(store, 10**9, version).given == given, limit
    fill(store, 100)
    assert maintain(indexed) == ["build"]
    assert store.execute("SELECT memory FROM embedline.vector_index").fetchone() == (
        2**26,
    )


@pytest.mark.parametrize(
    ("dims", "storage", "advice"),
    [
        (2000, "vector", None),
        (2001, "vector", "storage.type: halfvec"),
        (4000, "halfvec", None),
        (4096, "vector", "binary_quantize"),
        (4096, "halfvec", "binary_quantize"),
        (70_000, "halfvec", "choose another"),
    ],
)
def test_too_many_dimensions_come_with_advice(
    store: Connection, dims: int, storage: str, advice: str | None
) -> None:
    told = index.obstacle(dims, storage)
    assert (told is None) == (advice is None)
    assert (advice or "") in (told or "")
    store.execute(f"CREATE TEMP TABLE t (e {storage}({min(dims, 16_000)}))")
    statement = f"CREATE INDEX ON t USING hnsw (e {storage}_l2_ops)"
    if advice is None:
        store.execute(statement)
    else:
        with pytest.raises(psycopg.errors.ProgramLimitExceeded):
            store.execute(statement)


def test_the_command_plans_maintains_and_shows(
    indexed: Project, store: Connection, embedline: Callable[..., str]
) -> None:
    (indexed.folder / "use_cases" / "broken.yaml").write_text("name: [")
    printed = embedline("maintain", "--dry-run")
    assert "build" in printed
    assert "60 vectors, at least 50, and no index" in printed
    assert "broken.yaml" in printed
    assert indexes(store) == {}
    assert '"work": "build"' in embedline("maintain", "messages", "--json")
    assert "nothing to do" in embedline("maintain", "messages")
    assert "recall@10 1.000 at ef_search 40" in embedline("status", "messages")


def test_a_build_that_nobody_watches_says_how_far_it_is(
    indexed: Project,
    store: Connection,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(maintenance, "_LOG_SECONDS", 600)  # a busy machine takes long
    slow_to_build(indexed, store, rows=3000)
    with caplog.at_level(logging.INFO, "embedding_tasks"):
        assert maintain(indexed) == ["build"]
    told = [
        line for line in caplog.messages if "phase='building index: loading" in line
    ]
    assert len(told) == 1


def test_pgvector_may_live_in_a_schema_of_its_own(
    project: Project,
    make_database: Callable[..., str],
    write_messages: Write,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dsn = make_database()
    with connect(dsn, role="store") as store:
        store.execute("CREATE SCHEMA ext")
        store.execute("CREATE EXTENSION vector SCHEMA ext")
        migrate.apply(store)
        monkeypatch.setenv("EMBEDLINE_STORE_DSN", dsn)
        project.use_case(storage={"index": {"min_rows": 50}})
        write_messages(range(60))
        project.run()
        assert maintain(project) == ["build"]
        assert records(store) == [("build", 60, 1.0)]


def test_a_graph_too_narrow_for_its_links_is_refused(project: Project) -> None:
    with pytest.raises(ConfigError, match="ef_construction must be at least 2"):
        project.use_case(storage={"index": {"m": 40}})


def test_check_says_that_vectors_are_too_long_for_an_index(
    indexed: Project, monkeypatch: pytest.MonkeyPatch, embedline: Callable[..., str]
) -> None:
    assert "No index" not in embedline("check", "messages", "--no-model")
    monkeypatch.setitem(index.MOST_DIMS, "vector", 16)
    printed = embedline("check", "messages", "--no-model")
    assert "searches stay exact. Say storage.type: halfvec" in printed
