"""Small COCO datasets that tests make, and their judge."""

from __future__ import annotations

import contextlib
import io
import json
from typing import TYPE_CHECKING, Any

from pycocotools.coco import COCO

from connectors.coco import COCO_INSTANCES
from pipeline.files import open_sink, open_tree
from pipeline.label_space import label_space
from tests.connectors.trees import photo, put

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.files import Tree
    from pipeline.record import Record

SHAPE = (12, 16)
CATEGORIES = [
    {"supercategory": "animal", "id": 3, "name": "cat"},
    {"supercategory": "thing", "id": 700, "name": "a, b"},
]
OFFICIAL = [
    {"supercategory": "", "id": c.id, "name": c.name}
    for c in label_space("coco-80").classes
    if not c.void
]
POLYGON = [[1.5, 2.0, 10.25, 2.0, 10.25, 9.125, 1.5, 9.1]]


def annotation(number: int, image: int, **more: Any) -> dict[str, Any]:
    return {
        "segmentation": POLYGON,
        "area": 62.1,
        "iscrowd": 0,
        "image_id": image,
        "bbox": [1.5, 2.0, 8.75, 7.125],
        "category_id": 3,
        "id": number,
    } | more


def image(number: int, name: str, **more: Any) -> dict[str, Any]:
    return {"file_name": name, "height": SHAPE[0], "width": SHAPE[1], "id": number} | more


def dataset(
    images: list[Any], annotations: list[Any], categories: Any = CATEGORIES, **more: Any
) -> str:
    said = {"info": {"year": 2017}, "licenses": [], "images": images, "annotations": annotations}
    return json.dumps(said | {"categories": categories} | more)


def one_image(root: Path, *annotations: Any, **more: Any) -> Tree:
    """A dataset of an image that is good, and of one with these annotations."""
    put(root, "train2017/1.png", photo(SHAPE))
    put(root, "train2017/2.png", photo(SHAPE))
    images = [image(1, "1.png"), image(2, "2.png", **more)]
    text = dataset(images, [annotation(50, 1), *annotations])
    put(root, "annotations/instances_train2017.json", text)
    return open_tree(str(root))


def read_all(tree: Tree) -> list[Record]:
    return [COCO_INSTANCES.read(tree, sample) for sample in COCO_INSTANCES.list(tree, ())]


def judge(path: Path) -> COCO:
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(path))


def rewrite_with_facts(root: Path, target: Path) -> list[dict[str, int]]:
    tree = open_tree(str(root))
    records, sink = read_all(tree), open_sink(str(target))
    (space,) = COCO_INSTANCES.label_spaces(tree)
    written = [COCO_INSTANCES.write(sink, r, space) for r in records]
    facts = json.loads(json.dumps({"coco-instances": COCO_INSTANCES.facts(tree)}))
    COCO_INSTANCES.finish(sink, written, space, facts)
    return [w.loss for w in written]
