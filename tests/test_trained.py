from __future__ import annotations

import hashlib
import io
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from psycopg import sql
from sklearn import datasets
from sklearn.linear_model import LogisticRegression

from embedding_tasks import check, cli, encoders, run
from embedding_tasks.connections import Connection, connect
from embedding_tasks.encoders import Runtime
from embedding_tasks.encoders.trained import images, model, table
from embedding_tasks.errors import DatabaseAway, InputError, ModelError
from embedding_tasks.store import trained, versions
from embedding_tasks.training import Epoch
from tests import trained_references
from tests.fix_project import Project
from tests.forked import Forked

KINDS = ("autoencoder", "gan")


@pytest.fixture
def wines(project: Project, db: Connection) -> Callable[..., Project]:
    """178 wines: 13 measurements, of which two have nulls, and what was made of them
    by hand: a grade, a flag, a day."""
    bunch = datasets.load_wine(as_frame=True)
    frame = bunch.frame
    frame.columns = [c.replace("/", "_") for c in frame.columns]
    names = [c for c in frame.columns if c != "target"]
    db.execute(
        f"CREATE TABLE wines (id int PRIMARY KEY, {' float8, '.join(names)} float8,"
        " grade text, sweet boolean, bottled date, usage text, cultivar int)"
    )
    for i, row in enumerate(frame.itertuples(index=False)):
        values: list[Any] = [float(v) for v in row[:-1]]
        if i % 7 == 0:
            values[0] = values[3] = None
        grade = [None, "a", "b", "c"][min(3, int(row.proline // 400))]
        db.execute(
            f"INSERT INTO wines VALUES ({', '.join(['%s'] * 19)})",
            [
                *(i, *values, grade, row.hue > 1, f"1990-01-{1 + i % 28:02}"),
                *("validation" if i % 4 == 0 else "training", int(row.target)),
            ],
        )

    def made(**encoder: Any) -> Project:
        project.raw["encoder"] = {
            **{"type": "autoencoder", "size": 6, "epochs": 15, "batch_size": 16},
            **{"learning_rate": 3e-3, "min_rows": 50, "device": "cpu"},
            **encoder,
        }
        project.use_case(
            name="wines",
            source={
                "table": "wines",
                "input": [*names, "grade", "sweet", "bottled"],
                "event_time": None,
            },
        )
        return project

    return made


@pytest.fixture
def digits(project: Project, db: Connection) -> Callable[..., Project]:
    """Handwritten digits of 8 x 8 pixels, as PNG, and as 64 numbers."""
    bunch = datasets.load_digits()
    db.execute("CREATE TABLE digits (id int PRIMARY KEY, png bytea, digit int)")
    with db.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO digits VALUES (%s, %s, %s)",
            [
                (i, png(pixels), int(digit))
                for i, (pixels, digit) in enumerate(
                    zip(bunch.images, bunch.target, strict=True)
                )
            ],
        )

    def made(**encoder: Any) -> Project:
        project.raw["encoder"] = {
            **{"type": "autoencoder", "data": "image", "image_size": 8, "size": 16},
            **{"epochs": 6, "batch_size": 64, "learning_rate": 2e-3, "device": "cpu"},
            **encoder,
        }
        project.use_case(
            name="digits",
            source={"table": "digits", "input": ["png"], "event_time": None},
        )
        return project

    return made


def png(pixels: np.ndarray, mode: str = "L") -> bytes:
    file = io.BytesIO()
    grey = Image.fromarray((pixels * 255 / 16).astype(np.uint8))
    grey.convert(mode).save(file, "PNG")
    return file.getvalue()


def in_red(digits: Any) -> bytes:
    grey = Image.open(io.BytesIO(png(digits.images[1])))
    black = Image.new("L", grey.size)
    file = io.BytesIO()
    Image.merge("RGB", [grey, black, black]).save(file, "PNG")
    return file.getvalue()


def stored_vectors(store: Connection, name: str, version: int = 1) -> dict[str, Any]:
    rows = store.execute(
        sql.SQL("SELECT key, embedding::real[] FROM embedline.{} ORDER BY key").format(
            sql.Identifier(f"vector_{name}_v{version}")
        )
    )
    return {key: np.array(vector, np.float32) for key, vector in rows}


def stored_model(store: Connection) -> bytes:
    row = store.execute(
        "SELECT weights FROM embedline.trained_model ORDER BY id DESC LIMIT 1"
    ).fetchone()
    assert row is not None
    return bytes(row[0])


def all_digests(store: Connection) -> list[str]:
    return [
        digest
        for (digest,) in store.execute(
            "SELECT digest FROM embedline.trained_model ORDER BY id"
        )
    ]


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.einsum("ij,ij->i", a, b) / norms  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", KINDS)
def test_stored_vectors_of_a_table_are_the_plain_forward_of_the_stored_weights(
    wines: Callable[..., Project], db: Connection, store: Connection, kind: str
) -> None:
    project = wines(type=kind)
    counts = project.run()
    assert (counts["trained"], counts["training_rows"]) == (1, 178)
    assert (counts["embedded"], counts["stored"]) == (178, 178)
    columns = project.request().use_case.source.input
    rows = db.execute(
        f"SELECT id::text, {', '.join(columns)} FROM wines ORDER BY id::text"
    ).fetchall()
    expected = trained_references.of_rows(
        stored_model(store), kind, [row[1:] for row in rows]
    )
    assert_parity(stored_vectors(store, "wines"), rows, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_stored_vectors_of_images_are_the_plain_forward_of_the_stored_weights(
    digits: Callable[..., Project], db: Connection, store: Connection, kind: str
) -> None:
    project = digits(type=kind, epochs=2)
    assert project.run()["stored"] == 1797
    rows = db.execute("SELECT id::text, png FROM digits ORDER BY id::text").fetchall()
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(b))) for _, b in rows])
    expected = trained_references.of_pixels(stored_model(store), kind, pixels[:, None])
    assert_parity(stored_vectors(store, "digits"), rows, expected)


