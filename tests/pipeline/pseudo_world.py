"""Simulated labels: images of blocks whose confidence means what it says, or not; and stores."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pipeline import masks
from pipeline.label_space import LabelClass, LabelSpace
from pipeline.record import File, Provenance, Record, Sample, to_table
from pipeline.store import Store
from pipeline.tables.fragment import write_fragment

if TYPE_CHECKING:
    from pathlib import Path

SPACE = LabelSpace(
    "toy-4",
    tuple(LabelClass(i, n, (40 * i, 9, 9)) for i, n in enumerate(("a", "b", "c", "d"), 3)),
    255,
)
SIDE = 32
BLOCK = 8


def image(rng: np.random.Generator, *, void: float = 0.0, power: float = 1.0, shares=None):
    """Return truth, prediction (ids [32, 32]) and confidence of a made image.

    In blocks of 8 x 8, so that pixels are right or wrong together, the prediction is right with
    probability p ** power, p its confidence. Rarer classes (5, 6) come seldom.
    """
    shares = (0.55, 0.3, 0.1, 0.05) if shares is None else shares
    count = SIDE // BLOCK
    predicted = rng.choice(4, (count, count), p=shares)
    p = rng.beta(4, 1, (count, count))
    right = rng.random((count, count)) < p**power
    other = (predicted + rng.integers(1, 4, predicted.shape)) % 4
    truth = np.where(right, predicted, other)
    truth = np.where(rng.random(truth.shape) < void, 252, truth)
    grown = [np.kron(m, np.ones((BLOCK, BLOCK))) for m in (truth + 3, predicted + 3, p)]
    return (
        grown[0].astype(np.uint8),
        grown[1].astype(np.uint8),
        np.round(255 * grown[2]).astype(np.uint8),
    )


def record(name: str, ids, confidence=None, labels=None) -> Record:
    """Return a row: of truth, or of a prediction with its confidence."""
    return Record(
        image_id=name,
        dataset="toy",
        split="val",
        image=File(f"/images/{name}.png"),
        fingerprint="f",
        height=ids.shape[0],
        width=ids.shape[1],
        label_space=SPACE.name,
        mask=File(bytes=masks.encode(ids, SPACE.cell_palette())),
        confidence=None if confidence is None else File(bytes=masks.encode(confidence)),
        classes=masks.class_pixels(ids, SPACE, confidence),
        image_labels=labels,
        provenance=Provenance("truth" if confidence is None else "model", "m", "d"),
    )


def store_of(path: Path, records) -> Store:
    """Write rows to a new store."""
    store = Store.create(path, [SPACE])
    rows = sorted(records, key=lambda r: r.image_id)
    return store.commit([write_fragment(store.sink(), "data/rows.parquet", to_table(rows))])


def sample(name: str) -> Sample:
    return Sample(name, f"/images/{name}.png", "f", "d", "toy", "val")


def stores(root: Path, count: int, seed: int = 0, **kind) -> tuple[Store, Store]:
    """Return a store of truth and one of predictions."""
    rng = np.random.default_rng(seed)
    made = [(f"{n:04d}", image(rng, **kind)) for n in range(count)]
    truth = [record(name, one[0]) for name, one in made]
    return (
        store_of(root / "truth", truth),
        store_of(root / "pred", [record(name, *one[1:]) for name, one in made]),
    )
