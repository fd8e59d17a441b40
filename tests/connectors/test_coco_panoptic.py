"""COCO panoptic: the conformance suite, the rules of panopticapi in NumPy, and the real files."""

from __future__ import annotations

import io
import json
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from connectors.coco_panoptic import COCO_PANOPTIC
from connectors.panoptic_pixels import read_ids
from pipeline import masks
from pipeline.errors import BadAnnotation, CorruptMask, LayoutError, MissingFile, SizeMismatch
from pipeline.files import open_tree
from pipeline.label_space import LabelClass, LabelSpace, label_space
from pipeline.record import Instance, Record
from tests.connectors.conformance import Conformance, Made
from tests.connectors.trees import bare, contents, copy_tree, make_record, photo, put, rewrite

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

SPACE = label_space("coco-panoptic-133")
SHAPE = (12, 16)
FILES = {
    "train": ["000000000009", "000000000025"],
    "val": ["000000000139"],
    "test": ["000000000001"],
}
FOLDERS = {"train": "train2017", "val": "val2017", "test": "test2017"}
CATEGORIES = [
    {
        "id": c.id,
        "name": c.name,
        "color": list(c.colour),
        "isthing": int(bool(c.isthing)),
        "supercategory": "",
    }
    for c in SPACE.classes
    if c.id != 255
]


def rgb(ids: NDArray[Any]) -> bytes:
    """Return segment ids as a PNG, by panopticapi's id2rgb."""
    data = io.BytesIO()
    Image.fromarray(np.stack([ids >> shift & 255 for shift in (0, 8, 16)], 2).astype("u1")).save(
        data, "PNG"
    )
    return data.getvalue()


def rgb2id(path: Path) -> NDArray[np.int64]:
    """Return segment ids as panopticapi's rgb2id does."""
    with Image.open(path) as image:
        assert image.mode == "RGB"
        pixels = np.array(image).astype(np.int64)
    return pixels[:, :, 0] + 256 * pixels[:, :, 1] + 65536 * pixels[:, :, 2]


def segments(ids: NDArray[Any], categories: dict[int, int]) -> list[dict[str, Any]]:
    """Describe segments by comparisons, one for each id."""
    found = []
    for number, category in categories.items():
        rows, columns = np.nonzero(ids == number)
        left, top = int(columns.min()), int(rows.min())
        box = [left, top, int(columns.max()) - left + 1, int(rows.max()) - top + 1]
        found.append(
            {
                "id": number,
                "category_id": category,
                "iscrowd": 0,
                "bbox": box,
                "area": len(rows),
            }
        )
    return found


def segment_map(seed: int) -> tuple[NDArray[np.int64], dict[int, int]]:
    """Draw blocks of void, three persons, one of them a crowd's colour, sky and wall."""
    rng = np.random.default_rng(seed)
    numbers = np.array([0, 3937500, 7, 1 << 23, 65536, 16777215])
    ids = np.kron(rng.choice(numbers, (3, 4)), np.ones((4, 4), np.int64)).astype(np.int64)
    ids.flat[: len(numbers)] = numbers
    return ids, {3937500: 1, 7: 1, 16777215: 3, 65536: 187, 1 << 23: 199}


def panoptic_json(images: list[Any], annotations: list[Any], categories: Any = CATEGORIES) -> str:
    return json.dumps(
        {
            "info": {"year": 2017, "description": "é"},
            "licenses": [{"id": 1, "name": "CC"}],
            "images": images,
            "annotations": annotations,
            "categories": categories,
        }
    )


def entry(name: str, **more: Any) -> dict[str, Any]:
    size = {"height": SHAPE[0], "width": SHAPE[1]}
    return {"id": int(name), "file_name": f"{name}.png", "license": 1} | size | more


def put_split(
    root: Path, split: str, maps: dict[str, tuple[NDArray[np.int64], dict[int, int]]]
) -> None:
    tag = FOLDERS[split]
    for name, (ids, _) in maps.items():
        put(root, f"images/{tag}/{name}.png", photo(SHAPE))
        put(root, f"annotations/panoptic_{tag}/{name}.png", rgb(ids))
    annotations = [
        {"image_id": int(n), "file_name": f"{n}.png", "segments_info": segments(*m)}
        for n, m in maps.items()
    ]
    text = panoptic_json([entry(n) for n in maps], annotations)
    put(root, f"annotations/panoptic_{tag}.json", text)


class TestCocoPanoptic(Conformance):
    connector = COCO_PANOPTIC
    stray_error = BadAnnotation

    def make_tree(self, root: Path) -> Made:
        ids = {}
        for split, names in FILES.items():
            maps = {name: segment_map(int(name)) for name in names}
            put_split(root, split, maps)
            for name, (numbers, categories) in maps.items():
                found = np.full(SHAPE, 255, np.uint8)
                for number, category in categories.items():
                    found[numbers == number] = category
                ids[f"{split}/{name}"] = found
        name = "000000000139"
        image, mask = f"images/val2017/{name}.png", f"annotations/panoptic_val2017/{name}.png"
        return Made(FILES, ids, name, image, mask)

    def spoil(self, mask: Path) -> None:
        Image.new("RGB", SHAPE[::-1], (1, 2, 3)).save(mask)
