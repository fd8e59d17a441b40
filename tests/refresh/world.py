"""A bucket that grows, truth to gate by, and a configuration: nights in a second each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import yaml

from pipeline import masks
from pipeline.record import File, Record, to_table
from pipeline.refresh.config import Config
from pipeline.refresh.cycle import refresh
from pipeline.store import Store
from pipeline.tables.fragment import write_fragment
from tests.refresh.palette_model import COLOURS, GOOD, SPACE

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.refresh.night import Hooks
    from pipeline.refresh.record import Night

SIZE = (24, 32)
LAX = {"least": {}, "worse": {"miou": None, "classes": None}}
"""A gate that lets all through."""


def picture(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return RGB and ids of blocks of the four colours, noisy enough to be mistaken."""
    rng = np.random.default_rng(seed)
    ids = np.kron(rng.integers(0, 4, (3, 4)), np.ones((8, 8))).astype(np.uint8)
    rgb = np.array(COLOURS)[ids] + rng.normal(0, 45, (*SIZE, 3))
    return rgb.clip(0, 255).astype(np.uint8), ids


def write(path: Path, seed: int) -> np.ndarray:
    rgb, ids = picture(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), rgb[..., ::-1])
    return ids


def truth_record(path: Path, split: str, seed: int) -> Record:
    ids = write(path, seed)
    return Record(
        image_id=path.stem,
        dataset="truth",
        split=split,
        image=File(str(path)),
        fingerprint="f",
        height=SIZE[0],
        width=SIZE[1],
        label_space=SPACE.name,
        mask=File(bytes=masks.encode(ids, SPACE.cell_palette())),
        classes=masks.class_pixels(ids, SPACE),
    )


@dataclass
class World:
    root: Path
    model: Any = GOOD

    def __post_init__(self) -> None:
        self.bucket = self.root / "bucket"
        self.labels = str(self.root / "labels")
        if (self.root / "truth").exists():
            return
        rows = [
            truth_record(self.root / "people" / f"{split}-{n:02}.png", split, 1000 * k + n)
            for k, split in enumerate(("train", "val"), 1)
            for n in range(12)
        ]
        store = Store.create(self.root / "truth", [SPACE])
        store.commit([write_fragment(store.sink(), "data/rows.parquet", to_table(rows))])

    def arrive(self, first: int, count: int) -> None:
        for n in range(first, first + count):
            write(self.bucket / f"{n:04}.png", n)

    def values(self, **more: Any) -> dict[str, Any]:
        return {
            "truth": {"store": str(self.root / "truth")},
            "images": {"source": str(self.bucket), "dataset": "frames"},
            "labels": self.labels,
            "work": str(self.root / "work"),
            "models": str(self.root / "models"),
            "model": self.model,
            "label": {"runner": "local", "shard_images": 4, "max_errors": "10%"},
            "gate": {"least": {"miou": 0.3}},
            "drift": {"canary": 0, "least_images": 4},
            "lists": {"by_hand": 3, "audit": 3, "scene": "image_id:(.*)"},
        } | more

    def config(self, **more: Any) -> Config:
        return Config.model_validate(self.values(**more))

    def file(self, **more: Any) -> Path:
        path = self.root / "refresh.yaml"
        path.write_text(yaml.safe_dump(self.values(**more)))
        return path

    def night(self, day: int, hooks: Hooks | None = None, **more: Any) -> Night:
        return refresh(self.config(**more), date_of(day), hooks)

    def store(self) -> Store:
        return Store.open(self.labels)


def date_of(day: int) -> str:
    return f"2026-11-{day:02}"


def rows_of(store: Store) -> dict[str, dict[str, Any]]:
    """Return a snapshot's rows by image, without the times at which they were made."""
    found = {}
    for batch in store.scan():
        for row in batch.to_pylist():
            assert row["image_id"] not in found, "two rows of one image"
            row["provenance"].pop("at")
            row["image"] = row["image"]["path"].rpartition("/")[2]
            row.pop("fingerprint")  # of a file's time: another in each copy of the world
            found[row["image_id"]] = row
    return found
