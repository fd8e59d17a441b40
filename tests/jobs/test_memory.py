"""Peak memory does not grow with the number of images."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.streetscenes import write_dataset

ROOT = Path(__file__).resolve().parents[2]


def multiply(source: Path, target: Path, count: int) -> None:
    """Make a dataset of `count` samples of the source's files, under names of their own."""
    names = [p.stem for p in sorted((source / "train").iterdir())]
    for part in ("train", "trainannot"):
        (target / part).mkdir(parents=True)
    lines = []
    for number in range(count):
        name, new = names[number % len(names)], f"scene_{number:06d}"
        for part in ("train", "trainannot"):
            os.link(source / part / f"{name}.png", target / part / f"{new}.png")
        lines.append(f"/SegNet/CamVid/train/{new}.png /SegNet/CamVid/trainannot/{new}.png\n")
    (target / "train.txt").write_text("".join(lines))


def peak_of_ingest(data: Path, store: Path) -> tuple[int, float]:
    """Return the rows that an ingest in a process of its own wrote, and its peak in MiB."""
    command = ["ingest", str(data), str(store), "--format", "camvid-11", "--runner", "local"]
    process = subprocess.Popen(
        [sys.executable, "-m", "jobs", *command, "--json"], cwd=ROOT, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    summary = json.loads(process.stdout.read().splitlines()[-1])
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    assert isinstance(usage, resource.struct_rusage)
    return summary["done"], usage.ru_maxrss / 1024


@pytest.mark.slow
def test_ingest_of_ten_times_the_images_takes_the_same_memory(tmp_path):
    write_dataset(tmp_path / "base", 30, height=96, width=128, seed=5, splits=(1, 0, 0))
    peaks = {}
    for count in (600, 6_000):
        multiply(tmp_path / "base", tmp_path / f"data{count}", count)
        done, peaks[count] = peak_of_ingest(tmp_path / f"data{count}", tmp_path / f"s{count}")
        assert done == count
    assert peaks[6_000] == pytest.approx(peaks[600], rel=0.10), peaks
