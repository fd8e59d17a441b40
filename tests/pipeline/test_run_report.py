"""What a run's report says of its workers' time, and the metrics that are made of it."""

from __future__ import annotations

import pytest

from pipeline.errors import SegmillError
from pipeline.ray_runner import RayRunner
from pipeline.run import Shelved
from pipeline.runner import Crew, LocalRunner, Resources
from pipeline.runs import report as module
from pipeline.runs.failures import Failure
from pipeline.runs.metrics import METRICS, MetricsFile, RunMetrics
from pipeline.runs.report import RunReport, Shift
from pipeline.spent import BESIDE
from pipeline.store import Store
from tests.pipeline.run_jobs import NAMES, run_job
from tests.samples import SPACE, sample


class Clock:
    """A clock that is set by hand."""

    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr(module.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(module.time, "perf_counter", lambda: self.now)


def failure(error):
    return Failure("p", "i", "d", "s", "label", error, "m")


def test_a_worker_accounts_for_all_of_its_time(monkeypatch):
    clock = Clock(monkeypatch)
    shift = Shift()
    clock.now += 5
    shift.ready()
    clock.now += 2
    shift.begin()
    clock.now += 10
    first = shift.end({"forward": 6.0, "write": 1.0, "read": 30.0, "decode": 9.0})
    assert first["startup"] == 5
    assert first["idle"] == 2
    assert first["other"] == 3
    assert sum(v for k, v in first.items() if k not in BESIDE) == 17
    clock.now += 1
    shift.begin()
    clock.now += 4
    second = shift.end({"forward": 4.0})
    assert second == {"forward": 4.0, "idle": 1.0, "other": 0.0}


def test_the_stages_of_two_workers_sum_to_workers_times_wall(monkeypatch):
    """By hand: a starts at once, b 20 s later; a dies after its first shard."""
    clock = Clock(monkeypatch)
    report, crew = RunReport("r"), Crew(alive=1, starting=1)
    report.begin(30, crew)
    clock.now += 10
    spent = {"startup": 4.0, "forward": 6.0, "read": 99.0}
    report.book(Shelved((), 9, (failure("CorruptImage"),), (), spent, 900, "a"))
    crew.alive = 2
    clock.now += 20
    report.book(Shelved((), 10, (), (), {"startup": 2.0, "forward": 7.0, "idle": 1.0}, 1000, "b"))
    crew.alive = 1
    clock.now += 10
    report.book(Shelved((), 10, (), (), {"wait": 2.0, "forward": 8.0}, 1000, "b"))
    report.end()
    assert (report.done, report.failed, report.pixels) == (29, 1, 2900)
    assert report.failures == {"CorruptImage": 1}
    assert (report.workers, report.wall) == (2, 40)
    assert report.worker_seconds() == 10 + 20
    # 2 workers x 40 s: b came 20 s late, a was gone for 30 s.
    assert report.seconds["absent"] == 50
    shares = report.shares()
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["forward"] == pytest.approx(21 / 80)
    assert "read" not in shares
    assert report.images_per_second == 29 / 40


def test_who_waits_for_the_last_shard_is_idle(monkeypatch):
    clock = Clock(monkeypatch)
    report = RunReport("r")
    report.begin(2, Crew(alive=2))
    clock.now += 10
    report.book(Shelved((), 1, (), (), {"forward": 10.0}, 1, "a"))
    clock.now += 30
    report.book(Shelved((), 1, (), (), {"forward": 40.0}, 1, "b"))
    report.end()
    assert report.seconds["idle"] == 30
    assert report.shares() == {"forward": 50 / 80, "idle": 30 / 80, "absent": 0.0}
    assert report.bottleneck() == "the model"


@pytest.mark.parametrize(
    ("stages", "cause"),
    [
        ({"wait": 9.0, "forward": 1.0, "read": 8.0, "decode": 2.0}, "reading the images"),
        ({"wait": 9.0, "forward": 1.0, "read": 1.0, "decode": 2.0}, "decoding the images"),
        ({"write": 5.0, "forward": 4.0}, "writing the rows"),
        ({"refine": 5.0, "forward": 4.0}, "refine"),
    ],
)
def test_the_bottleneck_is_what_workers_spend_most_time_on(stages, cause):
    report = RunReport("r")
    report.begin(1, Crew(alive=1))
    report.book(Shelved((), 1, (), (), stages, 1, "a"))
    assert report.bottleneck() == cause


@pytest.mark.parametrize("where", ["local", "ray"])
def test_a_job_s_report_adds_up(where, tmp_path, request):
    runner = LocalRunner(2)
    if where == "ray":
        request.getfixturevalue("ray_session")
        runner = RayRunner(Resources(2, 2, cpus=0.5))
    seen = []
    report, store = run_job(
        Store.create(tmp_path / "s", [SPACE]), map(sample, NAMES), runner=runner, shard_rows=2,
        watch=lambda r: seen.append((r.done + r.failed, r.todo)), facts={"model": "m"},
    )  # fmt: skip
    assert seen == sorted(seen)
    assert seen[-1] == (10, 10)
    assert 1 <= report.workers <= 2
    assert report.pixels == sum(r.height * r.width for r in store.records()) > 0
    lives = report.workers * report.wall
    assert report.worker_seconds() + report.seconds["absent"] == pytest.approx(lives, abs=0.3)
    told = store.history()[0].note["so_far"]
    assert (told["model"], told["inputs"]) == ("m", 10)


# --- metrics --------------------------------------------------------------------------------------


class Book:
    """Keeps what meters are told, as Prometheus would."""

    def __init__(self):
        self.values = {}

    def __call__(self, metric):
        def meter(value, tags):
            assert set(tags) == {"verb", "run", *metric.tags}
            key = (metric.name, *(tags[t] for t in metric.tags))
            if metric.kind == "counter":
                assert value > 0
                value += self.values.get(key, 0)
            self.values[key] = value

        return meter


def test_metrics_are_the_report(monkeypatch):
    clock, book = Clock(monkeypatch), Book()
    report = RunReport("r")
    report.begin(30, Crew(alive=2, starting=1, in_flight=4))
    metrics = RunMetrics(book, "label", "r")
    for n in range(3):
        clock.now += 10
        failures = (failure("CorruptImage"),) * n
        report.book(Shelved((), 4, failures, (), {"forward": 8.0, "wait": 2.0}, 400, "a"))
        metrics(report)
    found = dict(book.values)
    assert found.pop(("segmill_last_shard_timestamp_seconds",)) > 1e9
    assert found == {
        ("segmill_images",): 12,
        ("segmill_pixels",): 1200,
        ("segmill_failures", "CorruptImage"): 3,
        ("segmill_seconds", "forward"): 24,
        ("segmill_seconds", "wait"): 6,
        ("segmill_worker_seconds",): 30,
        ("segmill_todo",): 30 - 15,
        ("segmill_workers",): 2,
        ("segmill_workers_starting",): 1,
        ("segmill_queue_depth",): 4,
    }


def test_ray_takes_every_metric(ray_session):
    """Ray refuses tags that a metric did not name; a second run has the same metrics again."""
    for run in ("one", "two"):
        report = RunReport(run)
        report.begin(3, Crew(alive=1))
        report.book(Shelved((), 1, (failure("X"),), (), {"forward": 1.0}, 1, "a"))
        metrics = RunMetrics(RayRunner().meter, "label", run)
        metrics(report)
        assert len(metrics._meters) == len(METRICS)


def test_a_metrics_file_is_what_prometheus_reads(tmp_path, monkeypatch):
    """The judge is Prometheus' own client library."""
    parser = pytest.importorskip("prometheus_client.parser")
    clock, path = Clock(monkeypatch), tmp_path / "segmill.prom"
    report, evil = RunReport("r"), 'a "b" \\ c\nd'
    report.begin(30, Crew(alive=2))
    write = MetricsFile(str(path), "label")
    for n in range(1, 4):
        clock.now += 11
        report.book(Shelved((), 9, (failure(evil),), (), {"forward": 8.0}, 400, "a"))
        write(report)
        families = {f.name: f for f in parser.text_string_to_metric_families(path.read_text())}
        (images,) = families["segmill_images"].samples
        assert (images.value, images.labels) == (9 * n, {"run": "r", "verb": "label"})
        (failures,) = families["segmill_failures"].samples
        assert (failures.value, failures.labels["error"]) == (n, evil)
    assert families["segmill_todo"].samples[0].value == 0
    assert {f"{m.name}:{m.kind}" for m in METRICS} == {
        f"{f.name}:{f.type}" for f in families.values()
    }
    assert [p.name for p in tmp_path.iterdir()] == ["segmill.prom"]


def test_a_metrics_file_is_not_written_for_every_shard(tmp_path, monkeypatch):
    clock, path = Clock(monkeypatch), tmp_path / "segmill.prom"
    report = RunReport("r")
    report.begin(100, Crew(alive=1))
    write, seen = MetricsFile(str(path), "label"), set()
    for _ in range(99):
        clock.now += 1
        report.book(Shelved((), 1, (), (), {}, 1, "a"))
        write(report)
        seen.add(path.read_text())
    assert len(seen) == 10
    report.book(Shelved((), 1, (), (), {}, 1, "a"))
    write(report)
    assert 'segmill_images_total{run="r",verb="label"} 100' in path.read_text(), (
        "the last one at once"
    )


def test_a_metrics_file_that_fails_later_ends_no_run(tmp_path, caplog):
    path = tmp_path / "folder" / "segmill.prom"
    report = RunReport("r")
    report.begin(1, Crew(alive=1))
    with pytest.raises(SegmillError, match=r"--metrics .*segmill\.prom"):
        MetricsFile(str(path), "label")(report)
    path.parent.mkdir()
    write = MetricsFile(str(path), "label")
    write(report)
    path.unlink()
    path.parent.rmdir()
    report.book(Shelved((), 1, (), (), {}, 1, "a"))
    write(report)
    assert str(path) in caplog.text


def test_in_this_process_nothing_collects():
    metrics = RunMetrics(LocalRunner(1).meter, "label", "r")
    metrics(RunReport("r"))
    assert not metrics._meters


def test_the_report_does_not_grow_with_the_images(tmp_path):
    report, store = run_job(
        Store.create(tmp_path / "s", [SPACE]), (sample(f"n{n:05d}") for n in range(400)),
        runner=LocalRunner(2), shard_rows=4,
    )  # fmt: skip
    assert report.done == store.count() == 400
    assert len(report._heard) <= 2
    assert len(report.seconds) < 12
