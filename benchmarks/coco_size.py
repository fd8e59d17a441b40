"""Memory and time of COCO's instances at the size of train2017: convert, ingest, export.

    python benchmarks/coco_size.py --scale 0.1
    python benchmarks/coco_size.py                # 118,287 images, 860,001 annotations

The JSON is made with polygons of plausible length, annotations in no order; every image is a hard
link to one small JPEG. Printed are wall and CPU seconds, the driver's peak of resident memory, and
that of all processes together, in which pages that they share count more than once. CPU seconds are
those of all processes, Ray's as well, as far as they were seen: four times a second.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
IMAGES, ANNOTATIONS = 118_287, 860_001
SHAPE = (480, 640)
SHAPES = 4096
LINKS = 60_000  # file systems allow some 65,000 names for one file


def main() -> None:
    """Make the dataset and print a line a job."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--jobs", nargs="*", default=["convert", "ingest", "export"])
    parser.add_argument("--folder", default=None, help="where to make it; default: a temporary one")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=chosen.folder, prefix="coco-size-") as folder:
        source = Path(folder) / "source"
        size = make(source, chosen.scale)
        print(f"scale {chosen.scale}: JSON of {size / 1e6:.0f} MB", flush=True)
        print(f"{'job':8} {'wall s':>8} {'CPU s':>8} {'driver MiB':>11} {'in total MiB':>13}")
        for job in chosen.jobs:
            print(f"{job:8} {run(job, Path(folder)).line()}", flush=True)


def make(root: Path, scale: float) -> int:
    """Write the dataset; return the JSON's bytes."""
    rng, dice = np.random.default_rng(0), random.Random(0)
    (root / "train2017").mkdir(parents=True)
    (root / "annotations").mkdir()
    images, annotations = int(IMAGES * scale), int(ANNOTATIONS * scale)
    coarse = rng.integers(0, 255, (6, 8, 3), np.uint8)
    _, data = cv2.imencode(".jpg", cv2.resize(coarse, SHAPE[::-1]), [cv2.IMWRITE_JPEG_QUALITY, 20])
    link(root / "train2017", data.tobytes(), images)
    shapes = [polygon(rng) for _ in range(SHAPES)]
    path = root / "annotations" / "instances_train2017.json"
    categories = [row.split("\t") for row in table()]
    ids = [int(row[0]) for row in categories]
    with path.open("w") as file:
        file.write('{"info": {"description": "made"}, "licenses": [], "images": [')
        file.write(", ".join(image(n) for n in range(1, images + 1)))
        file.write('], "annotations": [')
        for n in range(1, annotations + 1):
            shape, box, area = dice.choice(shapes)
            file.write(
                f'{", " * (n > 1)}{{"segmentation": [{shape}], "area": {area}, "iscrowd": 0, '
                f'"image_id": {dice.randint(1, images)}, "bbox": {box}, '
                f'"category_id": {dice.choice(ids)}, "id": {n}}}'
            )
        named = [{"supercategory": "", "id": int(r[0]), "name": r[1]} for r in categories]
        file.write(f'], "categories": {json.dumps(named)}}}')
    return path.stat().st_size


def table() -> list[str]:
    """Return the lines of the official classes."""
    text = (ROOT / "connectors" / "label_spaces" / "coco-80.tsv").read_text()
    return [line for line in text.splitlines()[1:] if line.endswith("class")]


def link(folder: Path, data: bytes, count: int) -> None:
    """Give one file many names."""
    for number in range(1, count + 1):
        path = folder / f"{number:012d}.jpg"
        if number % LINKS == 1:
            path.write_bytes(data)
            first = path
        else:
            os.link(first, path)


def image(number: int) -> str:
    """Return an image's JSON, as long as COCO's."""
    name = f"{number:012d}.jpg"
    return json.dumps(
        {
            "license": 3,
            "file_name": name,
            "coco_url": f"http://images.cocodataset.org/train2017/{name}",
            "height": SHAPE[0],
            "width": SHAPE[1],
            "date_captured": "2013-11-14 11:18:45",
            "flickr_url": "http://farm9.staticflickr.com/8186/8119368305_4e622c8349_z.jpg",
            "id": number,
        }
    )


def polygon(rng: np.random.Generator) -> tuple[str, str, float]:
    """Return the text of an outline, that of its box, and its area; 450 bytes as in COCO."""
    corners = int(np.clip(rng.lognormal(3.0, 0.7), 4, 300))
    turn = np.sort(rng.uniform(0, 2 * np.pi, corners))
    reach = rng.uniform(0.7, 1.0, corners) * np.clip(rng.lognormal(3.5, 1.0), 4, 200)
    x = np.clip(rng.uniform(0, 640) + reach * np.cos(turn), 0, 640).round(2)
    y = np.clip(rng.uniform(0, 480) + reach * np.sin(turn), 0, 480).round(2)
    flat = np.stack([x, y], 1).ravel().tolist()
    box = [float(v.round(2)) for v in (x.min(), y.min(), np.ptp(x), np.ptp(y))]
    area = float(abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2)
    return json.dumps(flat), json.dumps(box), area


@dataclass
class Cost:
    """What a job cost."""

    wall: float
    cpu: float
    driver: int
    total: int

    def line(self) -> str:
        """Return the figures as columns."""
        return f"{self.wall:8.1f} {self.cpu:8.1f} {self.driver >> 10:11,} {self.total >> 10:13,}"


def run(job: str, folder: Path) -> Cost:
    """Run a job on what is there and measure it."""
    source, store = str(folder / "source"), str(folder / "store")
    target, name = str(folder / job), "coco-instances"
    arguments = {
        "convert": [source, target, "--from", name, "--to", name],
        "ingest": [source, store, "--format", name],
        "export": [store, target, "--format", name],
    }[job]
    start = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "jobs", job, *arguments, "--json"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    peaks = Peaks(process.pid)
    output, _ = process.communicate()
    wall = time.monotonic() - start
    peaks.stop()
    if process.returncode:
        raise SystemExit(f"{job} failed: {output.decode()}")
    said = json.loads(output.splitlines()[-1])
    print(f"  {said['done']:,} of {said['inputs']:,} done", flush=True)
    if job != "ingest":
        shutil.rmtree(target)
    return Cost(wall, peaks.cpu, peaks.driver, peaks.total)


class Peaks:
    """Watches a process and its children; peaks in KiB."""

    def __init__(self, pid: int) -> None:
        self.driver = self.total = 0
        self._spent: dict[int, float] = {}
        self._pid, self._done = pid, threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    @property
    def cpu(self) -> float:
        """CPU seconds of all processes that were seen."""
        return sum(self._spent.values())

    def stop(self) -> None:
        """End the watch."""
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(0.25):
            sizes = {pid: memory(pid) for pid in family(self._pid)}
            self.driver = max(self.driver, sizes.get(self._pid, 0))
            self.total = max(self.total, sum(sizes.values()))
            self._spent |= {pid: spent for pid in sizes if (spent := cpu_seconds(pid))}


def family(pid: int) -> list[int]:
    """Return a process and all that it started."""
    found = [pid]
    for one in found:
        for task in Path(f"/proc/{one}/task").glob("*/children"):
            try:
                found += map(int, task.read_text().split())
            except OSError:
                continue
    return found


def memory(pid: int) -> int:
    """Return a process's resident memory in KiB, 0 when it has gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("VmRSS:")), 0)


def cpu_seconds(pid: int) -> float:
    """Return what a process has used so far, 0 when it has gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
