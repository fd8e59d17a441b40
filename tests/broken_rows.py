"""Rows of street scenes that are right, and rows that are wrong on purpose, one way each."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import cv2
import numpy as np

from pipeline import depth, masks
from pipeline.label_space import label_space
from pipeline.record import ClassPixels, Depth, File, Instance, Provenance, Record, to_table
from pipeline.store import Store
from pipeline.streetscenes import scene
from pipeline.tables.fragment import write_fragment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from numpy.typing import NDArray

SPACE = label_space("camvid-11")
HEIGHT, WIDTH = 72, 96
CAR, ROAD, SKY = (SPACE.by_name[n].id for n in ("Car", "Road", "Sky"))


def good_row(root: Path, name: str, seed: int, split: str = "train") -> Record:
    """Write a street scene and return its row: a mask of all its classes, and one car."""
    rgb, ids = scene(seed, HEIGHT, WIDTH)
    # A corner of every class: what a small store lacks would be findings of its own.
    for at, number in enumerate(SPACE.train_ids):
        ids[:4, 8 * at : 8 * at + 8] = number
    car = np.zeros((HEIGHT, WIDTH), np.uint8)
    car[40:60, 20:50] = 1
    ids[car == 1] = CAR
    path = root / "images" / split / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), rgb[..., ::-1])
    return with_mask(
        Record(
            image_id=name,
            dataset="toy",
            split=split,
            image=File(str(path)),
            fingerprint=f"f-{name}",
            height=HEIGHT,
            width=WIDTH,
            label_space=SPACE.name,
            instances=(instance_of(car, 1, CAR),),
            depth=Depth(None, depth.encode(np.ones((HEIGHT, WIDTH), np.uint16)), 0.001),
            provenance=Provenance("truth", "toy", "d0"),
        ),
        ids,
    )


def with_mask(row: Record, ids: NDArray[np.uint8]) -> Record:
    """Return the row with a mask and its true counts."""
    numbers, counts = np.unique(ids, return_counts=True)
    held = zip(numbers.tolist(), counts.tolist(), strict=True)
    cell = File(bytes=masks.encode(ids, SPACE.palette()))
    return replace(row, mask=cell, classes=tuple(ClassPixels(i, n) for i, n in held))


def instance_of(shape: NDArray[np.uint8], number: int, category: int) -> Instance:
    """Return an object whose box and area are those of its pixels."""
    rle = masks.rle_encode(shape)
    box = masks.rle_bbox(rle, *shape.shape)
    return Instance(number, category, box, float(shape.sum()), rle=rle)


def blank(value: int, shape: tuple[int, int] = (HEIGHT, WIDTH)) -> NDArray[np.uint8]:
    """Return a mask of one value."""
    return np.full(shape, value, np.uint8)


def box_of(rows: slice, columns: slice) -> NDArray[np.uint8]:
    """Return the pixels of an object."""
    shape = blank(0)
    shape[rows, columns] = 1
    return shape


def _car(row: Record, **fields: object) -> Record:
    """Return the row with other fields in its car."""
    (car,) = row.instances or ()
    return replace(row, instances=(replace(car, **fields),))  # type: ignore[arg-type]


def _also(row: Record, *more: Instance) -> Record:
    return replace(row, instances=(*(row.instances or ()), *more))


SKY_CAR = instance_of(box_of(slice(62, 70), slice(60, 90)), 2, SKY)
SMALL = masks.rle_encode(np.ones((5, 5), np.uint8))
BREAKS: dict[str, Callable[[Record], Record]] = {
    "row": lambda r: replace(r, extra="[1"),
    "label-space": lambda r: replace(r, label_space="nowhere"),
    "split": lambda r: replace(r, split="training"),
    "no-label": lambda r: replace(r, mask=None, classes=None, instances=None),
    "mask-corrupt": lambda r: replace(r, mask=File(bytes=b"\x89PNG nonsense")),
    "mask-size": lambda r: with_mask(replace(r, instances=None), blank(ROAD, (HEIGHT, WIDTH - 1))),
    "mask-ids": lambda r: replace(r, mask=File(bytes=masks.encode(blank(60)))),
    "mask-void": lambda r: with_mask(replace(r, instances=None), blank(SPACE.ignore_index)),
    "classes": lambda r: replace(r, classes=(ClassPixels(ROAD, 1),)),
    "confidence": lambda r: replace(r, confidence=File(bytes=masks.encode(blank(9, (5, 5))))),
    "depth": lambda r: replace(r, depth=Depth(None, depth.encode(np.ones((5, 5), np.uint16)))),
    "image-labels": lambda r: replace(r, image_labels=(ROAD, 99)),
    "instance-class": lambda r: _car(r, category=99),
    "instance-rle": lambda r: _car(r, rle=SMALL),
    "instance-outside": lambda r: _car(r, rle=None, bbox=(90.0, 5.0, 30.0, 10.0)),
    "instance-malformed": lambda r: _car(r, bbox=(1.0, float("nan"), 3.0)),
    "instance-empty": lambda r: _car(r, rle=masks.rle_encode(blank(0)), bbox=None, area=None),
    "instance-id": lambda r: _also(r, r.instances[0]),  # type: ignore[index]
    "instance-part": lambda r: _car(r, extra='{"part_of": 77}'),
    "instance-box": lambda r: _car(r, bbox=(40.0, 20.0, 30.0, 20.0)),
    "instance-area": lambda r: _car(r, area=6000.0),
    "instance-mask": lambda r: _also(r, SKY_CAR),
}
"""The kind of finding that each break makes, and no other."""


def store_of(root: Path, rows: Iterable[Record], pieces: int = 1) -> Store:
    """Commit rows to a store, in so many fragments."""
    store, held = Store.create(root / "store", [SPACE]), list(rows)
    size = -(-len(held) // pieces)
    made = [
        write_fragment(store.sink(), f"data/t/{at}.parquet", to_table(held[at : at + size]))
        for at in range(0, len(held), size)
    ]
    return store.commit(made)


def good_rows(root: Path) -> list[Record]:
    """Return six rows with nothing to find: four to train on, one to validate, one to test."""
    splits = ("train",) * 4 + ("val", "test")
    return [good_row(root, f"good-{n}", n, split) for n, split in enumerate(splits)]
