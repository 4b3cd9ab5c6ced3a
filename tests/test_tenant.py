"""Where a use case names a tenant column, a reader sees the records of his tenants, by
whatever way he asks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import psycopg
import pytest

from embedding_tasks.connections import Connection
from embedding_tasks.monitoring.labels import outcomes
from embedding_tasks.monitoring.maps import projection
from embedding_tasks.monitoring.quality import review
from embedding_tasks.store import versions
from embedding_tasks.store.roles import Names
from tests import search_store
from tests.fix_cli import Command
from tests.fix_project import Project, row_versions, vector_versions

Login = Callable[..., str]
OWN = "SELECT array_agg(DISTINCT data::text ORDER BY data::text) FROM embeddings"


@dataclass
class Tenants:
    """Messages of acme and of others, one of nobody's, and a login for each tenant."""

    project: Project
    names: Names
    acme: str
    other: str
    both: str
    nobody: str
    auditor: str
    login: Login


@pytest.fixture
def tenants(
    full_use_case: Project,
    embedline: Command,
    login: Login,
    prefix: str,
    db: Connection,
    store: Connection,
    store_dsn: str,
) -> Tenants:
    db.execute("ALTER TABLE messages ADD customer text")
    db.execute("UPDATE messages SET customer = 'acme', body = 'of acme ' || id")
    db.execute(
        "UPDATE messages SET customer = 'other', body = 'of others ' || id"
        " WHERE id >= 60"
    )
    db.execute("UPDATE messages SET customer = NULL, body = 'of nobody' WHERE id = 0")
    full_use_case.use_case(source={"tenant": "customer"})
    embedline("init", "--roles", "--prefix", prefix)
    full_use_case.run()
    names = Names.of(prefix)

    def reader(name: str, *tenants: str | None) -> str:
        dsn = login(store_dsn, name, names.reader)
        for tenant in tenants:
            store.execute(
                "SELECT embedline.grant_tenant(%s, %s)", [f"{prefix}_{name}", tenant]
            )
        return dsn

    return Tenants(
        full_use_case,
        names,
        acme=reader("acme", "acme"),
        other=reader("other", "other"),
        both=reader("both", "acme", "other"),
        nobody=reader("nobody"),
        auditor=reader("auditor", None),
        login=login,
    )


def ask(dsn: str, statement: str, *parameters: object) -> list[tuple[object, ...]]:
    with psycopg.connect(dsn, autocommit=True) as connection:
        cursor = connection.execute(statement.encode(), parameters or None)
        return cursor.fetchall() if cursor.description else []


COUNTS = (
    "SELECT count(*) FILTER (WHERE data LIKE 'of acme%'),"
    " count(*) FILTER (WHERE data LIKE 'of others%'),"
    " count(*) FILTER (WHERE data = 'of nobody') FROM embeddings.messages"
)


def test_a_reader_sees_the_records_of_his_tenants(
    tenants: Tenants, store_dsn: str
) -> None:
    assert ask(store_dsn, COUNTS) == [(59, 60, 1)]
    assert ask(tenants.acme, COUNTS) == [(59, 0, 0)]
    assert ask(tenants.other, COUNTS) == [(0, 60, 0)]
    assert ask(tenants.both, COUNTS) == [(59, 60, 0)]
    assert ask(tenants.nobody, COUNTS) == [(0, 0, 0)]
    assert ask(tenants.auditor, COUNTS) == [(59, 60, 1)]
    writer = tenants.login(store_dsn, "etl", tenants.names.writer)
    assert ask(writer, COUNTS) == [(59, 60, 1)]
    owner = tenants.login(store_dsn, "deployer", tenants.names.owner)
    assert ask(owner, COUNTS) == [(59, 60, 1)]


def test_a_record_that_changes_hands_follows_its_source(
    tenants: Tenants, db: Connection, store: Connection
) -> None:
    before = vector_versions(store)
    db.execute("UPDATE messages SET customer = 'other' WHERE id = 7")
    tenants.project.run()
    assert ask(tenants.acme, COUNTS) == [(58, 0, 0)]
    assert ask(tenants.other, COUNTS) == [(1, 60, 0)]
    assert vector_versions(store) == before  # and no vector is touched


