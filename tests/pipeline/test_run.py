from __future__ import annotations

import os
import signal
from dataclasses import replace

import numpy as np
import pytest

from pipeline.errors import SumMismatch
from pipeline.ray_runner import RayRunner
from pipeline.run import Run, Shard, fragment_path
from pipeline.runner import LocalRunner, Resources
from pipeline.runs.drive import execute
from pipeline.runs.keys import as_bytes, batch_keys
from pipeline.runs.ledger import Ledger, State, row_key
from pipeline.samples import to_batch
from pipeline.store import Store
from tests.pipeline.run_jobs import NAMES, run_job
from tests.samples import SPACE, Labelling, record_of, sample


def label_rows(store):
    """Return the rows without who made them and when."""
    found = store.records()
    return sorted((r.image_id, r.dataset, r.fingerprint, r.mask.bytes, r.classes) for r in found)


@pytest.fixture
def store(tmp_path):
    return Store.create(tmp_path / "labels", [SPACE])


def test_every_input_is_done_or_failed(store):
    report, after = run_job(store, map(sample, NAMES), Labelling(bad=frozenset({"i03", "i09"})))
    assert (report.inputs, report.done, report.skipped, report.failed) == (10, 8, 0, 2)
    assert after.count() == 8
    failures = after.failures().to_pylist()
    assert [f["image_id"] for f in failures] == ["i03", "i09"]
    assert failures[0]["message"] == "/images/i03.png: is torn; fetch it again"
    assert {r.provenance.run for r in after.records()} == {report.run}


def test_running_again_does_nothing_and_retries_failures(store, tmp_path):
    run_job(store, map(sample, NAMES), Labelling(bad=frozenset({"i03"})))
    log = tmp_path / "log"
    report, after = run_job(store.latest(), map(sample, NAMES), Labelling(log=str(log)))
    assert (report.done, report.skipped, report.failed) == (1, 9, 0)
    assert log.read_text().split() == ["i03"]
    report, again = run_job(after, map(sample, NAMES))
    assert (report.done, report.skipped, again.version) == (0, 10, after.version)


def test_changed_images_replace_their_rows_in_one_commit(store):
    run_job(store, map(sample, NAMES))
    old = store.latest()
    changed = [sample(n, fingerprint="f1" if n in {"i01", "i07"} else "f0") for n in NAMES]
    report, after = run_job(old, changed, Labelling(value=5))
    assert (report.done, report.skipped) == (2, 8)
    assert after.version == old.version + 1
    found = {r.image_id: (r.fingerprint, r.classes[0].id) for r in after.records()}
    assert len(found) == after.count() == 10
    assert {k for k, v in found.items() if v == ("f1", 5)} == {"i01", "i07"}
    assert Store.open(old.url, old.version).count() == 10


def test_a_new_model_replaces_every_row(store):
    run_job(store, map(sample, NAMES))
    report, after = run_job(store.latest(), [sample(n, digest="d1") for n in NAMES], Labelling(5))
    assert report.done == 10
    assert after.count() == 10
    assert {r.classes[0].id for r in after.records()} == {5}
    assert {r.provenance.model_digest for r in after.records()} == {"d1"}


def test_an_image_listed_twice_is_labelled_once(store):
    report, after = run_job(store, map(sample, [*NAMES, "i00", "i05", "i00"]))
    assert (report.inputs, report.done, report.skipped) == (13, 10, 3)
    assert after.count() == 10


def test_published_at_the_end_in_one_commit(store):
    _, after = run_job(store, map(sample, NAMES), publish="at the end")
    assert after.version == store.version + 1


def test_a_labeller_that_loses_a_sample_is_caught(store):
    class Loses(Labelling):
        def label(self, samples):
            yield from list(super().label(samples))[1:]

    with pytest.raises(SumMismatch):
        run_job(store, map(sample, NAMES), Loses())


