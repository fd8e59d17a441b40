"""Small panoptic datasets, and the rules of panopticapi that judge them, in NumPy alone."""

from __future__ import annotations

import io
import json
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from connectors.coco_panoptic import COCO_PANOPTIC
from pipeline.files import open_tree
from pipeline.label_space import label_space
from tests.connectors.trees import photo, put, rewrite

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from pipeline.record import Record

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


def judge(root: Path, *, exact: bool = True) -> list[dict[str, Any]]:
    """Check a dataset by panopticapi's rules; return its annotations.

    `exact`: boxes and areas are those of the pixels, and a stuff class has one segment an image.
    """
    judged = []
    for file in sorted((root / "annotations").glob("panoptic_*.json")):
        said = json.loads(file.read_text("utf-8"))
        categories = {c["id"]: c for c in said["categories"]}
        images = {image["id"]: image for image in said["images"]}
        assert len(images) == len(said["images"])
        for annotation in said["annotations"]:
            ids = rgb2id(file.with_suffix("") / annotation["file_name"])
            image = images[annotation["image_id"]]
            folder = root / file.stem.removeprefix("panoptic_")
            assert (folder / image["file_name"]).is_file()
            assert ids.shape == (image["height"], image["width"])
            infos = annotation["segments_info"]
            numbers = [info["id"] for info in infos]
            assert len(set(numbers)) == len(numbers)
            assert set(np.unique(ids).tolist()) - {0} == set(numbers)
            assert all(info["iscrowd"] in (0, 1) for info in infos)
            kinds = Counter(info["category_id"] for info in infos)
            assert kinds.keys() <= categories.keys()
            if exact:
                drawn = segments(ids, {info["id"]: info["category_id"] for info in infos})
                for info, expected in zip(infos, drawn, strict=True):
                    assert info == expected | {"iscrowd": info["iscrowd"]}
                    assert all(type(v) is int for v in (*info["bbox"], info["area"]))
                assert all(kinds[c] == 1 for c in kinds if not categories[c]["isthing"])
            judged.append(annotation)
    return judged


def drawn_classes(root: Path, annotation: dict[str, Any], tag: str, void: int) -> NDArray[np.int64]:
    """Return the categories of the pixels."""
    ids = rgb2id(root / f"annotations/panoptic_{tag}" / annotation["file_name"])
    found = np.full(ids.shape, void)
    for info in annotation["segments_info"]:
        found[ids == info["id"]] = info["category_id"]
    return found


def read_all(root: Path) -> list[Record]:
    tree = open_tree(str(root))
    return [COCO_PANOPTIC.read(tree, sample) for sample in COCO_PANOPTIC.list(tree, ())]


def convert(source: Path, target: Path) -> list[Record]:
    """Read a dataset and write it, with what it says of itself; nothing may be lost."""
    tree = open_tree(str(source))
    (space,) = COCO_PANOPTIC.label_spaces(tree)
    records = read_all(source)
    written = rewrite(COCO_PANOPTIC, records, target, space, facts=COCO_PANOPTIC.facts(tree))
    assert all(w.loss == {} for w in written)
    return records