def test_a_grant_is_taken_back_and_holds_for_members_of_its_role(
    tenants: Tenants, store: Connection, store_dsn: str, prefix: str
) -> None:
    team = tenants.login(store_dsn, "team", f"{prefix}_acme")
    assert ask(team, COUNTS) == [(59, 0, 0)]
    taken = "SELECT embedline.revoke_tenant(%s, 'acme')"
    assert store.execute(taken, [f"{prefix}_acme"]).fetchone() == (True,)
    assert store.execute(taken, [f"{prefix}_acme"]).fetchone() == (False,)
    assert ask(team, COUNTS) == [(0, 0, 0)]
    with pytest.raises(psycopg.errors.UndefinedObject, match="'no_such_role'"):
        store.execute("SELECT embedline.grant_tenant('no_such_role', 'acme')")
    with pytest.raises(psycopg.errors.UndefinedObject, match="no use case 'mesages'"):
        store.execute(
            "SELECT embedline.grant_tenant(%s, 'acme', 'mesages')", [f"{prefix}_acme"]
        )
    grant = "SELECT embedline.grant_tenant(%s, 'acme', 'messages')"
    store.execute(grant, [f"{prefix}_acme"])
    assert ask(team, COUNTS) == [(59, 0, 0)]


@pytest.mark.parametrize(
    "forgery",
    [
        "SET role = {prefix}_other",
        "SELECT set_config('role', '{prefix}_other', false)",
        "SET SESSION AUTHORIZATION {prefix}_other",
        "SELECT embedline.grant_tenant(current_user, 'other')",
        "INSERT INTO embedline.tenant_reader (role, tenant) VALUES (user, 'other')",
        "UPDATE embedline.record SET tenant = 'acme'",
        "ALTER VIEW embeddings.messages RESET (security_barrier)",
        "CREATE OR REPLACE FUNCTION embedline.asker() RETURNS name LANGUAGE sql"
        " AS $$SELECT '{prefix}_other'::name$$",
    ],
)
def test_who_asks_cannot_be_forged(tenants: Tenants, prefix: str, forgery: str) -> None:
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        ask(tenants.acme, forgery.format(prefix=prefix))


def test_a_name_in_a_readers_own_schema_is_not_taken_for_ours(
    tenants: Tenants, store_dsn: str, prefix: str
) -> None:
    ask(store_dsn, f"CREATE SCHEMA mine AUTHORIZATION {prefix}_acme")
    with psycopg.connect(tenants.acme, autocommit=True) as acme:
        acme.execute("CREATE FUNCTION mine.sees_all() RETURNS boolean RETURN true")
        acme.execute(
            "CREATE FUNCTION mine.has_table_privilege(name, oid, text)"
            " RETURNS boolean RETURN true"
        )
        acme.execute(
            "CREATE FUNCTION mine.pg_has_role(name, oid, text)"
            " RETURNS boolean RETURN true"
        )
        acme.execute("SET search_path = mine, embedline, pg_catalog")
        assert acme.execute(COUNTS.encode()).fetchone() == (59, 0, 0)


LEAKY = """
CREATE FUNCTION mine.leak(data text) RETURNS boolean LANGUAGE plpgsql COST 0.0001
AS $$BEGIN RAISE NOTICE '%', data; RETURN true; END$$
"""


@pytest.mark.parametrize(
    "query",
    [
        "SELECT FROM embeddings.messages WHERE mine.leak(data)",
        "SELECT FROM embeddings.messages WHERE mine.leak(key) AND mine.leak(data)",
        "SELECT FROM embeddings.messages WHERE mine.leak(prediction || data)",
        "SELECT FROM embeddings.messages ORDER BY mine.leak(data)",
        "SELECT count(*) FILTER (WHERE mine.leak(data)) FROM embeddings.messages",
        "EXPLAIN ANALYZE SELECT FROM embeddings.messages WHERE mine.leak(data)",
        "EXPLAIN VERBOSE SELECT FROM embeddings.messages WHERE data = 'of others 70'",
        "SELECT FROM embedline.class_probability WHERE mine.leak(key)",
        "SELECT FROM embedline.map WHERE mine.leak(data)",
    ],
)
def test_a_function_in_a_where_sees_no_more_than_its_caller(
    tenants: Tenants, store: Connection, store_dsn: str, prefix: str, query: str
) -> None:
    ask(store_dsn, f"CREATE SCHEMA mine AUTHORIZATION {prefix}_acme")
    ask(tenants.acme, LEAKY)
    if "map" in query:
        projection.fit(store, versions.active(store, "messages"))
    heard: list[str] = []
    with psycopg.connect(tenants.acme, autocommit=True) as acme:
        acme.add_notice_handler(lambda d: heard.append(str(d.message_primary)))
        cursor = acme.execute(query.encode())
        told = str(cursor.fetchall())
    others = {str(i) for i in range(60, 120)} | {"0"}
    said = [h for h in heard if "others" in h or "nobody" in h or h in others]
    assert not said
    if "leak" in query:
        assert heard
    else:
        assert "of others 71" not in told