@pytest.mark.parametrize("committed", [0, 1])
def test_a_run_that_died_is_taken_up_under_its_name(store, tmp_path, committed):
    """Fragments written and not committed are adopted; nothing is labelled twice."""
    log = str(tmp_path / "log")
    run = Run.begin(store, "toy", kind="truth", identity=["x"])
    worker_input = [Shard.of([sample(n) for n in NAMES[k : k + 3]]) for k in range(0, 6, 3)]
    from pipeline.run import ShardWriter

    worker = ShardWriter(Labelling(log=log), store.sink(), run)()
    written = [worker(shard) for shard in worker_input]
    if committed:
        store.commit(written[0].fragments)
    (tmp_path / "labels" / "data" / run.name / "torn.parquet").write_bytes(b"PAR1 torn")
    report, after = run_job(store.latest(), map(sample, NAMES), Labelling(log=log))
    assert report.resumed
    assert report.run == run.name
    assert (report.inputs, report.done, report.skipped) == (10, 4, 6)
    assert report.adopted == 6 - 3 * committed
    assert sorted((tmp_path / "log").read_text().split()) == NAMES
    assert after.count() == 10
    undisturbed = Store.create(tmp_path / "other", [SPACE])
    _, whole = run_job(undisturbed, map(sample, NAMES))
    assert label_rows(after) == label_rows(whole)
    # The names of the fragments are those that the undisturbed run gives.
    assert {f.path.split("/")[-1] for f in after.fragments()} == {
        f.path.split("/")[-1] for f in whole.fragments()
    }


def test_a_driver_that_starts_later_does_not_double_rows(store):
    """B labels the same images while A is at work: every row once, whoever commits last."""

    class Slow(Labelling):
        def label(self, samples):
            if samples[0].image_id == "i03":
                run_job(store.latest(), map(sample, NAMES[:6]), Labelling(value=5))
            return super().label(samples)

    report, after = run_job(store, map(sample, NAMES), Slow(), LocalRunner(1))
    assert report.done == 10
    rows = [r.image_id for r in after.records()]
    assert sorted(rows) == NAMES


def test_what_a_dead_run_wrote_of_changed_images_is_left_alone(store):
    from pipeline.run import ShardWriter

    run = Run.begin(store, "toy", kind="truth", identity=["x"])
    worker = ShardWriter(Labelling(), store.sink(), run)()
    worker(Shard.of([sample(n) for n in NAMES[:3]]))
    changed = [sample(n, "f1" if n == "i01" else "f0") for n in NAMES]
    report, after = run_job(store.latest(), changed, Labelling(value=5))
    assert (report.done, report.adopted) == (10, 0)
    found = {r.image_id: (r.fingerprint, r.classes[0].id) for r in after.records()}
    assert after.count() == len(found) == 10
    assert found["i01"] == ("f1", 5)


def test_fragments_that_were_replaced_do_not_come_back(store):
    """A run dies after a commit; another replaces its rows; taken up again, it adds nothing old."""
    from pipeline.run import ShardWriter

    run = Run.begin(store, "toy", kind="truth", identity=["x"])
    made = ShardWriter(Labelling(), store.sink(), run)()(Shard.of([sample(n) for n in NAMES[:3]]))
    store.commit(made.fragments)
    other = Run.begin(store.latest(), "other", kind="truth", identity=["y"])
    newer = [sample(n, "f1") for n in NAMES[:3]]
    execute(
        store.latest(), newer, Labelling(5), run=other, choose_runner=lambda count: LocalRunner(1)
    )
    report, after = run_job(store.latest(), newer + [sample(n) for n in NAMES[3:]])
    assert report.resumed
    assert {r.image_id: r.fingerprint for r in after.records()} == {
        n: "f1" if n in NAMES[:3] else "f0" for n in NAMES
    }
    assert after.count() == 10


def test_what_a_gated_run_adopts_stays_unseen_until_the_end(store):
    from pipeline.run import ShardWriter

    run = Run.begin(store, "toy", kind="truth", identity=["x"])
    ShardWriter(Labelling(), store.sink(), run)()(Shard.of([sample(n) for n in NAMES[:3]]))
    seen = []
    report, after = run_job(
        store.latest(), map(sample, NAMES), publish="at the end",
        watch=lambda report: seen.append(store.latest().count()),
    )  # fmt: skip
    assert report.adopted == 3
    assert set(seen) == {0}
    assert after.count() == 10


