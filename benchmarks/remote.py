"""`segmill convert` out of a bucket 50 ms away against the same files on this machine.

    python benchmarks/remote.py --images 2000 --latency 0.05

Whole processes, start included. The bucket is `lean_s3.py`, on this machine: its CPU time is taken
from the conversion's. Both sides write to a local directory.
"""

from __future__ import annotations

import argparse
import ast
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

from measure import Figures, median, once, segmill, table


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--latency", type=float, default=0.05)
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--to", default="voc")
    args = parser.parse_args()
    from pipeline.streetscenes import write_dataset

    with tempfile.TemporaryDirectory() as root:
        write_dataset(f"{root}/data", args.images, height=360, width=480, seed=0)
        script = str(Path(__file__).with_name("lean_s3.py"))
        server = subprocess.Popen(
            [sys.executable, script, root, "--latency", str(args.latency)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert server.stdout is not None
        endpoint = f"http://127.0.0.1:{int(server.stdout.readline())}"
        os.environ |= {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": "any",
            "AWS_SECRET_ACCESS_KEY": "any",
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        how = ("--from", "camvid-11", "--to", args.to, "--label-space", "keep", "--runner", "local")
        sources = {"this machine": f"{root}/data", "bucket": "s3://bucket/data"}
        found: dict[str, list[Figures]] = {}
        try:
            for _ in range(args.runs):
                for name, source in sources.items():
                    found.setdefault(name, []).append(
                        once(segmill("convert", source, f"{root}/out", *how))
                    )
                    shutil.rmtree(f"{root}/out")
            with urllib.request.urlopen(f"{endpoint}/-/count") as told:
                counted = ast.literal_eval(told.read().decode())
        finally:
            server.terminate()
            server.wait()
    rows = {name: median(figures) for name, figures in found.items()}
    print(
        f"{args.images} generated scenes of 480x360 to {args.to}, "
        f"{args.latency * 1000:.0f} ms a request, median of {args.runs} runs\n"
    )
    print(table(rows, "this machine", args.images))
    print(f"\nspeed of the bucket: {rows['this machine'].wall / rows['bucket'].wall:.2f}")
    print(f"requests an image: {sum(counted.values()) / args.images / args.runs:.2f} {counted}")


if __name__ == "__main__":
    main()
