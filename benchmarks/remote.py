"""`segmill convert` out of and into a bucket 50 ms away against the same files on this machine.

    python benchmarks/remote.py --images 2000 --latency 0.05
    python benchmarks/remote.py --images 500 --rows zip "bucket to bucket"

Whole processes, start included. The bucket is `lean_s3.py`, on this machine: its CPU time is taken
from the conversion's, and is told beside it.
"""

from __future__ import annotations

import argparse
import ast
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from measure import Figures, median, once, segmill, table

HOW = ("--from", "camvid-11", "--label-space", "keep", "--runner", "local", "--to")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--latency", type=float, default=0.05)
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--to", default="voc")
    parser.add_argument("--rows", nargs="*", default=["bucket", "zip", "bucket to bucket"])
    args = parser.parse_args()
    from pipeline.streetscenes import write_dataset

    with tempfile.TemporaryDirectory() as root:
        write_dataset(f"{root}/data", args.images, height=360, width=480, seed=0)
        if "zip" in args.rows:
            shutil.make_archive(f"{root}/data", "zip", f"{root}/data")
        ways = {
            "this machine": (f"{root}/data", f"{root}/out"),
            "bucket": ("s3://bucket/data", f"{root}/out"),
            "zip": ("s3://bucket/data.zip", f"{root}/out"),
            "bucket to bucket": ("s3://bucket/data", "s3://bucket/out"),
        }
        found: dict[str, list[Row]] = {}
        with Server(root, args.latency) as server:
            for _ in range(args.runs):
                for name in ("this machine", *args.rows):
                    server.reset()
                    figures = once(segmill("convert", *ways[name], *HOW, args.to))
                    found.setdefault(name, []).append(Row(figures, *server.since()))
                    shutil.rmtree(f"{root}/out")
    print(
        f"{args.images} generated scenes of 480x360 to {args.to}, "
        f"{args.latency * 1000:.0f} ms a request, median of {args.runs} runs\n"
    )
    print(table({name: median([r.figures for r in rows]) for name, rows in found.items()},
                "this machine", args.images))  # fmt: skip
    print("\n| what | speed | the same less the server | server CPU s | requests an image |")
    print("| --- | --- | --- | --- | --- |")
    near = statistics.median(r.figures.wall for r in found.pop("this machine"))
    for name, rows in found.items():
        wall, less, cpu, requests = (
            statistics.median(column)
            for column in zip(
                *((r.figures.wall, r.less, r.server_cpu, r.requests) for r in rows), strict=True
            )
        )
        print(
            f"| {name} | {near / wall:.2f} | {near / less:.2f} | {cpu:.2f} "
            f"| {requests / args.images:.2f} |"
        )


@dataclass(frozen=True, slots=True)
class Row:
    """One conversion, and what it cost the server."""

    figures: Figures
    server_cpu: float
    requests: int

    @property
    def less(self) -> float:
        """Wall seconds, had the server taken no CPU: all cores share what it took."""
        return self.figures.wall - self.server_cpu / (os.cpu_count() or 1)


class Server:
    """The S3 server in a process of its own, and its address in the environment."""

    def __init__(self, root: str, latency: float) -> None:
        script = str(Path(__file__).with_name("lean_s3.py"))
        self._process = subprocess.Popen(
            [sys.executable, script, root, "--latency", str(latency)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        self._endpoint = f"http://127.0.0.1:{int(self._process.stdout.readline())}"
        os.environ |= {
            "AWS_ENDPOINT_URL": self._endpoint,
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": "any",
            "AWS_SECRET_ACCESS_KEY": "any",
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        self._before = 0.0, 0

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()

    def _now(self) -> tuple[float, int]:
        """Return the server's CPU seconds and its requests so far."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        with urllib.request.urlopen(f"{self._endpoint}/-/count") as told:
            counted = ast.literal_eval(told.read().decode())
        ticks = int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK"), sum(counted.values())

    def reset(self) -> None:
        """Count from here."""
        self._before = self._now()

    def since(self) -> tuple[float, int]:
        """Return CPU seconds and requests since `reset`."""
        cpu, requests = self._now()
        return cpu - self._before[0], requests - self._before[1]


if __name__ == "__main__":
    main()