def test_an_image_in_two_splits_stays_where_it_was_listed_first(store):
    listing = [sample(n) for n in NAMES]
    listing.append(replace(listing[0], split="val", digest="other"))
    for turn in range(3):
        report, store = run_job(store.latest(), listing)
        assert (report.inputs, report.repeated) == (11, 1)
        assert report.done == (10 if turn == 0 else 0)
        assert {r.split for r in store.records()} == {"train"}


def test_an_image_on_which_the_labeller_breaks_is_found_and_counted(store):
    def breaks(name):
        if name == "i05":
            raise RuntimeError("no such thing")

    report, after = run_job(store, map(sample, NAMES), Labelling(fatal=breaks))
    assert (report.done, report.failed) == (9, 1)
    failure = after.failures().to_pylist()[0]
    assert failure["image_id"] == "i05"
    assert "RuntimeError: no such thing" in failure["message"]


def test_a_labeller_that_breaks_on_everything_ends_the_run(store):
    def breaks(name):
        raise RuntimeError("the model is broken")

    with pytest.raises(RuntimeError, match="broken"):
        run_job(store, map(sample, NAMES), Labelling(fatal=breaks))


def test_failures_are_told_once_however_often_a_run_is_taken_up(store):
    """A run whose inputs all failed so far dies, twice, and is taken up under its name."""

    def stop(report):
        if report.failed:
            raise KeyboardInterrupt

    bad = Labelling(bad=frozenset(NAMES))
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run_job(store.latest(), map(sample, NAMES), bad, LocalRunner(1), watch=stop)
    report, after = run_job(store.latest(), map(sample, NAMES), bad)
    assert report.resumed
    assert report.failed == 10
    assert sorted(f["image_id"] for f in after.failures().to_pylist()) == NAMES


def test_a_finished_run_is_not_taken_up(store):
    first, _ = run_job(store, map(sample, NAMES[:3]))
    second, _ = run_job(store.latest(), map(sample, NAMES))
    assert first.run != second.run
    assert not second.resumed


def test_shard_names_depend_on_identities_alone():
    a, b = Shard.of([sample("x"), sample("y")]), Shard.of([sample("x"), sample("y", "f1")])
    assert a.name == Shard.of([sample("x"), sample("y")]).name
    assert a.name != b.name
    assert [len(h.samples) for h in a.halves()] == [1, 1]
    assert Shard.of([sample("x")]).halves() == [Shard.of([sample("x")])]


def missing(ledger, samples):
    return (ledger.states(batch_keys(to_batch(samples))) != State.DONE).tolist()


def rows_of(ledger):
    """Return each row's key and fragment, sorted."""
    found = []
    for part in ledger._parts:
        at = np.flatnonzero(ledger._alive[part.home])
        keys = as_bytes(part.high[at], part.low[at])
        found += zip(keys, (ledger.paths[int(n)] for n in part.home[at]), strict=True)
    return sorted(found)


def test_ledger_knows_labels_by_path_fingerprint_and_digest(store):
    _, after = run_job(store, map(sample, NAMES[:4]))
    ledger = Ledger.of(after)
    asked = [sample("i00"), sample("i01", "f1"), sample("i02", digest="d1"), sample("new")]
    assert missing(ledger, asked) == [False, True, True, True]


def test_on_ray_rows_are_the_same(store, tmp_path, ray_session):
    _, local = run_job(store, map(sample, NAMES), Labelling(bad=frozenset({"i04"})))
    other = Store.create(tmp_path / "ray", [SPACE])
    runner = RayRunner(Resources(2, 2, cpus=0.5))
    report, there = run_job(other, map(sample, NAMES), Labelling(bad=frozenset({"i04"})), runner)
    assert (report.done, report.failed) == (9, 1)
    assert label_rows(there) == label_rows(local)


def die_on_i05(name: str) -> None:
    if name == "i05":
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_poisonous_image_stands_alone_in_errors(store, ray_session):
    runner = RayRunner(Resources(2, 2, cpus=0.5))
    report, after = run_job(
        store, map(sample, NAMES), Labelling(fatal=die_on_i05), runner, shard_rows=5
    )
    assert (report.inputs, report.done, report.failed) == (10, 9, 1)
    assert sorted(r.image_id for r in after.records()) == [n for n in NAMES if n != "i05"]
    failure = after.failures().to_pylist()[0]
    assert (failure["image_id"], failure["error"]) == ("i05", "PoisonInput")
    assert "killed the process" in failure["message"]