def assert_parity(
    stored: dict[str, np.ndarray], rows: Sequence[Any], expected: torch.Tensor
) -> None:
    assert [*stored] == [row[0] for row in rows]
    vectors, right = np.stack([*stored.values()]), expected.numpy()
    worst_cosine = cosine(vectors, right).min()
    worst = np.abs(vectors - right).max()
    print(f"parity: worst cosine {worst_cosine:.8f}, worst difference {worst:.2e}")
    assert worst_cosine > 1 - 1e-6
    assert worst < 1e-4


def test_an_autoencoder_learns_more_than_the_mean(
    wines: Callable[..., Project], digits: Callable[..., Project], store: Connection
) -> None:
    for project in (wines(), digits()):
        run.train_stage(project.request())
        use_case = project.request().use_case
        told = trained.models(store, use_case)["embedding"]
        print(told)
        assert told["validation_loss"] < 0.8 * told["baseline"]
        losses = store.execute(
            "SELECT losses FROM embedline.trained_model ORDER BY id DESC LIMIT 1"
        ).fetchone()
        assert losses is not None
        epochs = project.raw["encoder"]["epochs"]
        assert len(losses[0]) == told["epochs"] == epochs
        assert all({*epoch} == {"training", "validation"} for epoch in losses[0])
        assert losses[0][-1]["training"] < losses[0][0]["training"]
        assert told["epoch"] == 1 + int(
            np.argmin([epoch["validation"] for epoch in losses[0]])
        )


@pytest.mark.parametrize("kind", KINDS)
def test_vectors_of_images_tell_digits_apart(
    digits: Callable[..., Project], db: Connection, store: Connection, kind: str
) -> None:
    digits(type=kind, size=32).run()
    vectors = stored_vectors(store, "digits")
    labels = dict(db.execute("SELECT id::text, digit FROM digits").fetchall())
    x, y = np.stack([*vectors.values()]), np.array([labels[k] for k in vectors])
    probe = LogisticRegression(max_iter=5000).fit(x[::2], y[::2])
    accuracy = probe.score(x[1::2], y[1::2])
    print(f"{kind}: accuracy {accuracy:.3f}")
    assert accuracy > 0.8