def test_an_error_in_a_condition_tells_of_no_other_tenant(tenants: Tenants) -> None:
    """1/0 where a guess about somebody else's row is right."""
    guess = (
        "SELECT count(*) FROM embeddings.messages"
        " WHERE 1 / (CASE WHEN data = 'of others 70' THEN 0 ELSE 1 END) = 1"
    )
    assert ask(tenants.acme, guess) == [(59,)]
    with pytest.raises(psycopg.errors.DivisionByZero):
        ask(tenants.other, guess)


def test_nobody_elses_function_is_a_way_around(
    tenants: Tenants, store_dsn: str, prefix: str
) -> None:
    """A function with its owner's rights shows what a grant to both lets them see."""
    ask(store_dsn, f"CREATE SCHEMA mine AUTHORIZATION {prefix}_acme")
    ask(
        tenants.acme,
        "CREATE FUNCTION mine.f() RETURNS bigint LANGUAGE sql SECURITY DEFINER"
        " AS 'SELECT count(*) FROM embeddings.messages'",
    )
    ask(tenants.acme, "GRANT USAGE ON SCHEMA mine TO PUBLIC")
    assert ask(tenants.acme, "SELECT mine.f()") == [(59,)]
    assert ask(tenants.other, "SELECT mine.f()") == [(0,)]
    # by another grant than his
    assert ask(tenants.both, "SELECT mine.f()") == [(0,)]
    assert ask(store_dsn, "SELECT mine.f()") == [(59,)]


def test_numbers_of_all_tenants_are_for_who_sees_them_all(
    tenants: Tenants, store: Connection
) -> None:
    store.execute(
        "INSERT INTO embedline.label (use_case, key, label)"
        " SELECT use_case, key, 'v' FROM embedline.record ON CONFLICT DO NOTHING"
    )
    for version in versions.live_by_name(store, "messages"):
        outcomes.refresh(store, version)
    store.execute(
        "INSERT INTO embedline.measurement (model_version, metric, kind, first_day,"
        " last_day, rows, state) SELECT id, 'mix', 'drift', now(), now(), 9, 'usual'"
        " FROM embedline.model_version WHERE state = 'active'"
    )
    counts = ("confusion", "label_coverage", "monitor", "monitor_history")
    for relation in ("status", "index_status", "run", *counts):
        count = f"SELECT count(*) > 0 FROM embedline.{relation}"
        assert ask(tenants.acme, count) == [(False,)], relation
        assert ask(tenants.auditor, count) == [(True,)], relation
    classes = "SELECT count(DISTINCT key) FROM embedline.class_probability"
    assert ask(tenants.acme, classes) == [(59,)]
    assert ask(tenants.auditor, classes) == [(120,)]


