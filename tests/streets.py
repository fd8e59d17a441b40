"""A small label store of generated street scenes, and a recipe that trains on it in a second."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import cv2
import torch

from pipeline import masks
from pipeline.label_space import label_space
from pipeline.record import File, Record, to_table
from pipeline.store import Store
from pipeline.streetscenes import scene
from pipeline.tables.fragment import write_fragment
from pipeline.training.place import Place
from pipeline.training.recipe import Recipe
from pipeline.training.supervised import Listener, Plan, Result, read_result, train

if TYPE_CHECKING:
    from pathlib import Path

SPACE = label_space("camvid-11")
SIZE = (40, 56)
MODEL = "python:tests.tiny_net:make"
HERE = Place(torch.device("cpu"), threads=1)


def street(root: Path, split: str, number: int, *, embed: bool = False) -> Record:
    """Write one image and return its record."""
    rgb, ids = scene((sum(map(ord, split)), number), *SIZE)
    path = root / f"{split}-{number:03}.png"
    cv2.imwrite(str(path), rgb[..., ::-1])
    return Record(
        image_id=path.stem,
        dataset="streets",
        split=split,
        image=File(str(path), path.read_bytes() if embed else None),
        fingerprint="f",
        height=SIZE[0],
        width=SIZE[1],
        label_space=SPACE.name,
        mask=File(bytes=masks.encode(ids, SPACE.palette())),
        classes=masks.class_pixels(ids, SPACE),
    )


def make_streets(
    root: Path, train_rows: int = 10, val_rows: int = 5, *, embed: bool = False
) -> Store:
    """Write images and a store with a train and a val split."""
    (root / "images").mkdir(parents=True)
    store = Store.create(root / "store", [SPACE])
    fragments = []
    for split, count in (("train", train_rows), ("val", val_rows)):
        rows = [street(root / "images", split, i, embed=embed) for i in range(count)]
        fragments.append(write_fragment(store.sink(), f"data/{split}.parquet", to_table(rows)))
    return store.commit(fragments)


def recipe(**changes: Any) -> Recipe:
    values = {
        "model": MODEL,
        "augment": {"crop": [32, 40], "scale": [0.8, 1.25], "jitter": {"brightness": 0.2}},
        "optimiser": {"lr": 1e-2, "weight_decay": 1e-4},
        "batch": 4,
        "epochs": 3,
        "ema": 0.9,
        "class_weights": "enet",
        "seed": 3,
    }
    return Recipe.model_validate(values | changes)


def run(store: Store, out: Path, listener: Listener | None = None, **changes: Any) -> Result:
    """Train in this process and return what came of it."""
    train(Plan(store, recipe(**changes), str(out)), HERE, listener)
    return read_result(str(out))
