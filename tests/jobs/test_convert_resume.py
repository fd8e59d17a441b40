"""A conversion that dies is taken up again: kill -9, stops, other commands in between."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import fsspec
import pytest

from jobs.__main__ import main
from pipeline.streetscenes import write_dataset
from tests.jobs.calls import call

if TYPE_CHECKING:
    from pathlib import Path

IMAGES, CHUNK = 24, 4
KILLED = f"""
import os, sys
import jobs.convert
from {{module}} import {{owner}} as module
jobs.convert.CHUNK_SAMPLES = jobs.convert.FAR_CHUNK_SAMPLES = {CHUNK}
real, left = module.{{name}}, [{{after}}]
def dying(*args, **kwargs):
    left[0] -= 1
    if left[0] < 0:
        os.kill(os.getpid(), 9)
    return real(*args, **kwargs)
module.{{name}} = dying
from jobs.__main__ import main
main(sys.argv[1:])
"""
"""Runs a verb and dies when a function is called for the n-th time."""


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("jobs.convert.CHUNK_SAMPLES", CHUNK)
    monkeypatch.setattr("jobs.convert.FAR_CHUNK_SAMPLES", CHUNK)
    write_dataset(tmp_path / "data", IMAGES, height=24, width=32, seed=1, splits=(1, 0, 0))
    (tmp_path / "data" / "trainannot" / "street_000001.png").write_bytes(b"no picture")
    return tmp_path / "data"


def words(data: Path, out: object, to: str) -> list[str]:
    rest = ["--from", "camvid-11", "--to", to, "--runner", "local", "--workers", "1"]
    return ["convert", str(data), str(out), *rest, "--max-errors", "10%"]


def files(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def same(one: dict[str, bytes], two: dict[str, bytes]) -> None:
    assert sorted(one) == sorted(two)
    for name in one:
        assert one[name] == two[name], name


def kill(command: list[str], module: str, owner: str, name: str, after: int) -> None:
    code = KILLED.format(module=module, owner=owner, name=name, after=after)
    ended = subprocess.run([sys.executable, "-c", code, *command], check=False, timeout=120)
    assert ended.returncode == -signal.SIGKILL


@pytest.mark.parametrize("to", ["cityscapes", "coco-instances", "voc"])
def test_after_kill_9_the_finished_chunks_are_left_alone(
    to: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    undisturbed, _ = call(capsys, *words(data, whole, to))
    assert undisturbed["resumed"] == 0
    # In the middle of a chunk, in the middle of a file; the first is the mark of what is not whole.
    count = 1 + (len(files(whole)) * 2) // 3
    kill(words(data, out, to), "pipeline.trees.sinks", "os", "replace", count)
    assert (out / "segmill-incomplete.txt").exists()
    left = [p for p in out.rglob(".segmill-*.tmp") if ".segmill/" not in str(p)]
    assert len(left) == 1
    (out / ".segmill-1-2-3.tmp").write_bytes(b"another's")
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()}
    summary, err = call(capsys, *words(data, out, to))
    assert summary["resumed"] >= 2 * CHUNK
    assert summary["resumed"] < IMAGES
    assert "taken up again" in err
    assert (summary["done"], summary["failed"]) == (IMAGES - 1, 1)
    untouched = [p for p, at in before.items() if p.exists() and p.stat().st_mtime_ns == at]
    assert len(untouched) >= summary["resumed"]
    assert not left[0].exists()
    assert (out / ".segmill-1-2-3.tmp").exists(), "not ours to remove"
    (out / ".segmill-1-2-3.tmp").unlink()
    same(files(out), files(whole))
    assert summary["loss"] == undisturbed["loss"]


@pytest.mark.parametrize("to", ["coco-instances", "nyuv2-mat"])
def test_after_kill_9_in_the_last_step(
    to: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    call(capsys, *words(data, whole, to))
    kill(words(data, out, to), "connectors", "checkpoint", "_entries", 2)
    summary, _ = call(capsys, *words(data, out, to))
    assert summary["resumed"] == IMAGES
    assert sorted(files(out)) == sorted(files(whole))
    if to == "coco-instances":
        same(files(out), files(whole))


def test_after_kill_9_when_hidden_parts_are_gone_already(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """NYUDv2's last step removes each image's part as soon as the .mat has it.

    One more is removed before: the errors of an earlier run.
    """
    whole, out = tmp_path / "whole", tmp_path / "out"
    call(capsys, *words(data, whole, "nyuv2-mat"))
    kill(
        words(data, out, "nyuv2-mat"), "pipeline.trees.sinks", "os", "unlink", 7
    )  # one for the errors of an earlier run
    assert len(list(out.glob(".segmill-*.part"))) == IMAGES - 1 - 6
    summary, _ = call(capsys, *words(data, out, "nyuv2-mat"))
    assert 0 < summary["resumed"] < IMAGES
    assert sorted(files(out)) == sorted(files(whole))


def stopped(monkeypatch: pytest.MonkeyPatch, command: list[str], chunks: int = 3) -> None:
    """Run a verb that is stopped after some chunks, and leaves all as a kill would."""
    from connectors.dataset import _Drive

    real: Any = _Drive.take
    seen: list[int] = []

    def take(self: Any, outcome: Any) -> int:
        seen.append(1)
        if len(seen) > chunks:
            raise KeyboardInterrupt
        done: int = real(self, outcome)
        return done

    with monkeypatch.context() as patch, suppress(SystemExit):
        patch.setattr(_Drive, "take", take)
        main([*command, "--json"])


def test_a_bucket_is_taken_up_again_too(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fs = fsspec.filesystem("memory")
    for name in ("whole", "out"):
        with suppress(FileNotFoundError):
            fs.rm(f"/{name}", recursive=True)
    call(capsys, *words(data, "memory://whole", "coco-instances"))
    stopped(monkeypatch, words(data, "memory://out", "coco-instances"))
    assert any("/.segmill/" in name for name in fs.find("/out"))
    summary, _ = call(capsys, *words(data, "memory://out", "coco-instances"))
    assert summary["resumed"] >= 2 * CHUNK
    found = {
        root: {n.removeprefix(f"/{root}"): fs.cat_file(n) for n in fs.find(f"/{root}")}
        for root in ("whole", "out")
    }
    same(found["out"], found["whole"])


def test_what_was_removed_meanwhile_is_written_again(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    call(capsys, *words(data, tmp_path / "whole", "maskdir"))
    stopped(monkeypatch, words(data, tmp_path / "out", "maskdir"))
    for path in (tmp_path / "out").rglob("street_000002*"):
        path.unlink()
    summary, _ = call(capsys, *words(data, tmp_path / "out", "maskdir"))
    assert 0 < summary["resumed"] < IMAGES
    same(files(tmp_path / "out"), files(tmp_path / "whole"))


def test_a_changed_sample_is_written_again(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped(monkeypatch, words(data, tmp_path / "out", "maskdir"))
    good = data / "trainannot" / "street_000002.png"
    (data / "trainannot" / "street_000001.png").write_bytes(good.read_bytes())
    os.utime(data / "trainannot" / "street_000001.png", (1, 1))
    summary, _ = call(capsys, *words(data, tmp_path / "out", "maskdir"))
    assert summary["failed"] == 0
    call(capsys, *words(data, tmp_path / "whole", "maskdir"))
    same(files(tmp_path / "out"), files(tmp_path / "whole"))


def test_another_command_starts_anew_and_is_not_built_upon(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = words(data, tmp_path / "out", "cityscapes")
    stopped(monkeypatch, first)
    other, _ = call(capsys, *first, "--label-space", "keep")
    assert other["resumed"] == 0
    again, _ = call(capsys, *first)
    assert again["resumed"] == 0, "the other command wrote over its files"
    assert not (tmp_path / "out" / ".segmill").exists()


def test_many_failures_end_the_job_early_and_are_told(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (data / "trainannot").iterdir():
        path.write_bytes(b"no picture")
    out = tmp_path / "out"
    command = words(data, out, "maskdir")[:-2]
    _, err = call(capsys, *command, "--max-errors", "5", code=3)
    assert err.strip().splitlines()[-1].startswith("segmill convert: 8 inputs failed, --max-errors")
    lines = (out / "segmill-errors.jsonl").read_text().splitlines()
    assert [json.loads(line)["image_id"][-1] for line in lines] == list("01234567")
    summary, _ = call(capsys, *command, "--max-errors", "24")
    assert summary["failed"] == 24
    assert summary["resumed"] >= 8


def test_a_source_that_vanishes_ends_the_job(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    from connectors.checkpoint import Kept

    real = Kept.put

    def put(self: Any, name: str, chunk: Any) -> Any:
        if data.exists():
            shutil.rmtree(data)
        return real(self, name, chunk)

    monkeypatch.setattr(Kept, "put", put)
    monkeypatch.setattr("connectors.dataset._BARREN", 3)
    _, err = call(capsys, *words(data, tmp_path / "out", "maskdir"), code=3)
    assert "the source is gone" in err
    assert "no such file or directory" in err