def test_what_is_to_be_reviewed_and_maps_are_of_his_tenants(
    tenants: Tenants, store: Connection, db: Connection
) -> None:
    """Neither by rows nor by what stands beside them: names of clusters, evidence."""
    db.execute("UPDATE messages SET body = 'of acme 7' WHERE id IN (8, 9)")
    db.execute("UPDATE messages SET body = 'of acme 7' WHERE id IN (70, 71)")
    db.execute("DELETE FROM verdicts WHERE id IN (7, 8, 9, 70, 71)")
    labels = [(7, "v"), (8, "w"), (9, "x"), (70, "y"), (71, "z")]
    db.cursor().executemany("INSERT INTO verdicts VALUES (%s, %s)", labels)
    tenants.project.run()
    version = versions.active(store, "messages")
    review.refresh(store, version)
    projection.fit(store, version)
    conflicts = (
        "SELECT array_agg(key ORDER BY key), array_agg(DISTINCT suggested_label"
        " ORDER BY suggested_label), count(detail), max(rank)"
        " FROM embedline.review WHERE kind = 'conflict'"
    )
    [(keys, suggested, evidence, last)] = ask(tenants.acme, conflicts)
    assert (keys, evidence, last) == (["7", "8", "9"], 0, 3)
    assert set(suggested) <= {"v", "w", "x"}
    [(keys, suggested, evidence, last)] = ask(tenants.other, conflicts)
    assert (keys, suggested, evidence, last) == (["70", "71"], ["y", "z"], 0, 2)
    [(keys, _, evidence, last)] = ask(tenants.auditor, conflicts)
    assert (len(keys), evidence, last) == (5, 5, 5)
    points = "SELECT count(*), count(name) FROM embedline.map"
    assert ask(tenants.acme, points) == [(59, 0)]
    assert ask(tenants.nobody, points) == [(0, 0)]
    assert ask(tenants.auditor, points) == [(120, 120)]


def test_a_search_finds_the_records_of_his_tenants(tenants: Tenants) -> None:
    nearest = (
        "SELECT count(*), bool_and(data LIKE 'of acme%%') FROM embeddings.nearest("
        " 'messages', (SELECT embedding::vector FROM embeddings.messages"
        "  WHERE key = %s), 100)"
    )
    assert ask(tenants.acme, nearest, "7") == [(59, True)]
    assert ask(tenants.other, nearest, "70") == [(60, False)]
    assert ask(tenants.nobody, "SELECT count(*) FROM embeddings.messages") == [(0,)]


def test_k_of_his_own_are_found_where_others_are_nearer(
    tenants: Tenants, db: Connection
) -> None:
    """The nearest hundred of all are other people's."""
    db.execute("UPDATE messages SET body = 'of acme 7' WHERE id >= 60")
    tenants.project.run()
    found = ask(
        tenants.acme, "SELECT key FROM embeddings.neighbors('messages', '7', 10)"
    )
    assert len(found) == 10
    assert all(int(str(key)) < 60 for (key,) in found)


CENTROID = "embeddings.centroid('messages')"


@pytest.mark.parametrize(
    "search",
    [
        f"nearest('messages', {CENTROID}, 500)",
        f"within('messages', {CENTROID}, 2, 500)",
        f"within('messages', {CENTROID}, 2, NULL)",
        f"mmr('messages', {CENTROID}, 100)",
        f"hybrid('messages', 'others or acme', {CENTROID}, 500)",
        "neighbors('messages', '7', 500)",
        "medoid('messages', 500)",
        "nearest_to('messages', ARRAY['7', '8'], ARRAY['9'], 500)",
        "duplicates('messages', 2, 500)",
        "nearest('messages', embeddings.centroid('messages'), 500,"
        ' filter => \'{"key": ["7", "70", "0"]}\')',
    ],
)
def test_every_search_answers_with_his_own(tenants: Tenants, search: str) -> None:
    found = ask(tenants.acme, f"SELECT * FROM embeddings.{search}")
    said = str(found)
    assert "of acme" in said
    assert "of others" not in said
    assert "of nobody" not in said
    assert ask(tenants.nobody, "SELECT * FROM embeddings.medoid('messages')") == []


def test_what_is_summed_up_is_of_his_own(tenants: Tenants) -> None:
    own = (
        f"SELECT ({CENTROID} <-> avg(l2_normalize(embedding::vector))) < 1e-5"
        " FROM embeddings.messages"
    )
    for who in (tenants.acme, tenants.other, tenants.auditor):
        assert ask(who, own) == [(True,)]
    centroids = {
        str(ask(w, f"SELECT {CENTROID}")) for w in (tenants.acme, tenants.other)
    }
    assert len(centroids) == 2
    assert ask(tenants.nobody, f"SELECT {CENTROID}") == [(None,)]


def test_an_index_finds_k_of_his_own(
    tenants: Tenants, embedline: Command, store: Connection
) -> None:
    tenants.project.use_case(storage={"index": {"min_rows": 100}})
    embedline("maintain")
    test_every_search_answers_with_his_own(
        tenants, f"nearest('messages', {CENTROID}, 20)"
    )
    found = ask(
        tenants.acme, f"SELECT key FROM embeddings.nearest('messages', {CENTROID}, 50)"
    )
    assert len(found) == 50


