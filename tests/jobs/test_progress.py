"""What a verb says while it runs and when it ends, and what the store's history keeps of that."""

from __future__ import annotations

import io
import os
import pty
import re
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.progress import Pace, Progress, State, pauses, span
from pipeline.runner import Crew
from pipeline.runs.report import RunReport
from pipeline.store import Store
from tests.jobs.calls import call
from tests.samples import write_scenes

ROOT = Path(__file__).resolve().parents[2]
ENET = "zoo:enet?label_space=camvid-11&seed=1"
SLOW = "python:tests.slow_model:build?classes=11&label_space=camvid-11"


# --- the pace -------------------------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.floats(0, 30), st.integers(0, 50)), min_size=1, max_size=300),
    st.floats(0, 100),
)
def test_the_pace_is_the_growth_over_a_window_that_stays_small(steps, silence):
    pace, now, count, seen = Pace(0.0), 0.0, 0, [(0.0, 0)]
    for gap, grown in steps:
        now, count = now + gap, count + grown
        pace.reach(count, now)
        seen.append((now, count))
    now += silence + 0.01
    assert pace.overall(now) == pytest.approx(count / now)
    # Whatever window it took, it is one between two moments at which the count was told.
    grown = pace.recent(now)
    starts = [(count - before) / max(now - since, 1e-9) for since, before in seen]
    assert any(grown == pytest.approx(rate) for rate in starts)
    assert len(pace._steps) < 75


def test_the_pace_of_late_forgets_a_slow_start():
    pace = Pace(0.0)
    for second in range(1, 601):
        pace.reach(second if second <= 300 else 300 + 10 * (second - 300), float(second))
    assert pace.recent(600.0) == pytest.approx(10, rel=0.05)
    assert pace.overall(600.0) == pytest.approx(5.5)
    assert pace.recent(1200.0) < 1.5, "it falls while nothing comes"


def test_rare_steps_still_have_a_pace():
    """A shard in five minutes: a window of one minute alone would be empty."""
    pace = Pace(0.0)
    for n in range(1, 21):
        pace.reach(128 * n, 300.0 * n)
    assert pace.recent(6000.0) == pytest.approx(128 / 300)


def test_work_that_goes_on_counts_from_where_it_was_at_the_pace_of_now():
    state = State(None, "steps", 0.0)
    state.go_on(1586)
    assert state.line("train", 10.0) == "train: 1,586"
    for n in range(1, 21):
        state.reach(1586 + n, 2745, 5.0 * n)
    said = state.line("train", 100.0)
    assert said.startswith("train: 1,606 of 2,745 (58.5%), 0.2 steps/s now, 0.2 on average")
    assert said.endswith(f"{span((2745 - 1606) * 5)} left")


def test_training_that_goes_on_says_how_many_steps_are_done_in_all():
    from jobs.train import _telling_steps

    progress = Progress("train", unit="steps", stream=io.StringIO())
    step = _telling_steps(progress)
    for done in (1587, 1588, 1589):
        step(done, 2745)
    assert (progress._state.done, progress._state.total) == (1589, 2745)
    assert progress._state._pace.base == 1586


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.4, "59 s"), (60, "1 min 0 s"), (3599, "59 min 59 s"), (3600, "1 h 0 min"),
     (86399, "23 h 59 min"), (90000, "1 d 1 h")],
)  # fmt: skip
def test_spans(seconds, text):
    assert span(seconds) == text


def test_lines_come_seldom_and_ever_more_seldom():
    gaps = [pause for pause, _ in zip(pauses(), range(30), strict=False)]
    assert gaps[0] == 10
    assert gaps == sorted(gaps)
    assert gaps[-1] == gaps[-2] == 60


# --- the line -------------------------------------------------------------------------------------


def test_a_line_says_the_count_the_pace_and_what_a_run_knows():
    state = State(None, "images", 0.0)
    state.listing(5000, 4000)
    assert state.line("label", 50.0) == "label: 5,000 listed, 4,000 to do"
    report = RunReport("r")
    report.begin(4000, Crew())
    state.watch(report, 90.0)
    assert state.line("label", 90.0) == "label: 0 of 4,000 (0.0%), no workers yet"
    report.crew.starting = 3
    state.watch(report, 100.0)
    assert state.line("label", 100.0) == "label: 0 of 4,000 (0.0%), 0 workers (3 starting)"

    report.crew.alive, report.crew.starting = 3, 0
    report.done, report.failed = 396, 4
    report.seconds["forward"], report._past = 24.0, 30.0
    state.watch(report, 110.0)
    assert state.line("label", 110.0) == (
        "label: 400 of 4,000 (10.0%), 20.0 images/s now, 20.0 on average, 3 min 0 s left, "
        "4 failed, device busy 80%, 3 workers"
    )


def test_without_a_total_there_is_no_time_left():
    state = State(None, "rows", 0.0)
    state.reach(10, None, 4.0)
    assert state.line("merge", 4.0) == "merge: 10, 2.5 rows/s now, 2.5 on average"


