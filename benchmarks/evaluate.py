"""Scoring a store against a store, beside the field's evaluators on PNG folders of the same masks.

    python benchmarks/evaluate.py --pairs 10000 --size 500x375 [--peers PYTHON]
    python benchmarks/evaluate.py --pairs 200 --size 2048x1024 [--peers PYTHON]

Each way runs in a process of its own, which times its work from the files to the scores (start and
imports are not counted): CPU and wall seconds, and peak memory. All must come to the same mIoU.
Ways that take many milliseconds a pair score the first `--slow` pairs only; their seconds are
multiplied up, which the table says.

`limit` inflates both cells with libdeflate and makes one pass over the pixels (comparing them);
`kernel` decodes and counts pairs from memory, without a store. `mmseg` is the arithmetic of
MMSegmentation's IoUMetric (torch.histc of intersection, prediction and label), as the package
itself wants an mmcv that is hard to install; `cityscapes` is cityscapesScripts' own loop, by its C
extension where that is built (`CYTHONIZE_EVAL=1 pip install --no-binary cityscapesscripts
cityscapesscripts`; the output says which). `--peers` is a Python that has hotcoco, vernier,
torchmetrics and cityscapesscripts.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

if TYPE_CHECKING:
    from collections.abc import Iterator

CLASSES, VOID, NAME = 19, 255, "cityscapes-19"
BATCH = 500
DISTINCT = 500  # pairs that differ; more pairs are the same files again, under other names


def make(root: Path, pairs: int, height: int, width: int) -> None:
    """Write the same pairs as two stores and as two folders of grey PNG files."""
    from pipeline.label_space import label_space
    from pipeline.masks import encode
    from pipeline.record import File, Record, to_table
    from pipeline.store import Store
    from pipeline.streetscenes import scene
    from pipeline.tables.fragment import write_fragment

    space, rng = label_space(NAME), np.random.default_rng(0)
    scenes = [np.asarray(scene(k, height, width)[1], np.uint8) for k in range(min(pairs, 40))]
    stores = {}
    for side in ("truth", "pred"):
        (root / f"{side}_png").mkdir()
        stores[side] = Store.create(root / side, [space])
    made: list[dict[str, tuple[bytes, bytes]]] = []
    for number in range(min(pairs, DISTINCT)):
        drawn = np.roll(scenes[number % len(scenes)], 7 * (number // len(scenes)), 1)
        predicted = np.roll(drawn, tuple(rng.integers(-4, 5, 2).tolist()), (0, 1)) % 11
        noisy = rng.random(drawn.shape) < 0.002
        predicted[noisy] = rng.integers(0, 11, int(noisy.sum()))
        sides = {"truth": np.where(drawn > 10, VOID, drawn), "pred": predicted}
        held = {side: mask.astype(np.uint8) for side, mask in sides.items()}
        made.append({side: (encode(m, space.palette()), as_png(m)) for side, m in held.items()})
    for start in range(0, pairs, BATCH):
        for side in stores:
            records = []
            for number in range(start, min(pairs, start + BATCH)):
                cell, png = made[number % len(made)][side]
                name = f"{number:06d}"
                (root / f"{side}_png" / f"{name}.png").write_bytes(png)
                path, mask = File(f"/{name}.png"), File(None, cell)
                records.append(
                    Record(name, "streets", "val", path, "", height, width, NAME, mask=mask)
                )
            path = f"data/{start:06d}.parquet"
            written = write_fragment(stores[side].sink(), path, to_table(records))
            stores[side] = stores[side].commit([written])


def as_png(mask: np.ndarray) -> bytes:
    from io import BytesIO

    from PIL import Image

    held = BytesIO()
    Image.fromarray(mask).save(held, "png")
    return held.getvalue()


def cells(root: Path) -> Iterator[tuple[bytes, bytes]]:
    from pipeline.store import Store

    sides = [Store.open(root / side).scan(["mask.bytes"]) for side in ("truth", "pred")]
    for both in zip(*sides, strict=True):
        yield from zip(*(batch["mask.bytes"].to_pylist() for batch in both), strict=True)


def miou(intersection: Any, truth: Any, predicted: Any) -> float:
    union = np.asarray(truth) + np.asarray(predicted) - np.asarray(intersection)
    return float(np.mean(np.asarray(intersection)[union > 0] / union[union > 0]))


def of_matrix(counts: np.ndarray) -> float:
    return miou(np.diag(counts), counts.sum(1), counts[:, :CLASSES].sum(0))


def by_segmill(root: Path) -> tuple[float, str]:
    from pipeline.heap import keep_freed_memory
    from pipeline.runner import LocalRunner
    from pipeline.scoring import score
    from pipeline.store import Store

    keep_freed_memory()  # as the verb does

    kept: list[int] = []
    sides = Store.open(root / "truth"), Store.open(root / "pred")
    scores = score(*sides, runner=LocalRunner(), on_images=lambda b: kept.append(b.num_rows))
    assert sum(kept) == scores.done == scores.inputs
    return scores.tally.miou, f"{os.cpu_count()} threads, each image's scores too"


def by_limit(root: Path) -> tuple[float, str]:
    from pipeline.heap import keep_freed_memory
    from pipeline.labels import png

    keep_freed_memory()  # as the verb does

    for both in cells(root):
        first, second = (png.inflate(png.parse(cell, ""), "") for cell in both)
        np.not_equal(first, second)
    return float("nan"), "no scores"


def by_kernel(root: Path) -> tuple[float, str]:
    from pipeline.heap import keep_freed_memory
    from pipeline.masks import decode
    from pipeline.metrics.confusion import ConfusionMatrix, class_index, count_pairs

    keep_freed_memory()  # as the verb does

    index, matrix = class_index(range(CLASSES), [VOID]), ConfusionMatrix.empty(CLASSES)
    for truth, predicted in cells(root):
        matrix.update(count_pairs(decode(truth), decode(predicted)), index, index)
    return matrix.tally().miou, "one thread"


def files(root: Path) -> list[tuple[Path, Path]]:
    return [(p, root / "pred_png" / p.name) for p in sorted((root / "truth_png").iterdir())]


def by_pil(root: Path) -> tuple[float, str]:
    from PIL import Image

    counts = np.zeros((CLASSES, CLASSES), np.int64)
    for pair in files(root):
        truth, predicted = (np.asarray(Image.open(p)) for p in pair)
        valid = truth < CLASSES
        codes = CLASSES * truth[valid].astype(np.int64) + predicted[valid]
        counts += np.bincount(codes, minlength=CLASSES**2).reshape(CLASSES, -1)
    return of_matrix(counts), "one thread"


def by_mmseg(root: Path) -> tuple[float, str]:
    import torch
    from PIL import Image

    areas = torch.zeros(3, CLASSES, dtype=torch.float64)
    for pair in files(root):
        label, pred = (torch.from_numpy(np.array(Image.open(p))) for p in pair)
        mask = label != VOID
        label, pred = label[mask], pred[mask]
        for k, held in enumerate((pred[pred == label], pred, label)):
            areas[k] += torch.histc(held.float(), bins=CLASSES, min=0, max=CLASSES - 1)
    intersection, predicted, truth = areas.numpy()
    return miou(intersection, truth, predicted), "IoUMetric's arithmetic, not the package"


WAYS = {
    "limit": by_limit, "kernel": by_kernel, "segmill": by_segmill, "pil": by_pil, "mmseg": by_mmseg,
}  # fmt: skip
PEERS = ("hotcoco", "vernier", "torchmetrics", "cityscapes")
SLOW = ("pil", "mmseg", "torchmetrics", "cityscapes")
MODULES = (
    "pyarrow.parquet", "pyarrow.dataset", "deltalake", "imagecodecs", "pipeline.scoring",
    "pipeline.metrics.pair_scores", "pipeline.tables.groups",
)  # fmt: skip
TORCH = ("mmseg",)


def child(way: str, root: Path) -> None:
    """Run one way and print what it took."""
    for module in (*MODULES, "PIL.Image", *(["torch"] if way in TORCH else [])):
        import_module(module)  # imports are not part of the work
    start, cpu = time.perf_counter(), time.process_time()
    found, remark = WAYS[way](root)
    wall, used = time.perf_counter() - start, time.process_time() - cpu
    print(json.dumps({"wall": wall, "cpu": used, "miou": found, "peak": peak(), "what": remark}))


def peak() -> float:
    """Return the most memory that this process held, in MiB.

    Not `ru_maxrss`: that begins with what the parent held when it forked.
    """
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def measured(command: list[str]) -> dict[str, Any] | None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"{' '.join(command)} failed: {done.stderr.strip().splitlines()[-1:]}")
        return None
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def commands(root: Path, peers: str | None) -> dict[str, list[str]]:
    own = [sys.executable, __file__, "--root", str(root), "--way"]
    found = {way: [*own, way] for way in WAYS}
    if peers:
        script = str(ROOT / "benchmarks/peers/evaluate_pngs.py")
        found |= {p: [peers, script, p, str(root), str(CLASSES)] for p in PEERS}
    return found


def report(best: dict[str, dict[str, Any]], pairs: int) -> bool:
    """Print the table; return whether all that scored all pairs came to the same."""
    ours = best["segmill"]
    print("| way | CPU s | wall s | pairs/s | peak MiB | CPU ratio | wall ratio | mIoU | |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for name, f in best.items():
        print(
            f"| {name} | {f['cpu']:.2f} | {f['wall']:.2f} | {pairs / f['wall']:.0f} "
            f"| {f['peak']:.0f} | {f['cpu'] / ours['cpu']:.2f} | {f['wall'] / ours['wall']:.2f} "
            f"| {f['miou']:.6f} | {f.get('what', '')} |"
        )
    known = [f["miou"] for f in best.values() if f["miou"] == f["miou"] and "of" not in f]
    return max(known) - min(known) < 1e-6


def scaled(found: dict[str, Any], scored: int, pairs: int) -> dict[str, Any]:
    """Return what a way that scored some of the pairs would take for all."""
    if scored == pairs:
        return found
    more = pairs / scored
    what = f"{found.get('what', '')}; {scored} pairs measured, times {more:g}".lstrip("; ")
    timed = {"wall": found["wall"] * more, "cpu": found["cpu"] * more}
    return found | timed | {"what": what, "of": scored}


def first_pairs(root: Path, count: int) -> Path:
    """Return a folder with links to the first PNG files of both sides."""
    few = root / "few"
    for side in ("truth_png", "pred_png"):
        (few / side).mkdir(parents=True)
        for path in sorted((root / side).iterdir())[:count]:
            (few / side / path.name).symlink_to(path)
    return few


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=400)
    parser.add_argument("--size", default="500x375", help="width x height")
    parser.add_argument("--slow", type=int, default=0, help="pairs for slow ways; default a tenth")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", help="measure these ways, beside segmill and limit")
    parser.add_argument("--peers", help="a Python with the peers")
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--way", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        return child(options.way, options.root)
    width, height = map(int, options.size.split("x"))
    few = min(options.pairs, options.slow or max(40, options.pairs // 10))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make(root, options.pairs, height, width)
        subset = first_pairs(root, few) if few < options.pairs else root
        best: dict[str, dict[str, Any]] = {}
        for number in range(options.rounds):  # turn about: other load falls on all
            for name in commands(root, options.peers):
                slow = name in SLOW
                asked = options.only is None or name in {"segmill", "limit", *options.only}
                if (slow and number) or not asked:
                    continue
                found = measured(commands(subset if slow else root, options.peers)[name])
                if found and (name not in best or found["cpu"] < best[name]["cpu"]):
                    best[name] = scaled(found, few if slow else options.pairs, options.pairs)
    raise SystemExit(not report(best, options.pairs))


if __name__ == "__main__":
    main()