@pytest.mark.parametrize("kind", KINDS)
def test_the_seed_alone_decides_what_is_trained(
    wines: Callable[..., Project], store: Connection, kind: str
) -> None:
    project = wines(type=kind, epochs=4)
    state, threads = torch.random.get_rng_state(), torch.get_num_threads()
    run.train_stage(project.request())
    assert torch.equal(state, torch.random.get_rng_state())
    assert not torch.are_deterministic_algorithms_enabled()
    torch.manual_seed(12345)
    torch.set_num_threads(3)
    run.train_stage(project.request(), retrain=True)
    assert torch.get_num_threads() == 3
    torch.set_num_threads(threads)
    wines(type=kind, epochs=4, seed=1)
    run.train_stage(project.request())
    first, again, other = all_digests(store)
    assert first == again != other
    assert hashlib.sha256(stored_model(store)).hexdigest() == other


def test_the_same_model_is_trained_once_and_again_only_on_demand(
    wines: Callable[..., Project], store: Connection
) -> None:
    project = wines(epochs=2)
    assert project.run()["trained"] == 1
    assert project.run()["trained"] == 0
    wines(epochs=2, min_rows=60)  # shapes no training
    assert project.run()["trained"] == 0
    project.run()
    run.train_stage(project.request(), retrain=True)  # the same rows, the same model
    assert project.run()["embedded"] == 0
    states = store.execute("SELECT version, state FROM embedline.model_version")
    assert states.fetchall() == [(1, "active")]


def test_retraining_makes_a_version_beside_the_serving_one_and_promotes_it(
    wines: Callable[..., Project], db: Connection, store: Connection
) -> None:
    project = wines(epochs=2)
    project.run()
    db.execute("DELETE FROM wines WHERE id % 10 = 0")
    assert run.train_stage(project.request(), retrain=True)["trained"] == 1
    use_case = project.request().use_case
    run.sync_stage(project.request())
    live = versions.live(store, versions.use_case_id(store, use_case.name))
    assert [(v.version, v.state) for v in live] == [(1, "active"), (2, "building")]
    assert live[0].spec["weights"] != live[1].spec["weights"]
    project.run()
    live = versions.live(store, versions.use_case_id(store, use_case.name))
    assert [(v.version, v.state) for v in live] == [(2, "active")]
    assert len(stored_vectors(store, "wines", 2)) == 160


def test_two_runs_at_a_time_train_one_model(
    wines: Callable[..., Project], store: Connection
) -> None:
    project = wines(epochs=3)
    requests = [project.request(), project.request()]
    with ThreadPoolExecutor() as pool:
        counts = [*pool.map(run.train_stage, requests)]
    assert sorted(c["trained"] for c in counts) == [0, 1]
    assert len(all_digests(store)) == 1


def test_a_training_outlives_the_connection_that_holds_its_lock(
    wines: Callable[..., Project], store: Connection
) -> None:
    project = wines(epochs=2)
    cut: list[int] = []

    def cut_off(epoch: Epoch) -> None:
        holders = store.execute(
            "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted"
            " AND database = (SELECT oid FROM pg_database"
            "  WHERE datname = current_database())"
        ).fetchall()
        for (pid,) in holders:
            store.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])
            cut.append(pid)

    assert run.train_stage(project.request(), progress=cut_off)["trained"] == 1
    assert cut


def test_a_training_holds_up_no_vacuum_and_no_index_build(
    wines: Callable[..., Project], store: Connection, store_dsn: str
) -> None:
    """Nor does one that waits for it."""

    def snapshots(epoch: Epoch) -> None:
        found = store.execute(
            "SELECT backend_xmin FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
            " AND datname = current_database() AND state <> 'idle'"
        ).fetchall()
        seen.append([xmin for (xmin,) in found])

    seen: list[list[int | None]] = []
    project = wines(epochs=1)
    request = project.request()
    assert run.train_stage(request, progress=snapshots)["trained"] == 1
    assert seen == [[None]]
    with ThreadPoolExecutor(1) as pool:
        with connect(store_dsn, role="store") as other, other.transaction():
            lock = "SELECT pg_advisory_xact_lock(hashtext('embedline.training'), %s)"
            other.execute(lock, [versions.use_case_id(store, "wines")])
            other.execute("SHOW application_name")
            waiting = pool.submit(run.train_stage, request, retrain=True)
            time.sleep(3)
            seen.clear()
            for _ in range(10):
                snapshots(Epoch("", 0, 0, {}))
                time.sleep(0.1)
            assert not waiting.done()
        assert waiting.result()["trained"] == 1
    assert seen.count([None]) > 5  # the other's


