"""Scores two folders of PNG label maps with a compiled peer; prints its seconds and mIoU as JSON.

    python evaluate_pngs.py hotcoco|vernier|torchmetrics|cityscapes ROOT CLASSES

Run by `benchmarks/evaluate.py` with the Python that has the peer. Both read the files themselves;
`hotcoco` gets the folders, `vernier` all paths and a thread a core. Imports are not timed.
"""

from __future__ import annotations

import json
import os
import sys
import time
from importlib import import_module
from pathlib import Path


def by_hotcoco(root: Path, classes: int) -> float:
    from hotcoco import semantic

    evaluator = semantic.SemanticEval(classes, ignore_index=255)
    evaluator.update_folders(root / "truth_png", root / "pred_png")
    return float(evaluator.report()["metrics"]["mIoU"])


def by_vernier(root: Path, classes: int) -> float:
    from vernier.semantic import evaluate_semantic_from_pngs

    truth, predicted = (
        dict(enumerate(sorted((root / side).iterdir()))) for side in ("truth_png", "pred_png")
    )
    found = evaluate_semantic_from_pngs(
        truth, predicted, classes, "strict", ignore_label=255, num_threads=os.cpu_count()
    )
    return float(found.miou)


def by_torchmetrics(root: Path, classes: int) -> float:
    import numpy as np
    import torch
    from PIL import Image
    from torchmetrics.classification import MulticlassConfusionMatrix

    metric = MulticlassConfusionMatrix(classes, ignore_index=255, validate_args=False)
    for path in sorted((root / "truth_png").iterdir()):
        pair = path, root / "pred_png" / path.name
        truth, predicted = (torch.from_numpy(np.array(Image.open(p))).long() for p in pair)
        metric.update(predicted, truth)
    counts = metric.compute().numpy()
    union = counts.sum(0) + counts.sum(1) - np.diag(counts)
    return float(np.mean(np.diag(counts)[union > 0] / union[union > 0]))


def by_cityscapes(root: Path, classes: int) -> float:
    import numpy as np
    from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as official  # noqa: N813

    official.args.evalLabels = [*range(classes), 255]
    official.args.evalInstLevelScore = False  # needs instance files, and times more
    counts = np.zeros((256, 256), np.ulonglong)
    for truth in sorted((root / "truth_png").iterdir()):
        predicted = str(root / "pred_png" / truth.name)
        official.evaluatePair(predicted, str(truth), counts, {}, {}, official.args)
    held = counts[:classes, :classes].astype(np.int64)
    union = held.sum(0) + held.sum(1) - np.diag(held)
    return float(np.mean(np.diag(held)[union > 0] / union[union > 0]))


PEERS = {
    "hotcoco": (by_hotcoco, ("hotcoco",)),
    "vernier": (by_vernier, ("vernier.semantic",)),
    "torchmetrics": (by_torchmetrics, ("torchmetrics.classification", "PIL.Image")),
    "cityscapes": (
        by_cityscapes,
        ("cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling",),
    ),
}


def main() -> None:
    peer, root, classes = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    run, modules = PEERS[peer]
    imported = [import_module(module) for module in modules]
    compiled = getattr(imported[0], "CSUPPORT", None)
    start, cpu = time.perf_counter(), time.process_time()
    miou = run(root, classes)
    wall, used = time.perf_counter() - start, time.process_time() - cpu
    status = Path("/proc/self/status").read_text()
    peak = int(status.partition("VmHWM:")[2].split()[0]) / 1024
    what = "" if compiled is None else "C extension" if compiled else "no C extension: Python"
    print(json.dumps({"wall": wall, "cpu": used, "miou": miou, "peak": peak, "what": what}))


if __name__ == "__main__":
    main()
