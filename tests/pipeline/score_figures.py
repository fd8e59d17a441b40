"""Scores of a few hand-made pixels, and the figures of a report that holds every section."""

from __future__ import annotations

import numpy as np

from pipeline.label_space import LabelClass, LabelSpace
from pipeline.metrics.confusion import ConfusionMatrix
from pipeline.metrics.gather import ImageScore
from pipeline.metrics.pairing import Pair
from pipeline.report.examples import ConfusedExample, ConfusedPair, Example
from pipeline.scoring import Scores
from pipeline.tables.rows import RowKey

EVIL = "<script>alert(1)</script>"
BREAK = '"><img src=x onerror="document.documentElement.dataset.evil=1"> | @all </script>'
SPACE = LabelSpace(
    EVIL,
    tuple(LabelClass(k, n, (40 * k, 90, 200)) for k, n in enumerate(("road", EVIL, BREAK))),
    255,
)
PNG = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNk+A8AAQUB"
    "AScY42YAAAAASUVORK5CYII="
)
COUNTS = np.array([[900, 60, 40, 0], [100, 300, 0, 0], [50, 10, 20, 20]])


def scores():
    return Scores(
        space=SPACE, matrix=ConfusionMatrix(COUNTS.copy(), 70), inputs=3, done=2, unpredicted=1,
        unlabelled=0, failed=0, unused=0, by_path=2, by_id=0, failures=(), worst=(), best=(),
        histogram=(0,) * 12 + (2,) + (0,) * 7, truth_loss=None, predicted_loss=None,
    )  # fmt: skip


def example(name, *, photo=True):
    key = RowKey(name, "toy", 1)
    image = ImageScore(Pair(key, key, "val"), 100, 4, 60, 0.6, 0.4, 1.0, 3, EVIL)
    return Example(image, 30, 40, PNG if photo else None, PNG, PNG, PNG)


def confused(name):
    return [ConfusedPair(1, 0, (ConfusedExample(name, 80, 30, 40, PNG, PNG),))]


def difference(by, interval):
    return {
        "this": 0.5, "baseline": 0.5 - by, "difference": by, "interval": interval, "p": 0.0123,
        "p_adjusted": 0.0456,
    }  # fmt: skip


def full_figures():
    """Return figures with every section; the numbers are found on the page by the tests."""
    names = ["road", EVIL, BREAK]
    return {
        **scores().figures(),
        "kappa": 0.613, "mean_dice": 0.621,
        "intervals": {
            "level": 0.9, "replicates": 100, "miou": [0.401, 0.522], "pixel_accuracy": None,
            "classes": {n: {"iou": [0.2, 0.712]} for n in names}, "note": "only 2 images",
        },
        "baseline": {
            "store": f"/stores/{EVIL}", "version": 4, "images": 2, "level": 0.9,
            "miou": difference(0.0237, [0.011, 0.0362]),
            "pixel_accuracy": difference(-0.01, None),
            "classes": dict(zip(names, (
                difference(0.0417, [0.0123, 0.07]), difference(-0.0618, [-0.09, -0.03]),
                {**difference(0.0, None), "difference": None},
            ), strict=True)),
            "better": 1, "worse": 1, "same": 0, "agreement": 0.873,
            "most_better": [{"image_id": EVIL, "difference": 0.1, "this": 0.5, "baseline": 0.4}],
            "most_worse": [{"image_id": BREAK, "difference": -0.1, "this": 0.4, "baseline": 0.5}],
            "churn": {n: {"kept": 60, "gained": 30, "lost": 10} for n in names},
        },
        "gates": [
            {"gate": "miou < 0.1", "value": 0.4321, "limit": 0.1, "fails": False},
            {"gate": f'classes["{EVIL}"].iou < 1', "value": None, "limit": 1.0, "fails": True,
             "why": f"{BREAK} has no value"},
        ],
        "slices": [
            {"by": EVIL, "value": BREAK, "images": 1, "pixels": 9, "miou": 0.123,
             "miou_interval": [0.1, 0.15], "pixel_accuracy": 0.3, "difference": -0.2,
             "worst_class": EVIL, "few": True},
            {"by": "split", "value": "val", "images": 0, "pixels": 0, "miou": None,
             "miou_interval": None, "pixel_accuracy": None, "difference": None,
             "worst_class": None},
        ],
        "boundary": {
            "tolerance_pixels": None, "tolerance_share": 0.02, "boundary_iou": 0.271,
            "boundary_f1": None,
            "classes": {n: {"boundary_iou": 0.3, "boundary_f1": None, "precision": 0.4,
                            "recall": 0.5} for n in names},
            "trimap": [{"pixels": k, "miou": 0.1 * k, "accuracy": None if k == 2 else 0.2 * k}
                       for k in (1, 2, 4)],
        },
        "calibration": {
            "ece": 0.0314, "mce": 0.09, "mean_confidence": 0.83, "accuracy": 0.8, "pixels": 100,
            "bins": [
                {"low": 0.0, "high": 0.5, "pixels": 0, "confidence": None, "accuracy": None},
                {"low": 0.5, "high": 1.0, "pixels": 100, "confidence": 0.83, "accuracy": 0.8},
            ],
            "classes": {n: {"ece": 0.1, "pixels": 3, "confidence": 0.7, "accuracy": None}
                        for n in names},
            "risk_coverage": [{"coverage": 0.5, "risk": 0.1}, {"coverage": 1.0, "risk": 0.2}],
        },
        "panoptic": {"pq": 0.411, "sq": 0.7, "rq": 0.5, "things": {"pq": None},
                     "classes": {n: {"pq": 0.4, "sq": None, "rq": 0.5} for n in names}},
        "cityscapes": {"iou_categories": {EVIL: 0.91}, "iiou_categories": {EVIL: None},
                       "mean_iou_categories": 0.91, "mean_iiou_classes": None,
                       "instances": {"ap": 0.2, "ap50": 0.4}},
        "objects": {"ap": 0.234, "ap50": 0.4, "classes": {n: {"ap": 0.2} for n in names}},
    }  # fmt: skip


def agreement_figures():
    names = ["road", EVIL, BREAK]
    return {
        "compares": "labels with labels", "miou": 0.77, "agreement": 0.912,
        "classes": {n: {"iou": 0.5, "truth": 1, "predicted": 1, "intersection": 1} for n in names},
        "churn": {n: {"kept": 60, "gained": 30, "lost": 10} for n in [*names, "no label"]},
    }  # fmt: skip
