"""`segmill ingest` against its limit: decoding the label PNGs and encoding the mask cells alone.

    python benchmarks/ingest.py --images 2000

The limit is one process and one thread that does nothing else: no listing, no image headers, no
Parquet, no commit.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from measure import median, once, segmill, table


def limit(root: str) -> None:
    """Decode every label PNG and encode it as a mask cell."""
    import cv2

    from pipeline import masks
    from pipeline.label_space import label_space

    palette = label_space("camvid-11").palette()
    for path in sorted(Path(root).glob("*annot/*.png")):
        ids = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        masks.encode(ids, palette)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--limit", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.limit:
        limit(args.limit)
        return
    from pipeline.streetscenes import write_dataset

    with tempfile.TemporaryDirectory() as root:
        write_dataset(f"{root}/data", args.images, height=360, width=480, seed=0)
        found: dict[str, list] = {}
        for run in range(args.runs):
            data, how = f"{root}/data", ("--format", "camvid-11", "--runner", "local", "--workers")
            ways = {
                "limit: decode + encode, 1 thread": [sys.executable, __file__, "--limit", data],
                "segmill ingest, 1 thread": segmill("ingest", data, f"{root}/a{run}", *how, "1"),
                "segmill ingest, 2 threads": segmill("ingest", data, f"{root}/b{run}", *how, "2"),
            }
            for name, command in ways.items():
                found.setdefault(name, []).append(once(command))
        rows = {name: median(figures) for name, figures in found.items()}
        print(f"{args.images} generated scenes of 480x360, median of {args.runs} runs\n")
        print(table(rows, "limit: decode + encode, 1 thread", args.images))


if __name__ == "__main__":
    main()