def test_anothers_key_is_no_vector_and_no_other_error(tenants: Tenants) -> None:
    def refusal(key: str) -> tuple[str, str]:
        with pytest.raises(psycopg.errors.NoDataFound) as caught:
            ask(tenants.acme, "SELECT embeddings.neighbors('messages', %s)", key)
        diag = caught.value.diag
        said = f"{diag.message_primary} {diag.message_hint} {diag.context}"
        return said.replace(f"'{key}'", "KEY"), str(caught.value.sqlstate)

    assert refusal("70") == refusal("no such key") == refusal("0")


def test_features_of_a_record_are_hidden_together(
    tenants: Tenants, store_dsn: str
) -> None:
    raw = tenants.project.raw
    del raw["source"]["input"]
    tenants.project.use_case(
        features={"body": {"input": "body"}, "author": {"input": "author"}}
    )
    tenants.project.run()
    for view in ("messages", "messages__body", "messages__author"):
        count = f"SELECT count(*) FROM embeddings.{view}"
        assert ask(tenants.acme, count) == [(59,)], view
        assert ask(store_dsn, count) == [(120,)], view


def test_a_use_case_without_tenants_has_the_view_it_always_had(
    full_use_case: Project, store: Connection
) -> None:
    full_use_case.run()
    row = store.execute(
        "SELECT v.definition, c.reloptions FROM embedline.view v JOIN pg_class c"
        " ON c.oid = 'embeddings.messages'::regclass"
    ).fetchone()
    assert row is not None
    assert "tenant" not in row[0]
    assert row[1] is None


def test_tenants_come_and_go_with_the_file(
    full_use_case: Project,
    embedline: Command,
    login: Login,
    prefix: str,
    db: Connection,
    store: Connection,
    store_dsn: str,
) -> None:
    db.execute("ALTER TABLE messages ADD customer int")
    db.execute("UPDATE messages SET customer = id % 2")
    embedline("init", "--roles", "--prefix", prefix)
    reader = login(store_dsn, "analyst", f"{prefix}_reader")
    store.execute("SELECT embedline.grant_tenant(%s, '1')", [f"{prefix}_reader"])
    count = "SELECT count(*) FROM embeddings.messages"
    full_use_case.run()
    assert ask(reader, count) == [(120,)]
    written = row_versions(store, "vector_%")
    full_use_case.use_case(source={"tenant": "customer"})
    full_use_case.run()
    assert ask(reader, count) == [(60,)]
    full_use_case.use_case(source={"tenant": None})
    full_use_case.run()
    assert ask(reader, count) == [(120,)]
    assert row_versions(store, "vector_%") == written


@pytest.mark.parametrize("owned", [("k1", "k2"), tuple(f"k{n}" for n in range(1, 400))])
def test_an_index_of_all_hides_no_pair_of_his_own(
    store: Connection, store_dsn: str, login: Login, prefix: str, owned: tuple[str, ...]
) -> None:
    """It gives up after so many vectors, which may all be other people's."""
    made = search_store.make(store, count=1000)
    search_store.add_index(store, made)
    reader = login(store_dsn, "acme")
    store.execute("UPDATE embedline.use_case SET tenanted = true")
    store.execute("SELECT embedline.refresh_views(1, false)")
    store.execute(
        "UPDATE embedline.record SET tenant = 'acme' WHERE key = ANY (%s)", [[*owned]]
    )
    store.execute(
        f"GRANT USAGE ON SCHEMA embeddings TO {prefix}_acme;"
        f"GRANT SELECT ON embeddings.things TO {prefix}_acme;"
        f"SELECT embedline.grant_tenant('{prefix}_acme', 'acme')"
    )
    with psycopg.connect(reader, autocommit=True) as acme:
        acme.execute("SET hnsw.max_scan_tuples = 1")
        for limit in (2, 10):
            found = acme.execute(
                "SELECT key, other_key FROM embeddings.duplicates('things', 2, %s)"
                " ORDER BY 1, 2",
                [limit],
            ).fetchall()
            assert {key for pair in found for key in pair} == {*owned}
            assert len(found) >= limit * len(owned) / 2 or len(owned) == 2
