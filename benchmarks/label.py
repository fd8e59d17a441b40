"""`segmill label` against its own limit, and against other ways to do the same.

    python benchmarks/label.py --parts a b c d --daft .venv-peers/lib/python3.11/site-packages

a  end to end (images a second between two sizes, and start included) against the network's forward
   pass alone on tensors that are there already; targets: 0.6 for a light, 0.95 for a heavy network
b  whole jobs against a DataLoader loop, Ray Data and Daft, each with two processes
c  CPU seconds an image between two sizes, fixed CPU and first committed rows against two plain
   processes of half the files each; targets: 1.15 times, 20 CPU-s, 15 s
d  images a second with one and two Ray actors, between two sizes

All decode the same JPEGs, run the same network, resize, take the arg-max and write compressed
masks; segmill computes confidence and counts pixels as well. CPU time is that of the process tree.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
from measure import segmill

if TYPE_CHECKING:
    from collections.abc import Sequence

MODELS = {
    "light": "zoo:enet?label_space=camvid-11&seed=0",
    "heavy": "torchvision:deeplabv3_resnet50?label_space=camvid-11&seed=0",
}
PEERS = Path(__file__).parent / "peers"
EVERY = 0.1


@dataclass
class Job:
    """Wall and CPU seconds of a job's process trees, and when it had its first result."""

    wall: float = 0.0
    cpu: float = 0.0
    first: float = 0.0
    lines: list[str] = field(default_factory=list)


class Tree:
    """The CPU time of a process and all its descendants, those that ended included.

    What a process spends after it was last looked at is lost: at most EVERY seconds of each.
    """

    def __init__(self, pid: int) -> None:
        self._root = psutil.Process(pid)
        self._cpu: dict[tuple[int, float], float] = {}

    def look(self) -> None:
        with suppress(psutil.NoSuchProcess):
            for process in [self._root, *self._root.children(recursive=True)]:
                with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                    times = process.cpu_times()
                    self._cpu[process.pid, process.create_time()] = times.user + times.system

    def seconds(self) -> float:
        return sum(self._cpu.values())


