"""Jobs at work on one store at the same time, each a process of its own, and readers between."""

from __future__ import annotations

import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from pipeline.store import Store
from tests.pipeline.run_jobs import run_job
from tests.samples import SPACE, Labelling, sample

ROWS = 120
NAMES = [f"i{n:03d}" for n in range(ROWS)]
JOB = """
import sys, time
from pathlib import Path
import pipeline.runs.drive as drive
from pipeline.run import Run
from pipeline.runner import LocalRunner
from pipeline.runs.choice import Choice
from pipeline.samples import to_batch
from pipeline.store import Store
from tests.pipeline.test_run_together import NAMES, Slow
from tests.samples import sample

url, part, value, here, there = sys.argv[1:]

drive._COMMIT_FRAGMENTS = 2
choice = Choice.parse(shard=None if part == "all" else part)
batch = to_batch([sample(n, digest="new") for n in NAMES])
store = Store.open(url)
run = Run.begin(store, "toy", kind="truth", identity=["x", *choice.identity])
Path(here).touch()
while not Path(there).exists():
    time.sleep(0.005)
report = drive.execute(
    store, choice.of([batch]), Slow(int(value)), run=run, choose_runner=lambda n: LocalRunner(1),
    shard_rows=5,
)
print(report.run, report.inputs, report.done + report.skipped + report.failed, report.failed)
"""


class Slow(Labelling):
    """Here, not in `JOB`: a job that meets the other's plan works in child processes."""

    def label(self, samples):
        time.sleep(0.02)
        return super().label(samples)


def together(url: str, tmp_path: Path, parts: tuple[str, str]) -> list[list[str]]:
    """Run two jobs that wait for each other before they plan; return what each printed."""
    marks = [str(tmp_path / f"mark{n}") for n in (0, 1)]
    jobs = [
        subprocess.Popen(
            [sys.executable, "-c", JOB, url, part, str(5 + n), marks[n], marks[1 - n]],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            cwd=Path(__file__).parents[2],
        )
        for n, part in enumerate(parts)
    ]  # fmt: skip
    said = [job.communicate(timeout=120) for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0], said
    return [out.split() for out, _ in said]


@pytest.fixture
def held(tmp_path):
    """A store of all images, labelled by an older model, in fragments of thirty."""
    store = Store.create(tmp_path / "labels", [SPACE])
    return run_job(store, [sample(n, digest="old") for n in NAMES], shard_rows=30)[1]


def each_once(store: Store) -> bool:
    return Counter(r.image_id for r in store.records()) == Counter(NAMES)


def test_two_parts_of_a_bucket_replace_rows_of_the_same_fragments(held, tmp_path):
    said = together(held.url, tmp_path, ("1/2", "2/2"))
    after = held.latest()
    assert sum(int(words[1]) for words in said) == ROWS
    assert all(words[1:] == [words[1], words[1], "0"] for words in said)
    assert each_once(after)
    rows = list(after.records())
    assert {r.provenance.model_digest for r in rows} == {"new"}
    made = Counter((r.provenance.run, r.classes[0].id) for r in rows)
    assert made == {(words[0], 5 + n): int(words[1]) for n, words in enumerate(said)}
    runs = [c.note["run"] for c in after.history() if c.version > held.version]
    assert set(runs) == {words[0] for words in said}
    # What readers saw on the way: each image once, old or new.
    for version in range(held.version, after.version):
        assert each_once(Store.open(held.url, version))


def test_the_very_same_command_twice(held, tmp_path):
    said = together(held.url, tmp_path, ("all", "all"))
    after = held.latest()
    assert all(words[1:] == [str(ROWS), str(ROWS), "0"] for words in said)
    assert each_once(after)
    assert {r.provenance.model_digest for r in after.records()} == {"new"}
    for version in range(held.version, after.version):
        assert each_once(Store.open(held.url, version))
    report, again = run_job(after, [sample(n, digest="new") for n in NAMES])
    assert (report.done, again.version) == (0, after.version)


READER = """
import sys
from collections import Counter
from pathlib import Path
from pipeline.store import Store
url, names, stop = sys.argv[1], Counter(sys.argv[2].split()), Path(sys.argv[3])
seen, ended = 0, False
while not ended:
    ended = stop.exists()
    found = Counter(r.image_id for r in Store.open(url).records())
    assert found == names, names - found or found - names
    seen += 1
    print(seen, flush=True)
"""


def test_a_reader_never_sees_both_rows_of_a_changed_image_or_none(held, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.runs.drive._COMMIT_FRAGMENTS", 1)
    stop = tmp_path / "stop"
    command = [sys.executable, "-c", READER, held.url, " ".join(NAMES), str(stop)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        cwd=Path(__file__).parents[2],
    ) as reader:  # fmt: skip
        assert reader.stdout is not None
        assert reader.stdout.readline()
        changed = [sample(n, "f1", "old") for n in NAMES]
        report, after = run_job(held, changed, shard_rows=10,
                                watch=lambda report: time.sleep(0.02))  # fmt: skip
        stop.touch()
        out, errors = reader.communicate(timeout=60)
    assert reader.returncode == 0, errors
    assert out.split()
    assert (report.done, report.changed) == (ROWS, ROWS)
    assert {r.fingerprint for r in after.records()} == {"f1"}
    assert after.version >= held.version + 12