def test_a_worker_killed_from_outside_costs_nothing(store, tmp_path, ray_session):
    marker = tmp_path / "killed"

    class Once(Labelling):
        def label(self, samples):
            if samples[0].image_id == "i06" and not marker.exists():
                marker.write_text("x")
                os.kill(os.getpid(), signal.SIGKILL)
            return super().label(samples)

    runner = RayRunner(Resources(2, 2, cpus=0.5))
    report, after = run_job(store, map(sample, NAMES), Once(), runner)
    assert marker.exists()
    assert (report.done, report.failed) == (10, 0)
    assert after.count() == 10


def test_fragment_path_is_below_the_run():
    run = Run.__new__(Run)
    object.__setattr__(run, "name", "r")
    object.__setattr__(run, "attempt", "1")
    assert fragment_path(run, Shard("s", ())) == "data/r/1/s.parquet"


def test_record_of_is_what_the_samples_say():
    assert record_of(sample("a")).image.path == sample("a").path


def test_a_ledger_that_follows_knows_what_one_read_anew_knows(store, monkeypatch):
    """Rows come, are replaced and are joined; of each snapshot only the new fragments are read."""
    from pipeline.tables.upkeep import compact

    _, at = run_job(store, map(sample, NAMES[:4]))
    ledger = Ledger.of(at)
    read, whole = [], Store.scan_fragments

    def scan(self, columns, batch_rows=16384, only=None):
        read.extend(f.path for f in only or ())
        return whole(self, columns, batch_rows, only)

    steps = [
        lambda now: run_job(now, map(sample, NAMES))[1],
        lambda now: run_job(now, [sample(n, "f1") for n in NAMES[2:7]])[1],
        lambda now: compact(now)[0],
        lambda now: run_job(now, [sample(n, digest="d1") for n in NAMES[:1]])[1],
    ]
    for step in steps:
        before, now = at, step(at)
        read.clear()
        monkeypatch.setattr(Store, "scan_fragments", scan)
        ledger.follow(now)
        monkeypatch.undo()
        old = {f.path for f in before.fragments()}
        assert sorted(read) == sorted(f.path for f in now.fragments() if f.path not in old)
        fresh = Ledger.of(now)
        assert rows_of(ledger) == rows_of(fresh)
        assert [row[0] for row in rows_of(fresh)] == sorted(
            row_key(r.dataset, r.image.path) for r in now.records()
        )
        for listed in (NAMES, ["new"]):
            for asked in ([sample(n) for n in listed], [sample(n, "f1") for n in listed]):
                assert missing(ledger, asked) == missing(fresh, asked)
        at = now


def test_another_writers_commits_do_not_have_the_whole_ledger_read_again(store, monkeypatch):
    """The other commits after every shard of the first, and at last replaces a row of its."""
    reads, whole, others = [], Ledger.of, []

    def other(report):
        done = report.done
        if done in {0, *others}:
            return
        others.append(done)
        name = f"o{done}" if done < 9 else "i00"
        run = Run.begin(store.latest(), "other", kind="truth", identity=[str(done)])
        execute(
            store.latest(), [sample(name, "f9")], Labelling(7), run=run,
            choose_runner=lambda count: LocalRunner(1),
        )  # fmt: skip

    _, first = run_job(store, map(sample, NAMES[:4]))
    monkeypatch.setattr("pipeline.runs.drive._COMMIT_FRAGMENTS", 1)
    monkeypatch.setattr(Ledger, "of", lambda store: reads.append(store) or whole(store))
    run_job(first, [sample(n, "f2") for n in NAMES], runner=LocalRunner(1), watch=other)
    assert len(reads) == 1 + len(others) > 3
    after = store.latest()
    found = {r.image_id: r.fingerprint for r in after.records()}
    assert after.count() == len(found)
    assert {n for n, f in found.items() if f == "f2"} >= set(NAMES[1:])