def test_a_short_job_says_nothing_in_a_log():
    log = io.StringIO()
    with Progress("label", 10, stream=log) as progress:
        progress.advance(10)
    assert log.getvalue() == ""


# --- the verb -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    root = tmp_path_factory.mktemp("scenes")
    write_scenes(root, 12)
    (root / "0007.jpg").write_text("not an image")
    return root


def on_a_terminal(*args: object, **env: str) -> str:
    """Run a verb in a pseudo terminal of 120 columns; return all that it drew."""
    ours, theirs = pty.openpty()
    settings = {"COLUMNS": "120", "TERM": "xterm", "OMP_NUM_THREADS": "1", **env}
    process = subprocess.Popen(
        [sys.executable, "-m", "jobs", *map(str, args)],
        cwd=ROOT, env={**os.environ, **settings}, stdin=theirs, stdout=theirs, stderr=theirs,
    )  # fmt: skip
    os.close(theirs)
    drawn, deadline = b"", time.monotonic() + 120
    while time.monotonic() < deadline:
        if select.select([ours], [], [], 0.5)[0]:
            try:
                drawn += os.read(ours, 1 << 16)
            except OSError:  # the other side is closed
                break
    os.close(ours)
    assert process.wait(timeout=60) == 0, drawn.decode(errors="replace")
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", drawn.decode(errors="replace"))


def test_on_a_terminal_a_bar_shows_the_run_and_leaves_its_sum(scenes, tmp_path):
    drawn = on_a_terminal(
        "label", scenes, tmp_path / "s", "--model", SLOW, "--runner", "local",
        "--shard-images", 2, "--max-errors", 1, SEGMILL_TEST_SLEEP="0.3",
        SEGMILL_TEST_LOG=str(tmp_path / "log"),
    )  # fmt: skip
    assert re.search(r"label\s+[━╸╺]+\s+\d+ of 12 [\d.]+ images/s", drawn)
    assert re.search(r"\d+ s left.*2? workers?", drawn)
    assert "12 inputs = 11 done + 0 skipped + 1 failed" in drawn
    assert re.search(r"workers: .*; the bottleneck is \w+", drawn)
    assert "failed: 1 " in drawn


def test_the_summary_has_a_budget_that_agrees_with_the_wall(scenes, tmp_path, capsys):
    summary, _ = call(
        capsys, "label", scenes, tmp_path / "s", "--model", ENET, "--runner", "local",
        "--shard-images", 2, "--max-errors", 1,
    )  # fmt: skip
    assert summary["inputs"] == summary["done"] + summary["skipped"] + summary["failed"] == 12
    assert sum(summary["failures"].values()) == summary["failed"] == 1
    rows = list(Store.open(tmp_path / "s").records())
    assert summary["pixels"] == sum(r.height * r.width for r in rows)
    assert {"list", "plan", "adopt", "commit", "startup", "write", "idle"} <= set(summary["stages"])
    assert sum(summary["shares"].values()) == pytest.approx(1, abs=0.1)
    lives = summary["workers"] * summary["wall"]
    assert summary["worker_seconds"] + summary["stages"]["absent"] == pytest.approx(lives, rel=0.05)
    assert summary["images_per_second"] == pytest.approx(11 / summary["wall"], rel=0.01)
    assert summary["bottleneck"]


def test_history_tells_what_each_version_s_run_came_to(scenes, tmp_path, capsys):
    store = tmp_path / "s"
    options = ("--model", ENET, "--runner", "local", "--max-errors", 1)
    first, _ = call(capsys, "label", scenes, store, *options)
    call(capsys, "store", "tag", store, "good")
    found, _ = call(capsys, "store", "history", store)
    newest = found["history"][0]
    assert (newest["version"], newest["tag"]) == (1, "good")
    told = newest["note"]["so_far"]
    for key in ("inputs", "done", "skipped", "failed", "failures", "model_digest", "pixels"):
        assert told[key] == first[key], key
    assert told["model"] == ENET
    assert told["segmill"]

    for name in (first["run"], "label-", 1):
        whole, _ = call(capsys, "store", "history", store, "--run", name)
        assert whole["run"]["run"] == first["run"]
        assert whole["run"]["finished"]
        assert whole["run"]["stages"] == first["stages"]
    for name in ("nothing", 0):
        _, err = call(capsys, "store", "history", store, "--run", name, code=2)
        assert first["run"] in err


def test_a_run_without_a_commit_is_told_too(scenes, tmp_path, capsys):
    """All is done already: no version comes of it, but its summary is kept."""
    options = (scenes / "*1.jpg", tmp_path / "s", "--model", ENET, "--runner", "local")
    first, _ = call(capsys, "label", *options)
    again, _ = call(capsys, "label", *options)
    assert (again["skipped"], again["done"], again["workers"]) == (first["done"], 0, 0)
    assert first["done"] == 2
    whole, _ = call(capsys, "store", "history", tmp_path / "s", "--run", again["run"])
    assert (whole["run"]["skipped"], whole["run"]["finished"]) == (2, True)
