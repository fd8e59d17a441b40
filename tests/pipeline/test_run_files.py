"""What a run writes: its plan, and shards as fragments of bounded size."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.errors import StoreError
from pipeline.run import Run, Shard
from pipeline.runner import LocalRunner
from pipeline.runs.attempts import is_dead, may_have_crashed, new_attempt
from pipeline.runs.history import run_summary
from pipeline.runs.names import RUNS, latest_runs
from pipeline.runs.outlook import past_rate
from pipeline.runs.plan import Plan
from pipeline.samples import to_batch
from pipeline.store import Store
from tests.pipeline.run_jobs import NAMES, run_job
from tests.samples import SPACE, Labelling, sample


@pytest.fixture
def store(tmp_path):
    return Store.create(tmp_path / "labels", [SPACE])


def plans_of(store):
    return sorted(e.name for e in store.tree().walk("_segmill/runs") if "/plan-" in e.name)


def test_a_plan_of_many_parts_comes_back_and_is_compressed(store, monkeypatch):
    monkeypatch.setattr("pipeline.runs.plan.PART_BYTES", 25_000)
    run = Run.begin(store, "toy", kind="truth", identity=["x"])
    plan, shards = Plan(store, run), []
    for n in range(20):
        noted = replace(sample(f"ü{n}", "f\n"), payload={"note": "x" * 5000, "n": [n, None]})
        shards.append(Shard.of([noted, sample(f"j{n}")]))
        plan.add(to_batch(shards[-1].samples))
        plan.add(to_batch([]))
    plan.flush()
    assert list(plan.shards()) == shards
    sizes = [store.tree().entry(name).size for name in plans_of(store)]
    assert len(sizes) == 4
    assert sum(sizes) < 20 * 5000 / 4
    plan.remove()
    assert plans_of(store) == []


def test_no_attempt_leaves_its_plan_behind(store):
    def stop(report):
        assert len(plans_of(store)) == 1
        if report.done:
            raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run_job(store.latest(), map(sample, NAMES), runner=LocalRunner(1), watch=stop)
        assert plans_of(store) == []
    report, _ = run_job(store.latest(), map(sample, NAMES))
    assert report.resumed
    assert plans_of(store) == []


def test_a_finished_run_takes_the_plans_of_killed_attempts_and_leaves_those_at_work(store):
    run = Run.begin(store, "toy", kind="truth", identity=["x"])
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"],
                          capture_output=True, text=True, check=True).stdout.strip()  # fmt: skip
    began, machine, mine = run.attempt.split("-")
    killed, elsewhere = f"{began}-{machine}-{gone}", f"{began}-00000000-{gone}"
    alive = f"{began}0-{machine}-{mine}"
    for attempt in (killed, elsewhere, alive):
        plan = Plan(store, replace(run, attempt=attempt))
        plan.add(to_batch([sample("i00")]))
        plan.flush()
    run_job(store.latest(), map(sample, NAMES))
    assert {name.split("/")[-2] for name in plans_of(store)} == {elsewhere, alive}


def test_vacuum_takes_plans_of_finished_runs_and_of_old_attempts(store):
    runs = [Run.begin(store, "toy", kind="truth", identity=[x]) for x in "abc"]
    runs[1] = replace(runs[1], attempt=f"{1:x}-77")
    for run in runs:
        plan = Plan(store, run)
        plan.add(to_batch([sample("i00")]))
        plan.flush()
    store.sink().write(f"_segmill/runs/{runs[0].name}/finished.json", b"{}")
    before = plans_of(store)
    listed = [f for f in store.vacuum() if "/plan-" in f]
    assert [name.split("/")[2] for name in listed] == sorted(r.name for r in runs[:2])
    assert plans_of(store) == before
    store.vacuum(delete=True)
    assert [name.split("/")[2] for name in plans_of(store)] == [runs[2].name]


def test_a_driver_whose_plan_was_taken_away_says_so(store, monkeypatch):
    class Late(Labelling):
        def label(self, samples):
            for name in plans_of(store):
                store.sink().remove(name)
            return super().label(samples)

    monkeypatch.setattr("pipeline.runs.plan.PART_BYTES", 1)
    with pytest.raises(StoreError, match="was taken away"):
        run_job(store, map(sample, NAMES), Late(), LocalRunner(1))
    report, after = run_job(store.latest(), map(sample, NAMES))
    assert (report.inputs, after.count()) == (10, 10)


class Heavy(Labelling):
    """Labels rows of which each takes 1,000 bytes more than a row without an image."""

    def label(self, samples):
        for listed, record in super().label(samples):
            image = replace(record.image, bytes=bytes(1000)) if hasattr(record, "image") else None
            yield listed, replace(record, image=image) if image else record


def test_a_shard_of_many_bytes_becomes_several_fragments(store, tmp_path, monkeypatch):
    size = next(iter(Heavy().label([sample("i00")])))[1].held_bytes
    assert 2000 < size < 4000
    monkeypatch.setattr("pipeline.run.FRAGMENT_BYTES", 3 * size + 10)
    bad = frozenset({"i01"})
    _, after = run_job(store, map(sample, NAMES), Heavy(bad=bad), shard_rows=8)
    fragments = after.fragments()
    assert sorted(f.rows for f in fragments) == [1, 2, 3, 3]
    stem = Shard.of([sample(n) for n in NAMES[:8]]).name
    names = {f.path.split("/")[-1] for f in fragments}
    assert {f"{stem}{tail}.parquet" for tail in ("", "-1", "-2")} < names
    assert sorted(r.image_id for r in after.records()) == [n for n in NAMES if n not in bad]
    other = Store.create(tmp_path / "other", [SPACE])
    _, again = run_job(other, map(sample, NAMES), Heavy(bad=bad), LocalRunner(1), shard_rows=8)
    assert names == {f.path.split("/")[-1] for f in again.fragments()}
    assert sorted(f.size for f in fragments) == sorted(f.size for f in again.fragments())


def test_of_a_shard_that_died_half_written_the_fragments_are_adopted(store, tmp_path, monkeypatch):
    from pipeline.run import ShardWriter

    def dies(name):
        if name == "i05":
            raise KeyboardInterrupt

    monkeypatch.setattr("pipeline.run.FRAGMENT_BYTES", 1)
    log = str(tmp_path / "log")
    run = Run.begin(store, "toy", kind="truth", identity=["x"])
    with pytest.raises(KeyboardInterrupt):
        ShardWriter(Heavy(log=log, fatal=dies), store.sink(), run)()(
            Shard.of([sample(n) for n in NAMES])
        )
    report, after = run_job(store.latest(), map(sample, NAMES), Heavy(log=log), shard_rows=10)
    assert (report.adopted, report.done, report.failed) == (4, 6, 0)
    assert sorted(r.image_id for r in after.records()) == NAMES
    # The one that was labelled and not written is labelled again.
    assert sorted((tmp_path / "log").read_text().split()) == sorted([*NAMES, "i04"])


def test_a_row_that_no_array_holds_is_a_failure(store, monkeypatch):
    size = next(iter(Heavy().label([sample("i00")])))[1].held_bytes
    monkeypatch.setattr("pipeline.run.MOST_ROW_BYTES", size - 1)
    monkeypatch.setattr("pipeline.run.FRAGMENT_BYTES", 1)

    class Mixed(Heavy):
        def label(self, samples):
            yield from Heavy.label(self, samples[:1])
            yield from Labelling.label(self, samples[1:])

    report, after = run_job(store, map(sample, NAMES), Mixed(), shard_rows=10)
    assert (report.done, report.failed, after.count()) == (9, 1, 9)
    assert "its row would take" in after.failures().to_pylist()[0]["message"]


def test_images_side_by_side_on_which_the_labeller_breaks_fail_alone(store):
    def breaks(name):
        if name in {"i04", "i05", "i06"}:
            raise RuntimeError("no such thing")

    labeller = Labelling(fatal=breaks, bad=frozenset({"i03"}))
    report, after = run_job(store, map(sample, NAMES), labeller, shard_rows=10)
    assert (report.done, report.failed) == (6, 4)
    assert sorted(r.image_id for r in after.records()) == [*NAMES[:3], *NAMES[7:]]


def test_what_was_labelled_before_the_labeller_broke_is_not_labelled_again(store, tmp_path):
    def breaks(name):
        if name == "i05":
            raise RuntimeError("no such thing")

    log = tmp_path / "log"
    run_job(store, map(sample, NAMES), Labelling(fatal=breaks, log=str(log)), shard_rows=10)
    assert sorted(log.read_text().split()) == [n for n in NAMES if n != "i05"]


def test_only_an_attempt_that_is_known_to_live_has_not_crashed():
    _, machine, mine = new_attempt().split("-")
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    later = f"{time.time_ns() + int(60e9):x}"
    try:
        assert not may_have_crashed(f"{later}-{machine}-{child.pid}")
        assert may_have_crashed(f"{1:x}-{machine}-{child.pid}"), "a number that was used before"
    finally:
        child.communicate(b"\n")
    assert may_have_crashed(f"{later}-{machine}-{child.pid}")
    assert is_dead(f"{later}-{machine}-{child.pid}")
    elsewhere = f"{later}-00000000-{mine}"
    assert may_have_crashed(elsewhere)
    assert not is_dead(elsewhere)


def test_a_damaged_plan_and_a_damaged_summary_are_told(store):
    run = Run.begin(store, "toy", kind="truth", identity=["x"])
    plan = Plan(store, run)
    plan.add(to_batch([sample(n) for n in NAMES]))
    plan.flush()
    (part,) = plans_of(store)
    data = store.tree().read(part)
    for bad in (data[: len(data) // 2], b"garbage"):
        store.sink().write(part, bad)
        with pytest.raises(StoreError, match="is damaged"):
            list(plan.shards())
    plan.remove()
    report, store = run_job(store, [sample(n) for n in NAMES])
    store.sink().write(f"_segmill/runs/{report.run}/finished.json", b'{"stages')
    assert past_rate(store.tree(), "toy", "d", 0.0) is None
    with pytest.raises(StoreError, match=r"finished\.json is damaged; the rows are whole"):
        run_summary(store, report.run)
    again, _ = run_job(store, [sample(n) for n in NAMES])
    assert (again.done, again.skipped) == (0, 10)


def test_a_damaged_log_and_a_place_that_takes_nothing_are_told_in_a_line(store, tmp_path):
    _, store = run_job(store, [sample(n) for n in NAMES])
    last = max(tmp_path.glob("labels/_delta_log/*.json"))
    for bad in ("garbage", last.read_text()[:60]):
        last.write_text(bad)
        with pytest.raises(StoreError, match="newest version cannot be read") as told:
            Store.open(store.url)
        assert "\n" not in str(told.value)
        assert "put it back" in str(told.value)
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be written"):
        Store.create(tmp_path / "file" / "below", [SPACE])


@pytest.mark.parametrize("how", ["gone", "empty"])
def test_a_log_that_lost_its_end_is_no_reason_to_label_anew(store, how):
    """Delta itself takes the commits for none."""
    _, after = run_job(store, map(sample, NAMES))
    last = Path(store.url) / "_delta_log" / f"{after.version:020d}.json"
    held = last.read_bytes()
    last.unlink() if how == "gone" else last.write_bytes(b"")
    assert store.latest().count() < after.count()
    with pytest.raises(StoreError, match=f"{last.name} is empty|ends at {after.version - 1}: "):
        run_job(store.latest(), map(sample, NAMES))
    last.write_bytes(held)
    report, _ = run_job(store.latest(), map(sample, NAMES))
    assert report.skipped == report.inputs == 10
    # What the message says to do where there is no copy.
    last.unlink()
    (Path(store.url) / RUNS).rename(Path(store.url) / "_runs-before")
    report, again = run_job(store.latest(), map(sample, NAMES))
    assert (report.done, again.count()) == (10, 10)


def test_a_snapshot_that_another_run_left_behind_is_no_lost_log(store):
    run_job(store, map(sample, NAMES[:5]))
    report, after = run_job(store, map(sample, NAMES))
    assert (report.inputs, after.count()) == (10, 10)


def test_the_latest_run_is_the_one_that_began_last():
    class Names:
        def isdir(self, _):
            return True

        def names(self, _):
            return [
                "label-ffff-20260101T000000-9",
                "ingest-aaaa-20260102T000000-2",
                "label-0000-20260102T000000-10",
            ]

    assert [name.split("-")[1] for name in latest_runs(Names())] == ["0000", "aaaa", "ffff"]
