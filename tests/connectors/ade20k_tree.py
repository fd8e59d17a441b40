"""A small full release of ADE20K, made with NumPy and Pillow by the formulas of the releases."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from connectors.ade20k_full import ADE20K_FULL
from pipeline.files import open_tree
from tests.connectors.trees import grey, photo, put, random_ids, rgb_png

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from pipeline.record import Record

SHAPE = (12, 16)
TOP = "ADE20K_2021_17_01/"
BASE = f"{TOP}images/ADE/"
NAMES = {
    187: "bicycle, bike",
    312: "building, edifice",
    401: "car, auto",
    1439: "license plate",
    2420: "sky",
}


def rgb_of(numbers: NDArray[Any], ranks: NDArray[Any]) -> bytes:
    """Return an RGB mask: class in red and green, objects spread evenly over blue."""
    count = max(1, int(ranks.max()))
    blue = np.floor(255 * ranks / count + 0.5)
    return rgb_png(np.dstack([numbers // 256 * 10, numbers % 256, blue]).astype(np.uint8))


def numbers_and_ranks(data: bytes) -> tuple[NDArray[Any], NDArray[Any]]:
    """Decode an RGB mask as the developers' kit does."""
    with Image.open(io.BytesIO(data)) as image:
        assert image.mode == "RGB"
        red, green, blue = np.moveaxis(np.array(image).astype(int), 2, 0)
    assert not (red % 10).any()
    present = np.bincount(blue.ravel(), minlength=256) > 0
    present[0] = False
    return red // 10 * 256 + green, np.cumsum(present)[blue] * (blue > 0)


def put_image_2021(
    root: Path, stem: str, numbers: NDArray[Any], seed: int = 0, **extra: Any
) -> dict[str, Any]:
    """Write one image whose objects are the classes' regions, and a plate on the first; its JSON.

    Ids have gaps and run against the ranks; the second object hides two pixels of the first.
    """
    folder, _, name = stem.rpartition("/")
    present = [int(n) for n in np.unique(numbers) if n]
    ranks, items = np.zeros(numbers.shape, int), []
    for at, number in enumerate(present):
        here = numbers == number
        ranks[here] = len(present) - at
        mask = np.where(here, 255, 0)
        if at == 0 and len(present) > 1:
            mask.flat[np.flatnonzero(numbers == present[1])[:2]] = 128
        items.append(_item(3 * at, number, name, occluded=["yes", [], "no"][at % 3]))
        put(root, f"{folder}/{items[-1]['instance_mask']}", grey(mask))
    put(root, f"{stem}_seg.png", rgb_of(numbers, ranks))
    if present:
        plate = np.zeros(numbers.shape, bool)
        plate.flat[np.flatnonzero(numbers == present[0])[:3]] = True
        items[0]["parts"]["hasparts"] = 99
        items.append(_item(99, 1439, name, parts={"ispartof": 0, "hasparts": [], "part_level": 1}))
        put(root, f"{folder}/{items[-1]['instance_mask']}", grey(np.where(plate, 255, 0)))
        put(root, f"{stem}_parts_1.png", rgb_of(np.where(plate, 1439, 0), plate.astype(int)))
    note = {
        "filename": f"{name}.jpg", "folder": folder, "imsize": [*numbers.shape, 3],
        "scene": ["outdoor", "urban", "street"], "object": items, **extra,
    }  # fmt: skip
    put(root, f"{stem}.json", json.dumps({"annotation": note}))
    put(root, f"{stem}.jpg", photo((numbers.shape[0], numbers.shape[1]), ".jpg", seed))
    return note


def _item(number: int, class_number: int, name: str, **more: Any) -> dict[str, Any]:
    return {
        "id": number, "name": NAMES[class_number], "name_ndx": class_number, "hypernym": [],
        "raw_name": NAMES[class_number].partition(",")[0], "attributes": "parked",
        "depth_ordering_rank": 1, "crop": "0",
        "parts": {"hasparts": [], "ispartof": [], "part_level": 0},
        "instance_mask": f"{name}/instance_{number:03d}_{name}.png",
        "polygon": {"x": [1, 2, 2], "y": [1, 1, 2]}, "saved_date": "25-Sep-2005 20:19:10",
    } | more  # fmt: skip


def street(seed: int) -> NDArray[Any]:
    """Return class numbers [12, 16] in which every class occurs."""
    return np.array([0, *NAMES])[random_ids(range(6), SHAPE, seed)]


def records_of(root: Path | str) -> list[Record]:
    """Read all images of a dataset."""
    tree = open_tree(str(root))
    return [ADE20K_FULL.read(tree, sample) for sample in ADE20K_FULL.list(tree, ())]


def only(root: Path | str) -> Record:
    """Read the one image of a dataset."""
    (record,) = records_of(root)
    return record


def tail(stem: Path, end: str) -> Path:
    """Return the file of a stem with this ending."""
    return stem.with_name(stem.name + end)
