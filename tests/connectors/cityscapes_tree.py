"""A small Cityscapes tree, made with Pillow, and the few steps that its tests share."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from connectors.cityscapes import CITYSCAPES
from pipeline.files import open_tree
from pipeline.label_space import label_space
from tests.connectors.conformance import Made
from tests.connectors.trees import grey, photo, put, random_ids

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from pipeline.record import Record

SHAPE = (24, 32)
PALETTE = label_space("cityscapes-34").palette()


def frame(city: str, number: int) -> str:
    return f"{city}/{city}_000000_{number:06}"


def name(kind: str, folder: str, stem: str, tail: str) -> str:
    return f"{kind}/{folder}/{stem}_{kind}{tail}"


def wide(values: NDArray[Any]) -> bytes:
    """Return a map as a grey 16-bit PNG."""
    data = io.BytesIO()
    Image.fromarray(values.astype(np.uint16)).save(data, format="PNG")
    return data.getvalue()


def polygons(*objects: tuple[str, list[list[int]]], **others: Any) -> str:
    """Return a polygons.json in the words of the annotation tool, indented as it writes."""
    said = [
        {"label": label, "polygon": points, "deleted": 0, "user": "me", "date": "", "id": n}
        for n, (label, points) in enumerate(objects)
    ]
    content = {"imgHeight": SHAPE[0], "imgWidth": SHAPE[1], "objects": said, **others}
    return json.dumps(content, indent=4)


def box(left: int, top: int, right: int, bottom: int) -> list[list[int]]:
    return [[left, top], [right, top], [right, bottom], [left, bottom]]


def box_map(*boxes: tuple[int, list[list[int]]]) -> NDArray[np.uint16]:
    """Return the map of boxes that lie within the image, their borders included."""
    values = np.zeros(SHAPE, np.uint16)
    for value, ((left, top), _, (right, bottom), _) in boxes:
        values[top : bottom + 1, left : right + 1] = value
    return values


SCENE = (
    ("road", box(0, 0, 31, 23)),
    ("car", box(3, 3, 4, 4)),
    ("car", box(2, 2, 9, 9)),
    ("cargroup", box(12, 2, 19, 9)),
    ("license plate", box(0, 0, 9, 9)),
    ("car", box(7, 5, 10, 12)),
    ("person", box(20, 10, 25, 20)),
)
"""The first car is wholly covered by the second."""
SCENE_VALUES = box_map(
    (7, SCENE[0][1]), (26000, SCENE[1][1]), (26001, SCENE[2][1]), (26, SCENE[3][1]),
    (26002, SCENE[5][1]), (24000, SCENE[6][1]),
)  # fmt: skip


AACHEN = frame("aachen", 19)


def labels_of(values: NDArray[np.uint16]) -> NDArray[np.uint8]:
    return np.where(values >= 1000, values // 1000, values).astype(np.uint8)


def put_photo(root: Path, folder: str, stem: str) -> None:
    put(root, name("leftImg8bit", folder, stem, ".png"), photo(SHAPE))


def put_labels(
    root: Path, files: dict[str, bytes | str], kind: str = "gtFine", folder: str = "train"
) -> None:
    """Write one frame of Aachen: its photo and the given label files."""
    put_photo(root, folder, AACHEN)
    for tail, data in files.items():
        put(root, name(kind, folder, AACHEN, tail), data)


def read_all(root: Path, *splits: str) -> list[Record]:
    tree = open_tree(str(root))
    return [CITYSCAPES.read(tree, sample) for sample in CITYSCAPES.list(tree, splits)]


def read_one(root: Path) -> Record:
    (record,) = read_all(root)
    return record


def pixels(path: Path) -> NDArray[Any]:
    with Image.open(path) as image:
        return np.array(image)


def numbers(record: Record) -> list[tuple[int, int, bool]]:
    return [(i.id, i.category, i.iscrowd) for i in record.instances or ()]


SCENE_OBJECTS = [(26, 26, True), (24000, 24, False), (26001, 26, False), (26002, 26, False)]


def make_tree(root: Path) -> Made:
    """Write four frames: all four label files; labelIds only; polygons only; a test frame."""
    full, bare, drawn, dummy = (
        frame("aachen", 19), frame("zurich", 1), frame("bonn", 2), frame("berlin", 3),
    )  # fmt: skip
    ids = {
        f"train/{full}": labels_of(SCENE_VALUES),
        f"train/{bare}": random_ids(range(34), SHAPE, 1),
        f"val/{drawn}": labels_of(SCENE_VALUES),
        f"test/{dummy}": random_ids((0, 1, 2, 3), SHAPE, 2),
    }
    for n, place in enumerate(ids):
        split, _, stem = place.partition("/")
        put(root, name("leftImg8bit", split, stem, ".png"), photo(SHAPE, seed=n))
    text = polygons(*SCENE, comment="kept")
    for split, stem in (("train", full), ("train", bare), ("test", dummy)):
        put(root, name("gtFine", split, stem, "_labelIds.png"), grey(ids[f"{split}/{stem}"]))
    put(root, name("gtFine", "train", full, "_instanceIds.png"), wide(SCENE_VALUES))
    put(root, name("gtFine", "train", full, "_polygons.json"), text)
    put(root, name("gtFine", "test", dummy, "_instanceIds.png"), wide(ids[f"test/{dummy}"]))
    put(root, name("gtCoarse", "val", drawn, "_polygons.json"), text)
    return Made(
        splits={"train": [full, bare], "val": [drawn], "test": [dummy]},
        ids=ids,
        sample=bare,
        image=name("leftImg8bit", "train", bare, ".png"),
        mask=name("gtFine", "train", bare, "_labelIds.png"),
        same_files=(
            name("gtFine", "train", full, "_polygons.json"),
            name("gtCoarse", "val", drawn, "_polygons.json"),
        ),
    )