class KilledError(Exception):
    pass


def kill_at(number: int) -> Callable[[Epoch], None]:
    def killing(epoch: Epoch) -> None:
        if epoch.number == number:
            raise KilledError

    return killing


@pytest.mark.parametrize("kind", KINDS)
def test_a_training_that_is_killed_goes_on_to_the_same_weights(
    wines: Callable[..., Project], store: Connection, kind: str
) -> None:
    project = wines(type=kind, epochs=6)
    run.train_stage(project.request())
    with pytest.raises(KilledError):
        run.train_stage(project.request(), retrain=True, progress=kill_at(4))
    seen: list[int] = []
    run.train_stage(
        project.request(), retrain=True, progress=lambda e: seen.append(e.number)
    )
    assert seen == [4, 5, 6]
    assert not [*(project.folder / ".embedline" / "training").rglob("*.pt")]

    store.execute("DELETE FROM embedline.trained_model WHERE id > 1")
    before = all_digests(store)
    store.execute("UPDATE embedline.trained_model SET settings = '{}'")
    killed = Forked("tests.trained_run", "wines", "2")
    _, errors = killed.communicate()
    assert killed.returncode == -9, errors[-2000:]
    assert len(all_digests(store)) == 1
    seen.clear()
    run.train_stage(project.request(), progress=lambda e: seen.append(e.number))
    assert seen == [2, 3, 4, 5, 6]
    assert all_digests(store) == before * 2


def test_a_broken_checkpoint_costs_time_and_nothing_else(
    wines: Callable[..., Project], store: Connection
) -> None:
    project = wines(epochs=3)
    with pytest.raises(KilledError):
        run.train_stage(project.request(), progress=kill_at(2))
    (checkpoint,) = (project.folder / ".embedline" / "training").rglob("*.pt")
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    run.train_stage(project.request())
    run.train_stage(project.request(), retrain=True)
    first, again = all_digests(store)
    assert first == again


def test_rows_that_changed_since_are_not_trained_on_half(
    wines: Callable[..., Project], db: Connection
) -> None:
    project = wines(epochs=3)
    with pytest.raises(KilledError):
        run.train_stage(project.request(), progress=kill_at(2))
    db.execute("UPDATE wines SET hue = hue + 0.1 WHERE id = 3")
    seen: list[int] = []
    run.train_stage(project.request(), progress=lambda e: seen.append(e.number))
    assert seen == [1, 2, 3]
    assert not [*(project.folder / ".embedline" / "training").rglob("*.pt")]


def test_too_few_rows_are_refused_with_both_numbers(
    wines: Callable[..., Project], store: Connection
) -> None:
    project = wines(min_rows=500)
    with pytest.raises(ModelError, match=r"wines: 178 rows to train on.*500"):
        project.run()
    error = store.execute("SELECT error, failed_stages FROM embedline.run").fetchone()
    assert error is not None
    assert error[0].startswith("ModelError: wines: 178 rows")
    assert error[1] == ["train"]
    wines(environment="training", min_rows=150)
    project.use_case(source={"environment": {"column": "usage"}})
    with pytest.raises(ModelError, match="133 rows of environment 'training'"):
        project.run()


def test_only_rows_of_the_environment_are_trained_on(
    wines: Callable[..., Project], store: Connection
) -> None:
    project = wines(environment="training", epochs=1)
    project.use_case(source={"environment": {"column": "usage"}})
    counts = project.run()
    assert (counts["training_rows"], counts["stored"]) == (133, 178)


def test_a_sample_is_the_same_rows_whatever_their_order(
    wines: Callable[..., Project], db: Connection, store: Connection
) -> None:
    project = wines(epochs=1, max_rows=100)
    assert run.train_stage(project.request())["training_rows"] == 100
    db.execute("UPDATE wines SET hue = hue WHERE id % 3 = 0")  # moves them in the heap
    run.train_stage(project.request(), retrain=True)
    first, again = all_digests(store)
    assert first == again


