"""What the quality options of `segmill label` gain on labelled images, and what they cost.

    python benchmarks/refine.py STORE --model run:DIR [--split test] [--images 24] [--way guided]

STORE holds the truth; every Nth image of the split is labelled in each way, in this process, on one
thread of the CPU unless --device says otherwise. Prints mIoU, boundary IoU, the calibration error
of confidence and seconds of the processor an image (wall seconds on a GPU), each beside its
difference or ratio to the plain way.

Boundary IoU (Cheng et al., CVPR 2021): IoU of the parts of truth and prediction that lie within a
share of the image's diagonal of their class's contour, 2 % there and 0.5 % for finer edges; the
pixels of all images are added up by class, void ones left out, and classes averaged. Calibration
error (Guo et al., ICML 2017): mean distance of accuracy and confidence over 16 bins of confidence.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline import masks
from pipeline.files import read_url
from pipeline.images import decode
from pipeline.models import load_model
from pipeline.models.ensemble import uri_of
from pipeline.predict.options import LabelOptions
from pipeline.predict.predictor import Picture, Predicted, Predictor
from pipeline.predict.tta import Augmentation
from pipeline.store import Store

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.models import LoadedModel

SHARES = (0.02, 0.005)
SCALES = (0.75, 1.0, 1.25)
WAYS = {
    "plain": {},
    "guided": {"refine": "guided"},
    "densecrf": {"refine": "densecrf"},
    "flip": {"tta": Augmentation(flip=True)},
    "scales": {"tta": Augmentation(SCALES, flip=True)},
    "flip+guided": {"tta": Augmentation(flip=True), "refine": "guided"},
    "scales+guided": {"tta": Augmentation(SCALES, flip=True), "refine": "guided"},
}


@dataclass(slots=True)
class Score:
    """Pixels in both and in either, by class: of regions, and of their boundaries by share."""

    classes: int
    both: NDArray[np.int64] = field(init=False)
    either: NDArray[np.int64] = field(init=False)
    seconds: float = 0.0
    bins: NDArray[np.float64] = field(default_factory=lambda: np.zeros((3, 16)))
    """By confidence: pixels, those that are right, the sum of their confidence."""

    def __post_init__(self) -> None:
        self.both, self.either = np.zeros((2, 1 + len(SHARES), self.classes), np.int64)

    def add(self, truth: NDArray[np.uint8], predicted: Predicted) -> None:
        valid, found = truth < self.classes, predicted.ids.astype(np.uint8)
        sure = predicted.confidence[valid]
        for n, weights in enumerate((None, (found == truth)[valid], sure / 255)):
            self.bins[n] += np.bincount(sure >> 4, weights, 16)
        diagonal = np.hypot(*truth.shape)
        for c in np.union1d(truth[valid], found[valid]).tolist():
            a, b = truth == c, found == c
            self._count(0, c, a & valid, b & valid)
            for n, share in enumerate(SHARES, 1):
                width = max(1, round(share * diagonal))
                self._count(n, c, contour(a, width) & valid, contour(b, width) & valid)

    def _count(self, n: int, c: int, a: NDArray[np.bool_], b: NDArray[np.bool_]) -> None:
        self.both[n, c] += int((a & b).sum())
        self.either[n, c] += int((a | b).sum())

    def means(self) -> list[float]:
        """Return mIoU, boundary IoU of each share, and the calibration error, in per cent."""
        share = np.where(self.either > 0, self.both / np.maximum(self.either, 1), np.nan)
        error = np.abs(self.bins[1] - self.bins[2]).sum() / self.bins[0].sum()
        return (100 * np.append(np.nanmean(share, axis=1), error)).tolist()


def contour(mask: NDArray[np.bool_], width: int) -> NDArray[np.bool_]:
    """Return the pixels of a mask within `width` of its edge; the image's border is an edge."""
    plain = mask.astype(np.uint8)
    kernel = np.ones((3, 3), np.uint8)
    inner = cv2.erode(
        plain, kernel, iterations=width, borderType=cv2.BORDER_CONSTANT, borderValue=0
    )
    return mask & (inner == 0)


def measured(
    model: LoadedModel, pairs: list[tuple[Picture, NDArray[np.uint8]]], options: LabelOptions
) -> Score:
    """Label each image by itself and score it."""
    device = torch.device(options.device)
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    predictor, score = Predictor(model, device, options), Score(len(model.label_space.train_ids))
    for picture, truth in pairs:
        start = clock()
        (found,) = predictor.predict([picture])
        score.seconds += clock() - start
        assert isinstance(found, Predicted), found
        score.add(truth, found)
    return score


def read(store: Store, split: str, images: int) -> list[tuple[Picture, NDArray[np.uint8]]]:
    """Read every Nth image of a split, with its truth."""
    rows = [
        row
        for batch in store.scan(["image_id", "split", "image", "mask"], f"split = '{split}'")
        for row in batch.to_pylist()
    ]
    rows.sort(key=lambda row: row["image_id"])
    pairs = []
    for row in rows[:: max(1, len(rows) // images)][:images]:
        path = row["image"]["path"]
        pixels = decode(row["image"]["bytes"] or read_url(path), path, orient=False)
        truth = masks.decode(row["mask"]["bytes"])
        pairs.append((Picture(pixels, truth.shape, path), truth.astype(np.uint8)))
    return pairs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("store")
    parser.add_argument("--model", action="append", required=True)
    parser.add_argument("--split", default="test")
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--way", action="append", choices=WAYS)
    parser.add_argument("--window", help="HxW, in every way")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    model = load_model(uri_of(asked.model))
    # The ids of truth and prediction are compared as they are.
    assert model.label_space.train_ids == tuple(range(len(model.label_space.train_ids)))
    model.module.requires_grad_(False).to(asked.device).to(memory_format=torch.channels_last)
    pairs = read(Store.open(asked.store), asked.split, asked.images)
    window = tuple(int(n) for n in asked.window.split("x")) if asked.window else None
    plain: Score | None = None
    edges = [f"boundary IoU {share:.1%}" for share in SHARES]
    print(" | ".join(["| way", "mIoU", *edges, "calibration error", "s/image", "times plain |"]))
    print("| --- " * (5 + len(SHARES)) + "|")
    for name in dict.fromkeys(["plain", *(asked.way or WAYS)]):
        options = LabelOptions(device=asked.device, window=window, **WAYS[name])
        score = measured(model, pairs, options)
        plain = plain or score
        cells = [
            f"{now:.2f} ({now - then:+.2f})"
            for now, then in zip(score.means(), plain.means(), strict=True)
        ]
        pace = [f"{score.seconds / len(pairs):.3f}", f"{score.seconds / plain.seconds:.1f} |"]
        print(" | ".join([f"| {name}", *cells, *pace]), flush=True)


if __name__ == "__main__":
    main()
