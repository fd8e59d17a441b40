"""The label job through its command line: faults, repetition, and the number of workers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.store import Store
from tests.jobs.calls import call
from tests.samples import write_scenes

ROOT = Path(__file__).resolve().parents[2]
ENET = "zoo:enet?label_space=camvid-11&seed=1"
SLOW = "python:tests.slow_model:build?classes=11&label_space=camvid-11"
FIXED = {"SOURCE_DATE_EPOCH": "1700000000", "RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": "1"}


def start(*args: str, **env: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "jobs", *args, "--json"],
        cwd=ROOT,
        env={**os.environ, **FIXED, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def run(capsys, monkeypatch):
    """Give a way to label in this process, at a fixed time, with more of an environment."""

    def run(*args: object, code: int = 0, **env: str) -> dict:
        for name, value in (FIXED | env).items():
            monkeypatch.setenv(name, value)
        return call(capsys, "label", *args, code=code)[0]

    return run


def whole(store: Path) -> list:
    return sorted(Store.open(store).records(), key=lambda r: r.image_id)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    root = tmp_path_factory.mktemp("scenes")
    write_scenes(root, 24)
    (root / "0007.jpg").write_text("not an image")
    return root


def test_a_killed_driver_is_resumed_row_for_row(scenes, tmp_path, run):
    """kill -9 halfway, then again: the same store as without, and nothing labelled twice."""
    options = ("--model", SLOW, "--runner", "local", "--shard-images", "4", "--max-errors", "1")
    store, log = tmp_path / "killed", tmp_path / "log"
    process = start("label", str(scenes), str(store), *options,
                    SEGMILL_TEST_LOG=str(log), SEGMILL_TEST_SLEEP="0.4")  # fmt: skip
    deadline = time.monotonic() + 120
    while len(list(store.glob("data/*/*/*.parquet"))) < 2 and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    staged = len(list(store.glob("data/*/*/*.parquet")))
    assert 2 <= staged < 6

    again = tmp_path / "log2"
    report = run(scenes, store, *options, SEGMILL_TEST_LOG=str(again))
    assert report["resumed"]
    assert report["inputs"] == report["done"] + report["skipped"] + report["failed"] == 24
    assert report["failed"] == 1
    labelled = len(again.read_text().split())
    assert labelled == report["done"] == 23 - report["skipped"]
    assert report["skipped"] >= 2 * 2 - 1, "the shards written before the kill are adopted"

    fresh = tmp_path / "undisturbed"
    run(scenes, fresh, *options, SEGMILL_TEST_LOG=str(tmp_path / "log3"))
    assert whole(store) == whole(fresh)
    assert len(whole(store)) == 23
    assert [f["image_id"] for f in Store.open(store).failures().to_pylist()] == ["0007"]


def test_rows_are_equal_in_process_and_on_one_two_three_actors(scenes, tmp_path, ray_session, run):
    options = ("--model", ENET, "--shard-images", "3", "--max-errors", "1", "--confidence")
    ways = {"local": ("--runner", "local")} | {
        f"ray{n}": ("--runner", "ray", "--actors", f"{n}:{n}") for n in (1, 2, 3)
    }
    found = {}
    for name, way in ways.items():
        run(scenes, tmp_path / name, *options, *way)
        found[name] = whole(tmp_path / name)
    assert len(found["local"]) == 23
    for name in ways:
        assert found[name] == found["local"], name


def test_running_again_labels_nothing(scenes, tmp_path, run):
    options = ("--model", SLOW, "--runner", "local", "--max-errors", "100%")
    log = tmp_path / "log"
    first = run(scenes, tmp_path / "s", *options, SEGMILL_TEST_LOG=str(log))
    second = run(scenes, tmp_path / "s", *options, SEGMILL_TEST_LOG=str(log))
    assert (first["done"], second["done"], second["skipped"]) == (23, 0, 23)
    assert first["version"] == second["version"]
    assert len(log.read_text().split()) == 23


@pytest.mark.parametrize(
    ("args", "code", "text"),
    [
        (("nowhere", "S", "--model", ENET), 1, "nowhere"),
        (("IMAGES", "S", "--model", "zoo:unknown?classes=3"), 2, "unknown"),
        (("IMAGES", "S", "--model", "zoo:enet?classes=5&label_space=camvid-11"), 1, "11"),
        (("IMAGES", "S", "--model", ENET, "--precision", "int3"), 2, "--precision"),
        (("IMAGES", "S", "--model", ENET, "--actors", "3:2"), 2, "MIN"),
        (("IMAGES", "S", "--model", ENET, "--max-errors", "few"), 2, "--max-errors"),
        (("IMAGES", "IMAGES", "--model", ENET), 1, "no label store"),
    ],
)
def test_wrong_calls_get_one_line(scenes, tmp_path, capsys, args, code, text):
    filled = [{"IMAGES": str(scenes), "S": str(tmp_path / "s")}.get(a, a) for a in args]
    _, err = call(capsys, "label", *filled, code=code)
    assert text in err
    assert len(err.strip().splitlines()) == 1


def test_too_many_failures_exit_with_three(scenes, tmp_path, run):
    report = run(scenes, tmp_path / "s", "--model", ENET, "--runner", "local", code=3)
    assert (report["inputs"], report["done"], report["failed"]) == (24, 23, 1)
