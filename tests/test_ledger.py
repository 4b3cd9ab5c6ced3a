"""Leases, failures and the fence."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any
from uuid import uuid4

import numpy as np
import pytest

from embedding_tasks import ledger, run
from embedding_tasks.connections import Connection, connect
from embedding_tasks.encoders.encoded import Encoded, Prediction
from embedding_tasks.ledger import Lease
from embedding_tasks.store import versions
from embedding_tasks.store.versions import ModelVersion
from embedding_tasks.store.write import Finished, Written, write
from embedding_tasks.use_case import Retry
from tests.fix_project import Project

Write = Callable[..., None]
RETRY = Retry(max_attempts=3, backoff_seconds=0)


@pytest.fixture
def version(project: Project, store: Connection, write_messages: Write) -> ModelVersion:
    """Twenty records wanted, none stored."""
    write_messages(range(20))
    run.sync_stage(project.request())
    return versions.active(store, "messages")


def claim(store: Connection, version: ModelVersion, limit: int = 5, **kw: Any) -> Lease:
    seconds = kw.pop("seconds", 60)
    holder = kw.pop("holder", "me")
    return ledger.claim(store, version, holder, limit, seconds, uuid4())


def finished(
    lease: Lease, *, units: int = 1, value: float = 1.0, keys: list[str] | None = None
) -> Finished:
    keys = sorted(lease.hashes) if keys is None else keys
    count = len(keys) * units
    vectors = np.full((count, lease.version.dims), value, np.float32)
    return Finished(
        keys=keys,
        data=[f"data of {key}" for key in keys],
        encoded=Encoded(
            vectors=vectors,
            inputs=np.repeat(np.arange(len(keys), dtype=np.int32), units),
            units=np.tile(np.arange(units, dtype=np.int32), len(keys)),
            predictions=[Prediction("good", 0.5, [0.5, 0.25, 0.25])] * count,
            truncated=np.arange(len(keys)) % 2 == 0,
        ),
    )


def count(store: Connection, what: str) -> int:
    row = store.execute(f"SELECT count(*) FROM embedline.{what}").fetchone()
    assert row is not None
    return int(row[0])


def test_no_record_is_leased_twice(
    store_dsn: str, store: Connection, version: ModelVersion
) -> None:
    def take(_: int) -> list[str]:
        with connect(store_dsn, role="store") as connection:
            return [*claim(connection, version, 3).hashes]

    with ThreadPoolExecutor(8) as pool:
        taken = [key for keys in pool.map(take, range(10)) for key in keys]
    assert len(taken) == len(set(taken)) == 20


def test_scheduled_records_go_before_backfilled_ones(
    store: Connection, version: ModelVersion
) -> None:
    store.execute("UPDATE embedline.ledger SET priority = 10 WHERE key::int < 15")
    assert {*claim(store, version).hashes} == {"15", "16", "17", "18", "19"}


def test_an_expired_lease_is_taken_over_and_its_write_turned_away(
    store: Connection, version: ModelVersion
) -> None:
    lost = claim(store, version, 20, seconds=0)
    taken = claim(store, version, 20, holder="other")
    assert {*taken.hashes} == {*lost.hashes}
    assert write(store, lost, finished(lost), 1) == Written(0, 0, 20)
    assert count(store, "vector_messages_v1") == 0
    assert write(store, taken, finished(taken), 1) == Written(20, 20, 0)


def test_a_renewed_lease_is_kept(store: Connection, version: ModelVersion) -> None:
    lease = claim(store, version, 20, seconds=30)
    store.execute(
        "UPDATE embedline.ledger SET lease_until = now() + interval '10 milliseconds'"
    )
    ledger.renew(store, lease)
    store.execute("SELECT pg_sleep(0.05)")
    assert not claim(store, version).hashes


def test_a_record_that_changed_in_flight_is_turned_away(
    project: Project, db: Connection, store: Connection, version: ModelVersion
) -> None:
    lease = claim(store, version, 20)
    db.execute("UPDATE messages SET body = 'other' WHERE id IN (3, 4)")
    run.sync_stage(project.request())
    assert write(store, lease, finished(lease), 1) == Written(18, 18, 2)
    assert {*claim(store, version, 20).hashes} == {"3", "4"}


def test_a_record_deleted_in_flight_leaves_no_orphan(
    project: Project, db: Connection, store: Connection, version: ModelVersion
) -> None:
    lease = claim(store, version, 20)
    db.execute("DELETE FROM messages WHERE id IN (3, 4)")
    run.sync_stage(project.request())
    assert write(store, lease, finished(lease), 1) == Written(18, 18, 2)
    for table in ("vector_messages_v1", "prediction", "record", "ledger"):
        assert count(store, f"{table} WHERE key IN ('3', '4')") == 0, table


def test_inputs_that_were_cut_count_for_a_run_as_far_as_they_are_stored(
    project: Project, db: Connection, store: Connection, version: ModelVersion
) -> None:
    lease = claim(store, version, 20)
    made = finished(lease)
    cut = [*made.keys][::2]
    db.execute("DELETE FROM messages WHERE id = %s", [cut[3]])
    run.sync_stage(project.request())
    assert write(store, lease, made, 1).discarded == 1
    assert count(store, "run WHERE truncated = 9 AND id = 1") == 1
    stored = store.execute("SELECT key FROM embedline.input WHERE truncated")
    assert {key for (key,) in stored} == {*cut} - {cut[3]}


def test_a_key_used_again_after_a_delete_is_not_written_by_the_old_lease(
    project: Project, db: Connection, store: Connection, version: ModelVersion
) -> None:
    lease = claim(store, version, 20)
    db.execute("DELETE FROM messages WHERE id = 3")
    run.sync_stage(project.request())
    db.execute("INSERT INTO messages (id, body) VALUES (3, 'message number 3')")
    run.sync_stage(project.request())
    assert write(store, lease, finished(lease), 1).discarded == 1
    assert {*claim(store, version, 20).hashes} == {"3"}


def test_writing_the_same_batch_again_changes_nothing(
    store: Connection, version: ModelVersion
) -> None:
    lease = claim(store, version, 20)
    write(store, lease, finished(lease), 1)
    again = write(store, lease, finished(lease, value=2.0), 1)
    assert again == Written(0, 0, 20)
    assert count(store, "vector_messages_v1 WHERE embedding::text LIKE '[2%'") == 0


def test_a_record_that_had_five_units_and_now_has_three_keeps_three(
    project: Project, db: Connection, store: Connection, version: ModelVersion
) -> None:
    lease = claim(store, version, 1)
    (key,) = lease.hashes
    assert write(store, lease, finished(lease, units=5), 1).vectors == 5
    db.execute("UPDATE messages SET body = 'shorter' WHERE id = %s", [int(key)])
    run.sync_stage(project.request())
    ledger.release(store, claim(store, version, 20).token)
    lease = next(
        lease
        for lease in iter(lambda: claim(store, version, 1), None)
        if key in lease.hashes
    )
    assert write(store, lease, finished(lease, units=3), 1).vectors == 3
    assert count(store, f"vector_messages_v1 WHERE key = '{key}'") == 3
    assert count(store, f"prediction WHERE key = '{key}'") == 3


def test_a_failing_write_leaves_the_lease_as_it_was(
    store: Connection, version: ModelVersion
) -> None:
    lease = claim(store, version, 20)
    wrong = finished(lease)
    broken = Encoded(
        vectors=wrong.encoded.vectors[:, :5].copy(),
        inputs=wrong.encoded.inputs,
        units=wrong.encoded.units,
        predictions=(),
    )
    with pytest.raises(Exception, match="expected 32 dimensions, not 5"):
        write(store, lease, Finished(wrong.keys, wrong.data, broken), 1)
    assert count(store, "vector_messages_v1") == 0
    assert write(store, lease, wrong, 1).records == 20


def test_a_failure_is_charged_to_its_record_alone_until_it_is_dead(
    store: Connection, version: ModelVersion
) -> None:
    for attempt in (1, 2, 3):
        lease = claim(store, version, 20)
        assert "7" in lease.hashes
        died = ledger.fail(store, lease, {"7": f"no {attempt}"}, RETRY)
        assert died == (attempt == 3)
        ledger.release(store, lease.token)
    assert "7" not in claim(store, version, 20).hashes
    row = store.execute(
        "SELECT attempts, error, dead_at IS NOT NULL FROM embedline.ledger"
        " WHERE key = '7'"
    ).fetchone()
    assert row == (3, "no 3", True)
    assert count(store, "ledger WHERE attempts > 0 AND key <> '7'") == 0


def test_a_failed_record_waits_longer_each_time(
    store: Connection, version: ModelVersion
) -> None:
    waits = []
    for _ in range(3):
        store.execute("UPDATE embedline.ledger SET next_attempt_at = now()")
        lease = claim(store, version, 20)
        retry = Retry(max_attempts=9, backoff_seconds=60)
        ledger.fail(store, lease, {"7": "no"}, retry)
        ledger.release(store, lease.token)
        row = store.execute(
            "SELECT extract(epoch FROM next_attempt_at - now())"
            " FROM embedline.ledger WHERE key = '7'"
        ).fetchone()
        assert row is not None
        waits.append(round(float(row[0]), -1))
    assert waits == [60, 120, 240]


def test_a_dead_records_outdated_vector_leaves_the_view(
    project: Project, db: Connection, store: Connection, version: ModelVersion
) -> None:
    lease = claim(store, version, 20)
    write(store, lease, finished(lease), 1)
    db.execute("UPDATE messages SET body = 'poison' WHERE id = 7")
    run.sync_stage(project.request())
    lease = claim(store, version, 20)
    ledger.fail(store, lease, {"7": "no"}, Retry(max_attempts=1))
    assert count(store, "vector_messages_v1 WHERE key = '7'") == 0
    assert count(store, "prediction WHERE key = '7'") == 0
    assert ledger.retry_dead(store, version) == 1
    assert {*claim(store, version, 20).hashes} == {"7"}


def test_a_changed_dead_record_gets_another_chance(
    project: Project, db: Connection, store: Connection, version: ModelVersion
) -> None:
    lease = claim(store, version, 20)
    ledger.fail(store, lease, {"7": "no"}, Retry(max_attempts=1))
    ledger.release(store, lease.token)
    db.execute("UPDATE messages SET author = 'x' WHERE id = 7")
    run.sync_stage(project.request())
    assert "7" not in claim(store, version, 20).hashes
    store.execute("UPDATE embedline.ledger SET lease_token = NULL, lease_until = NULL")
    db.execute("UPDATE messages SET body = 'cured' WHERE id = 7")
    run.sync_stage(project.request())
    assert "7" in claim(store, version, 20).hashes


def test_a_holder_that_is_tried_again_frees_what_it_held(
    store: Connection, version: ModelVersion
) -> None:
    claim(store, version, 12, holder="run/0")
    claim(store, version, 5, holder="run/1")
    of_another_use_case = replace(version, id=version.id + 1)
    assert ledger.take_over(store, of_another_use_case, "run/0") == 0
    assert ledger.take_over(store, version, "run/0") == 12
    assert len(claim(store, version, 20).hashes) == 15


def test_what_is_put_off_comes_back_with_the_next_sync(
    project: Project, store: Connection, version: ModelVersion
) -> None:
    lease = claim(store, version, 20)
    assert ledger.defer(store, lease, ["3", "4"], seconds=600) == 2
    ledger.release(store, lease.token)
    assert not {"3", "4"} & {*claim(store, version, 20).hashes}
    run.sync_stage(project.request())
    assert {*claim(store, version, 20).hashes} == {"3", "4"}


def test_a_renewal_never_waits_for_a_lock(
    store: Connection, store_dsn: str, version: ModelVersion
) -> None:
    lease = claim(store, version, 20, seconds=5)
    with connect(store_dsn, role="test") as writing, writing.transaction():
        writing.execute("SELECT FROM embedline.ledger WHERE key < '15' FOR UPDATE")
        store.execute("SET statement_timeout = '1s'")
        ledger.renew(store, replace(lease, seconds=600))
    assert 0 < count(store, "ledger WHERE lease_until > now() + interval '1 m'") < 20


def test_a_lease_from_before_the_clock_was_set_back_holds_up_nobody(
    store: Connection, version: ModelVersion
) -> None:
    lease = claim(store, version, 20)
    store.execute("UPDATE embedline.ledger SET lease_until = now() + interval '1 day'")
    assert ledger.outstanding(store, version, 60).leased == 0
    assert {*claim(store, version, 20).hashes} == {*lease.hashes}


def test_records_queued_before_the_clock_was_set_back_are_not_waited_for(
    store: Connection, version: ModelVersion
) -> None:
    store.execute(
        "UPDATE embedline.ledger SET queued_at = queued_at + interval '1 day',"
        " next_attempt_at = next_attempt_at + interval '1 day'"
    )
    assert ledger.outstanding(store, version, 60).claimable == 20
    assert len(claim(store, version, 20).hashes) == 20


def test_a_dead_record_without_a_vector_keeps_nothing_of_its_older_input(
    project: Project, db: Connection, store: Connection, version: ModelVersion
) -> None:
    lease = claim(store, version, 20)
    write(store, lease, finished(lease, units=0), 1)
    db.execute("UPDATE messages SET body = 'poison' WHERE id = 7")
    run.sync_stage(project.request())
    lease = claim(store, version, 20)
    ledger.fail(store, lease, {"7": "no"}, Retry(max_attempts=1))
    assert count(store, "input") == 19
    assert count(store, "input WHERE key = '7'") == 0
    assert count(store, "ledger WHERE key = '7' AND have_hash IS NULL") == 1