def measure(commands: list[list[str]], result: str, **env: str) -> Job:
    """Run commands side by side to their end; `result` is a glob of files that are results."""
    job, start = Job(), time.perf_counter()
    folder, pattern = Path(result).parent, Path(result).name
    paths = f"{PEERS}{os.pathsep}{os.getcwd()}"
    env = {**os.environ, "PYTHONPATH": paths, "RAY_AUTH_MODE": "disabled", **env}
    running = [
        subprocess.Popen(c, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for c in commands
    ]
    trees = [Tree(process.pid) for process in running]
    outputs: dict[int, tuple[str, str]] = {}
    readers = [
        threading.Thread(target=lambda n=n, p=p: outputs.update({n: p.communicate()}))
        for n, p in enumerate(running)
    ]
    for reader in readers:
        reader.start()
    while any(reader.is_alive() for reader in readers):
        for tree in trees:
            tree.look()
        if not job.first and any(folder.glob(pattern)):
            job.first = time.perf_counter() - start
        time.sleep(EVERY)
    job.wall = time.perf_counter() - start
    job.first = job.first or job.wall
    job.cpu = sum(tree.seconds() for tree in trees)
    for n, process in enumerate(running):
        if process.returncode:
            raise SystemExit(f"{' '.join(commands[n])} failed:\n{outputs[n][1][-2000:]}")
        job.lines += outputs[n][0].splitlines()[-1:]
    return job


class Bench:
    """Images on disk, and the ways to label them; a way at a size is measured once."""

    def __init__(self, root: Path, size: tuple[int, int], daft: str | None) -> None:
        self.root, self.size, self.daft = root, size, daft
        self._held: dict[tuple[str, ...], Job] = {}

    def images(self, count: int) -> str:
        """Write `count` scenes as JPEGs, or name the folder that holds them."""
        import cv2

        from pipeline.streetscenes import scene

        folder = self.root / f"images-{count}"
        if not folder.is_dir():
            folder.mkdir()
            for seed in range(count):
                rgb, _ = scene(seed, self.size[1], self.size[0])
                cv2.imwrite(str(folder / f"{seed:05d}.jpg"), rgb[..., ::-1])
        return str(folder)

    def job(self, way: str, model: str, count: int) -> Job:
        key = (way, model, str(count))
        if key not in self._held:
            out = self.root / f"out-{len(self._held)}"
            self._held[key] = self._run(way, model, self.images(count), out, count)
            job = self._held[key]
            told = f"{job.wall:.1f} s, {job.cpu:.1f} CPU-s, first after {job.first:.1f} s"
            print(f"  {way}, {model.split('?')[0]}, {count} images: {told}", file=sys.stderr)
        return self._held[key]

    def _run(self, way: str, model: str, images: str, out: Path, count: int) -> Job:
        python = [sys.executable]
        if way.startswith("segmill"):
            shard = str(max(8, min(128, count // 8)))
            common = segmill("label", images, str(out), "--model", model, "--json")
            common += ["--shard-images", shard]
            actors = way.removeprefix("segmill, ")
            where = ["local"] if actors == "in process" else ["ray", "--actors", actors[0]]
            # Version 0 makes the store, version 1 holds its first rows.
            first = f"{out}/_delta_log/*1.json"
            return measure([[*common, "--runner", *where]], first)
        if way == "two plain processes":
            plain = [*python, str(PEERS / "label_plain.py"), model, images, str(out), "1"]
            return measure([[*plain, str(part), "2"] for part in (0, 1)], f"{out}/*.png")
        script = {"DataLoader": "dataloader", "Ray Data": "ray_data", "Daft": "daft"}[way]
        command = [*python, str(PEERS / f"label_{script}.py"), model, images, str(out), "2"]
        return measure([command], f"{out}/*.p*", DAFT_SITE=self.daft or "")

    def forward(self, model: str) -> float:
        """Return images a second of the forward pass alone, the best of two set-ups."""
        plain = [sys.executable, str(PEERS / "label_plain.py"), model, self.images(8), "forward"]
        apart = measure([[*plain, "1", "0", "1"]] * 2, "/nowhere/*")
        together = measure([[*plain, "2", "0", "1"]], "/nowhere/*")
        return max(sum(map(float, apart.lines)), float(together.lines[0]))

    def between(self, way: str, model: str, counts: tuple[int, int]) -> tuple[float, float]:
        """Return wall and CPU seconds of one more image."""
        few, many = (self.job(way, model, count) for count in counts)
        more = counts[1] - counts[0]
        return (many.wall - few.wall) / more, (many.cpu - few.cpu) / more


def part_a(bench: Bench, counts: dict[str, tuple[int, int]]) -> None:
    rows = []
    for kind, (few, many) in counts.items():
        model = MODELS[kind]
        limit = bench.forward(model)
        job = bench.job("segmill, in process", model, many)
        rate = 1 / bench.between("segmill, in process", model, (few, many))[0]
        whole = many / job.wall
        rows.append(
            (kind, f"{limit:.2f}", f"{rate:.2f}", f"{rate / limit:.2f}", f"{whole:.2f}",
             f"{whole / limit:.2f}", {"light": "0.6", "heavy": "0.95"}[kind])
        )  # fmt: skip
    head = "network", "forward alone/s", "segmill/s", "ratio", "start included/s", "ratio", "target"
    show("a: end to end against the forward pass alone", head, rows)
    for kind, (_, many) in counts.items():
        stages(kind, bench.job("segmill, in process", MODELS[kind], many))


def stages(kind: str, job: Job) -> None:
    """Print where a job of segmill's own time went."""
    told = json.loads(job.lines[-1])["stages"]
    print(f"\n{kind}, stages: " + ", ".join(f"{k} {v:.1f} s" for k, v in sorted(told.items())))


def part_b(bench: Bench, counts: dict[str, tuple[int, int]]) -> None:
    ways = ["segmill, in process", "segmill, 2 Ray actors", "DataLoader", "Ray Data"]
    ways += ["Daft"] if bench.daft else []
    for kind, (_, many) in counts.items():
        jobs = {way: bench.job(way, MODELS[kind], many) for way in ways}
        base = jobs["segmill, in process"]
        rows = [
            (way, f"{j.wall:.1f}", f"{j.cpu:.1f}", f"{many / j.wall:.2f}", f"{j.first:.1f}",
             f"{j.wall / base.wall:.2f}", f"{j.cpu / base.cpu:.2f}")
            for way, j in jobs.items()
        ]  # fmt: skip
        head = "what", "wall s", "CPU s", "images/s", "first result s", "wall ratio", "CPU ratio"
        show(f"b: {kind}, {many} images, start included", head, rows)


def part_c(bench: Bench, counts: dict[str, tuple[int, int]]) -> None:
    for kind, (few, many) in counts.items():
        rows, base = [], 0.0
        for way in ("two plain processes", "segmill, in process"):
            each = bench.between(way, MODELS[kind], (few, many))[1]
            job = bench.job(way, MODELS[kind], many)
            base = base or each
            rows.append(
                (way, f"{1000 * each:.1f}", f"{each / base:.2f}", f"{job.cpu - many * each:.1f}",
                 f"{job.first:.1f}")
            )  # fmt: skip
        head = "what", "CPU ms an image", "ratio", "fixed CPU s", "first result s"
        show(f"c: {kind}, marginal between {few} and {many} images", head, rows)


def part_d(bench: Bench, counts: dict[str, tuple[int, int]]) -> None:
    kind, (few, many) = next(iter(counts.items()))
    rows, base = [], 0.0
    for way in ("segmill, 1 Ray actors", "segmill, 2 Ray actors"):
        rate = 1 / bench.between(way, MODELS[kind], (few, many))[0]
        base = base or rate
        job = bench.job(way, MODELS[kind], many)
        whole = many / job.wall
        rows.append((way, f"{rate:.2f}", f"{rate / base:.2f}", f"{whole:.2f}", f"{job.first:.1f}"))
    head = "what", "images/s", "ratio", "start included/s", "first result s"
    show(f"d: {kind}, between {few} and {many} images", head, rows)


def show(title: str, head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    """Print a Markdown table."""
    lines = [head, ("---",) * len(head), *rows]
    print(
        f"\n{title}\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines), flush=True
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--parts", nargs="+", default=["a", "c"], choices=["a", "b", "c", "d"])
    parser.add_argument("--light", type=int, default=400, help="images for ENet; 0: none")
    parser.add_argument("--heavy", type=int, default=40, help="images for DeepLabV3; 0: none")
    parser.add_argument("--size", default="480x360", help="width x height of the JPEGs")
    parser.add_argument("--daft", help="folder of packages that holds Daft")
    args = parser.parse_args()
    width, height = map(int, args.size.split("x"))
    counts = {
        kind: (many // 4, many)
        for kind, many in (("light", args.light), ("heavy", args.heavy))
        if many
    }
    parts = {"a": part_a, "b": part_b, "c": part_c, "d": part_d}
    print(f"JPEGs of {args.size}, {os.cpu_count()} cores")
    with tempfile.TemporaryDirectory() as root:
        bench = Bench(Path(root), (width, height), args.daft)
        for part in args.parts:
            parts[part](bench, counts)


if __name__ == "__main__":
    main()