def test_a_column_without_information_is_left_out_and_said(
    wines: Callable[..., Project],
    db: Connection,
    store: Connection,
    caplog: pytest.LogCaptureFixture,
) -> None:
    project = wines(epochs=1)
    db.execute("UPDATE wines SET hue = 1.1, ash = null, grade = id::text")
    project.run()
    told = caplog.text
    assert "column 'hue' is the same in all training rows" in told
    assert "column 'ash' is null in all training rows" in told
    assert "no value of column 'grade' occurs twice" in told
    state, _ = trained_references.layers(stored_model(store))
    names = {c["name"] for c in state["table"]["columns"]}
    assert not names & {"hue", "ash", "grade"}


def test_what_was_never_seen_in_training_is_encoded_all_the_same(
    wines: Callable[..., Project], db: Connection, store: Connection
) -> None:
    project = wines(epochs=2)
    project.run()
    db.execute(
        "INSERT INTO wines (id, alcohol, grade) VALUES (900, 'infinity', 'unseen'),"
        " (901, 1e300, null), (902, null, 'a')"
    )
    counts = project.run()
    assert (counts["trained"], counts["new"], counts["embedded"]) == (0, 3, 3)
    vectors = stored_vectors(store, "wines")
    assert all(np.isfinite(vectors[key]).all() for key in ("900", "901", "902"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("what", ["wines", "digits"])
def test_a_vector_is_the_same_in_any_company(
    request: pytest.FixtureRequest,
    db: Connection,
    store: Connection,
    kind: str,
    what: str,
) -> None:
    project = request.getfixturevalue(what)(type=kind, epochs=1)
    run.train_stage(project.request())
    run.sync_stage(project.request())
    version = versions.active(store, what)
    encoder = encoders.load(
        version, Runtime("cpu", open_store=project.request().open_store)
    )
    form = version.form
    columns = ", ".join(
        f"{c}::text" if what == "wines" else c for c in version.spec["input"]
    )
    rows = [form.input(r) for r in db.execute(f"SELECT {columns} FROM {what} LIMIT 99")]
    together = encoder.encode(rows).vectors
    alone = np.concatenate([encoder.encode([row]).vectors for row in rows])
    backwards = encoder.encode(rows[::-1]).vectors[::-1]
    np.testing.assert_allclose(alone, together, atol=1e-5)
    np.testing.assert_allclose(backwards, together, atol=1e-5)
    assert encoder.probe().vectors.shape == (1, version.dims)


def test_weights_come_from_the_store_on_a_machine_that_has_none(
    wines: Callable[..., Project], store: Connection
) -> None:
    project = wines(epochs=1)
    project.run()
    runtime = Runtime("cpu", open_store=project.request().open_store)
    version = versions.active(store, "wines")
    cache = project.folder / ".embedline" / "trained"
    (cached,) = cache.iterdir()
    before = encoders.load(version, runtime).probe().vectors
    cached.write_bytes(b"something else")
    after = encoders.load(version, runtime).probe().vectors
    np.testing.assert_array_equal(before, after)
    cached.unlink()
    store.execute("DELETE FROM embedline.trained_model")
    with pytest.raises(ModelError, match="has no trained model"):
        encoders.load(version, runtime)


def test_images_of_any_kind_are_one_size_and_one_number_of_channels(
    digits: Callable[..., Project], db: Connection, store: Connection
) -> None:
    project = digits(epochs=1, image_size=28)
    db.execute(
        "UPDATE digits SET png = %s WHERE id = 1", [in_red(datasets.load_digits())]
    )
    db.execute("UPDATE digits SET png = 'no image' WHERE id = 2")
    counts = project.run()
    assert (counts["training_rows"], counts["stored"]) == (1796, 1796)
    state, _ = trained_references.layers(stored_model(store))
    assert state["shape"] == [3, 28, 28]
    dead = store.execute("SELECT key, error FROM embedline.ledger WHERE error <> ''")
    ((key, error),) = dead.fetchall()
    assert key == "2"
    assert error.startswith("InputError: no image, or of a format")


def test_images_by_address_are_opened_where_they_lie(
    digits: Callable[..., Project], db: Connection, store: Connection
) -> None:
    project = digits(epochs=1, min_rows=20)
    db.execute("CREATE TABLE files (id int PRIMARY KEY, path text)")
    rows = db.execute("SELECT id, png FROM digits WHERE id < 30").fetchall()
    for number, content in rows:
        path = project.folder / f"{number}.png"
        path.write_bytes(content)
        db.execute("INSERT INTO files VALUES (%s, %s)", [number, str(path)])
    project.use_case(source={"table": "files", "input": ["path"]})
    assert project.run()["stored"] == 30
    by_path = stored_vectors(store, "digits")
    read = model.read(stored_model(store))
    pixels = images.stacked([images.pixels(content, 8) for _, content in rows])
    expected = model.features(read.network, torch.from_numpy(pixels)).detach().numpy()
    found = np.stack([by_path[str(number)] for number, _ in rows])
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_table_of_digits_is_told_apart_by_a_gan(
    project: Project, db: Connection, store: Connection
) -> None:
    x, y = datasets.load_digits(return_X_y=True)
    names = [f"p{i}" for i in range(64)]
    db.execute(f"CREATE TABLE pixels (id int PRIMARY KEY, {' int, '.join(names)} int)")
    with db.cursor().copy("COPY pixels FROM STDIN") as copy:
        for i, row in enumerate(x):
            copy.write_row([i, *map(int, row)])
    project.raw["encoder"] = {"type": "gan", "size": 32, "epochs": 5, "device": "cpu"}
    project.use_case(
        name="pixels", source={"table": "pixels", "input": names, "event_time": None}
    )
    project.run()
    vectors = stored_vectors(store, "pixels")
    z, y = np.stack([*vectors.values()]), np.array([y[int(key)] for key in vectors])
    probe = LogisticRegression(max_iter=5000).fit(z[::2], y[::2])
    assert probe.score(z[1::2], y[1::2]) > 0.8


def test_features_of_one_use_case_may_be_of_every_kind(
    wines: Callable[..., Project], db: Connection, store: Connection
) -> None:
    project = wines(epochs=1)
    columns = project.raw["source"].pop("input")
    gan = {**project.raw["encoder"], "type": "gan"}
    project.use_case(
        features={
            "row": {"input": columns},
            "judged": {"input": columns[:5], "encoder": gan},
        }
    )
    counts = project.run()
    assert (counts["trained"], counts["embedded"]) == (2, 356)
    kinds = store.execute(
        "SELECT feature, kind FROM embedline.trained_model ORDER BY 1"
    )
    assert kinds.fetchall() == [("judged", "gan"), ("row", "autoencoder")]


def test_a_dry_run_trains_nothing_and_says_that_it_would(
    wines: Callable[..., Project], store: Connection
) -> None:
    project = wines(epochs=1)
    assert project.run(dry_run=True) == {"to_train": 1}
    assert all_digests(store) == []
    assert store.execute("SELECT count(*) FROM embedline.run").fetchone() == (0,)
    project.run()
    counts = project.run(dry_run=True)
    assert (counts["to_train"], counts["to_embed"]) == (0, 0)


def test_the_command_trains_shows_losses_and_trains_again_on_demand(
    wines: Callable[..., Project],
    store: Connection,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    wines(epochs=2)
    monkeypatch.setenv("COLUMNS", "300")

    def embedline(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["embedline", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert not ended.value.code
        return "".join(capsys.readouterr())

    assert "would do: 1 to train" in embedline("run", "wines", "--dry-run")
    said = embedline("train", "wines")
    assert "training wines: epoch 2 of 2, training" in said
    assert all_digests(store)[0][:12] in said
    assert "trained already" in embedline("train", "wines")
    assert "trained already" not in embedline("train", "wines", "--retrain")
    assert len(all_digests(store)) == 2
    assert "178 embedded" in embedline("run", "wines")
    states = store.execute("SELECT state FROM embedline.run").fetchall()
    assert states == [("success",)]


def test_a_sync_without_a_model_says_how_to_get_one(
    wines: Callable[..., Project],
) -> None:
    with pytest.raises(
        ModelError, match=r"not trained yet; run `embedline train wines`"
    ):
        run.sync_stage(wines().request())


def test_a_check_is_content_before_and_after_the_training(
    wines: Callable[..., Project],
) -> None:
    project = wines(epochs=1)
    before = [*check.use_case(project.request().use_case)]
    assert [f.problem for f in before] == [None] * 3
    assert "not trained yet: the first run trains it" in before[1].detail
    project.run()
    after = [*check.use_case(project.request().use_case)]
    assert [f.problem for f in after] == [None] * 4
    assert "loads and gives 6 dimensions" in after[2].detail


def test_no_model_library_is_imported_where_nothing_is_to_be_trained(
    wines: Callable[..., Project], write_messages: Callable[..., None]
) -> None:
    wines(epochs=1).run()
    code = (
        "import sys\n"
        "from embedding_tasks import run, use_case\n"
        "case = use_case.find('wines')\n"
        "r = run.Request(use_case=case, external_id='x', kind='cli')\n"
        "assert run.train_stage(r) == {'trained': 0}\n"
        "run.sync_stage(r); assert run.plan_stage(r) == 0\n"
        "heavy = {'torch', 'transformers', 'safetensors', 'PIL'} & {*sys.modules}\n"
        "sys.exit(str(heavy) if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_use_case_that_learns_nothing_opens_no_store(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMBEDLINE_STORE_DSN", "host=/nowhere dbname=x")
    assert run.train_stage(project.request()) == {}
    with pytest.raises(DatabaseAway):
        run.sync_stage(project.request())


def test_a_training_that_diverges_is_refused(wines: Callable[..., Project]) -> None:
    with pytest.raises(ModelError, match=r"lower encoder.learning_rate"):
        run.train_stage(wines(learning_rate=1e30).request())


def test_moments_and_numbers_are_read_as_postgres_writes_them() -> None:
    names, types = ("n", "t"), ("numeric(9,2)", "timestamp with time zone")
    rows = [
        ("1", "1970-01-02 00:00:00+00"),
        ("3", "1970-01-04 12:00:00.5+00"),
        (None, "infinity"),
        ("NaN", "0044-03-15 00:00:00+00 BC"),
    ]
    fitted, left_out = table.fit(names, types, rows)
    assert left_out == []
    number, moment = fitted.columns
    assert (number.mean, number.scale, number.missing) == (2.0, 1.0, True)
    assert moment.mean == pytest.approx(2.25 + 0.25 / 86_400)
    np.testing.assert_array_equal(
        number.encode(["1", None, "1e400"]), [[-1, 0], [0, 1], [0, 1]]
    )
    np.testing.assert_array_equal(number.encode(["99"]), [[10, 0]])
    with pytest.raises(InputError, match="column 'n' holds no number by now"):
        fitted.encode([("x", None)])
    again = table.Table.of_state(fitted.state())
    assert again == fitted


def test_rare_and_unseen_values_share_an_input() -> None:
    rows = [("a",)] * 3 + [("b",)] * 2 + [("rare",), (None,), (None,)]
    fitted, _ = table.fit(("c",), ("text",), rows)
    (column,) = fitted.columns
    assert column == table.Category("c", ("a", None, "b"), other=True)
    encoded = column.encode(["a", None, "b", "rare", "never seen"])
    assert encoded.argmax(axis=1).tolist() == [0, 1, 2, 3, 3]
    without, _ = table.fit(("c",), ("text",), [("a",), ("a",), ("b",), ("b",)])
    assert without.encode([("never seen",), (None,)]).tolist() == [[0, 0]] * 2


@pytest.mark.parametrize("side", [8, 9, 25, 28, 100, 256])
@pytest.mark.parametrize("kind", KINDS)
def test_images_of_every_size_go_in_and_come_out(side: int, kind: str) -> None:
    from embedding_tasks.encoders.trained import networks

    shape, leaky = (3, side, side), torch.nn.LeakyReLU
    batch = torch.zeros(2, *shape)
    vectors = networks.inwards(shape, 7, leaky)(batch)
    assert vectors.shape == (2, 7)
    assert networks.outwards(shape, 7, leaky)(vectors).shape == batch.shape


def test_the_store_keeps_what_a_training_was(
    wines: Callable[..., Project], store: Connection
) -> None:
    project = wines(type="gan", epochs=2, seed=7)
    run.train_stage(project.request())
    row = store.execute(
        "SELECT kind, seed, rows, columns[1], epoch, jsonb_array_length(losses),"
        " settings ->> 'epochs', run_id IS NOT NULL FROM embedline.trained_model"
    ).fetchone()
    assert row == ("gan", 7, 178, "alcohol", 2, 2, "2", True)
    feature = project.request().use_case.first_feature
    assert "min_rows" not in trained.settings(feature)
