"""Memory of the driver and of Ray's object store while labelling few and many images.

    python benchmarks/label_memory.py --images 200 5000

Each count is a job of its own, in a process of its own: two Ray actors, ENet, JPEGs of 96x72 (hard
links to a few). The driver's peak is its resident memory; the object store's is what Ray says is no
longer available, looked at ten times a second. Target: within 15 %.
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
from pathlib import Path

MODEL = "zoo:enet?label_space=camvid-11&seed=0"
EVERY = 0.1
MIB = 1 << 20


def one(images: str, store: str) -> dict[str, float]:
    """Label a folder on Ray from this process; return counts and peaks in MiB."""
    import psutil
    import ray

    from pipeline.labelling import LabelJob, label, label_digest
    from pipeline.models import load_model
    from pipeline.predict.options import LabelOptions
    from pipeline.ray_runner import RayRunner
    from pipeline.runner import Resources
    from pipeline.segmenter import SegmenterFactory
    from pipeline.store import Store

    os.environ["RAY_AUTH_MODE"] = "disabled"
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    whole = ray.cluster_resources()["object_store_memory"]
    peaks, done, me = {"driver": 0.0, "objects": 0.0}, threading.Event(), psutil.Process()

    def watch() -> None:
        while not done.wait(EVERY):
            peaks["driver"] = max(peaks["driver"], me.memory_info().rss / MIB)
            free = ray.available_resources().get("object_store_memory", whole)
            peaks["objects"] = max(peaks["objects"], (whole - free) / MIB)

    options = LabelOptions()
    model = load_model(MODEL)
    target = Store.create(store, [model.label_space])
    digest = label_digest(model.digest, options)
    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    report = label(
        LabelJob(images, digest),
        target,
        SegmenterFactory(MODEL, options=options),
        choose_runner=lambda count: RayRunner(Resources(2, 2)),
    )
    wall = time.perf_counter() - start
    done.set()
    watcher.join()
    ray.shutdown()
    return {"images": report.done, "wall": wall, **peaks}


def main() -> None:
    """Run a job for each count and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, nargs="+", default=[200, 5000])
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(one(*args.one)))
        return
    import cv2

    from pipeline.streetscenes import scene

    rows = []
    with tempfile.TemporaryDirectory() as root:
        base = Path(root, "base")
        base.mkdir()
        for seed in range(20):
            rgb, _ = scene(seed, 72, 96)
            cv2.imwrite(f"{base}/{seed}.jpg", rgb[..., ::-1])
        for count in args.images:
            folder = Path(root, f"images{count}")
            folder.mkdir()
            for n in range(count):
                os.link(base / f"{n % 20}.jpg", folder / f"{n:07d}.jpg")
            said = subprocess.run(
                [sys.executable, __file__, "--one", str(folder), f"{root}/store{count}"],
                check=True,
                stdout=subprocess.PIPE,
                text=True,
            ).stdout
            rows.append(json.loads(said.splitlines()[-1]))
            assert rows[-1]["images"] == count
    print("| images | wall s | driver MiB | object store MiB |\n| --- | --- | --- | --- |")
    for r in rows:
        driver = f"{r['driver']:.0f} ({r['driver'] / rows[0]['driver']:.2f})"
        print(f"| {r['images']:,} | {r['wall']:.1f} | {driver} | {r['objects']:.2f} |")


if __name__ == "__main__":
    main()
