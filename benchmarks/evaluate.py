"""Scoring a store against a store, and the usual way: PIL and NumPy over folders of PNG files.

    python benchmarks/evaluate.py [--images 400] [--height 360 --width 480]

Both read every mask, fill one confusion matrix and each image's mIoU, with the same number of
threads; the matrices must be equal. Prints pairs per second and the ratio, best of `--rounds`.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline.label_space import label_space
from pipeline.masks import encode
from pipeline.record import File, Record, to_table
from pipeline.runner import LocalRunner, cores
from pipeline.scoring import score
from pipeline.store import Store
from pipeline.streetscenes import scene
from pipeline.tables.fragment import write_fragment

if TYPE_CHECKING:
    from collections.abc import Callable

SPACE = label_space("camvid-11")
CLASSES = len(SPACE.train_ids)


def make(root: Path, images: int, height: int, width: int) -> None:
    """Write the same pairs as two stores and as two folders of palette PNG files."""
    rng = np.random.default_rng(0)
    rows: dict[str, list[Record]] = {"truth": [], "pred": []}
    for side in rows:
        (root / f"{side}_png").mkdir()
    for number in range(images):
        truth = np.asarray(scene(number % 50, height, width)[1], np.uint8)
        shift = tuple(rng.integers(-4, 5, 2).tolist())
        predicted = np.roll(truth, shift, (0, 1))
        noisy = rng.random(truth.shape) < 0.002
        predicted[noisy] = rng.integers(0, CLASSES, int(noisy.sum()))
        for side, mask in (("truth", truth), ("pred", predicted)):
            name = f"{number:06d}"
            image = Image.fromarray(mask)
            image.putpalette(SPACE.palette())
            image.save(root / f"{side}_png" / f"{name}.png")
            cell = File(None, encode(mask, SPACE.palette()))
            rows[side].append(
                Record(name, "streets", "val", File(f"/{name}.png"), "", height, width, SPACE.name,
                       mask=cell)
            )  # fmt: skip
    for side, records in rows.items():
        store = Store.create(root / side, [SPACE])
        store.commit([write_fragment(store.sink(), "data/0.parquet", to_table(records))])


def by_store(root: Path, threads: int) -> np.ndarray:
    truth, pred = Store.open(root / "truth"), Store.open(root / "pred")
    kept: list[int] = []
    scores = score(
        truth, pred, runner=LocalRunner(threads), on_images=lambda b: kept.append(b.num_rows)
    )
    assert sum(kept) == scores.done == scores.inputs
    return scores.matrix.counts


def by_files(root: Path, threads: int) -> np.ndarray:
    def pair(path: Path) -> tuple[np.ndarray, float]:
        truth = np.asarray(Image.open(path))
        predicted = np.asarray(Image.open(root / "pred_png" / path.name))
        valid = truth < CLASSES
        # Void is the id after the last class: a prediction of it falls into a column of its own.
        codes = (CLASSES + 1) * truth[valid].astype(np.int64) + predicted[valid]
        counts = np.bincount(codes, minlength=CLASSES * (CLASSES + 1)).reshape(CLASSES, -1)
        right = np.diag(counts)
        union = counts.sum(0)[:-1] + counts.sum(1) - right
        return counts, float(np.mean(right[union > 0] / union[union > 0]))

    paths = sorted((root / "truth_png").iterdir())
    with ThreadPoolExecutor(threads) as pool:
        return np.sum([counts for counts, _ in pool.map(pair, paths)], axis=0)


def timed(work: Callable[[Path, int], np.ndarray], root: Path, threads: int) -> tuple[float, ...]:
    start, cpu = time.perf_counter(), time.process_time()
    work(root, threads)
    return time.perf_counter() - start, time.process_time() - cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--height", type=int, default=360)
    parser.add_argument("--width", type=int, default=480)
    parser.add_argument("--threads", type=int, default=cores())
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make(root, options.images, options.height, options.width)
        ours, theirs = by_store(root, options.threads), by_files(root, options.threads)
        equal = bool((ours == theirs).all())
        # Turn about, so that whatever else the machine does falls on both.
        rounds = [
            [timed(work, root, options.threads) for work in (by_store, by_files)]
            for _ in range(options.rounds)
        ]
    store, files = ([min(column) for column in zip(*runs, strict=True)]
                    for runs in zip(*rounds, strict=True))  # fmt: skip
    summary = {
        "images": options.images,
        "size": f"{options.width}x{options.height}",
        "threads": options.threads,
        "equal": equal,
        "store_pairs_per_second": round(options.images / store[0], 1),
        "files_pairs_per_second": round(options.images / files[0], 1),
        "ratio": round(files[0] / store[0], 2),
        "cpu_ratio": round(files[1] / store[1], 2),
    }
    print(json.dumps(summary))
    raise SystemExit(not equal)


if __name__ == "__main__":
    main()
