"""What COCO's three formats have in common: classes, supercategories, numbers of images."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Barrier
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools.coco import COCO

from connectors import coco_categories, coco_json, connector
from connectors.coco_categories import key_of, space_by
from connectors.coco_images import ImageIds
from pipeline.files import open_tree
from pipeline.label_space import label_space
from pipeline.labels.relabel import Relabeller
from tests.connectors.coco_tree import SHAPE, image
from tests.connectors.trees import make_record, photo, put, rewrite

if TYPE_CHECKING:
    from pathlib import Path

KINDS = {"coco-instances": "instances", "coco-panoptic": "panoptic", "coco-stuff": "stuff"}
NATIVE = {name: str(connector(name).native) for name in KINDS}
CUSTOM = [
    {"id": 3, "name": "tile", "color": [1, 2]},
    {"id": 7, "name": "roof", "color": [1, 2, 256]},
    {"id": 9, "name": "door", "color": "red", "supercategory": "house"},
]
"""Categories of a user's own; none of the colours is one."""


def put_json(root: Path, kind: str, images: int = 0, *, last: bool = True) -> Path:
    said: dict[str, Any] = {"info": {}}
    if not last:
        said["categories"] = CUSTOM
    said["images"] = [{"id": n, "file_name": f"{n}.png"} for n in range(1, images + 1)]
    said["annotations"] = [{"id": 1, "image_id": n, "segments_info": []} for n in range(1, images)]
    if last:
        said["categories"] = CUSTOM
    put(root, f"annotations/{kind}_train2017.json", json.dumps(said))
    put(root, "train2017/1.png", photo(SHAPE))
    (root / f"annotations/{kind}_train2017").mkdir(exist_ok=True)
    return root


def test_the_same_categories_are_one_space(tmp_path: Path) -> None:
    found = set()
    for name, kind in KINDS.items():
        root = put_json(tmp_path / kind, kind)
        (space,) = connector(name).label_spaces(open_tree(str(root)))
        found.add(space)
    (space,) = found
    assert space.name.startswith("coco-")
    assert space.ids == (3, 7, 9)


def test_supercategories_of_records_of_voc(tmp_path: Path) -> None:
    """The official 80 have them whatever wrote the file."""
    voc = label_space("voc-21")
    cat = voc.by_name["cat"].id
    record = make_record(np.full((5, 6), cat, np.uint8), voc, "a", "val")
    for name, kind in KINDS.items():
        target = label_space(NATIVE[name])
        moved, _ = Relabeller.to(target, [voc])(record)
        rewrite(connector(name), [moved], tmp_path / kind, target)
        said = json.loads((tmp_path / kind / f"annotations/{kind}_val2017.json").read_text())
        groups = {c["name"]: c["supercategory"] for c in said["categories"]}
        if name != "coco-stuff":
            assert groups["cat"] == "animal"
        assert all(groups.values())
    truth = COCO(str(tmp_path / "instances/annotations/instances_val2017.json"))
    assert {c["name"] for c in truth.loadCats(truth.getCatIds(supNms=["animal"]))} >= {"cat", "cow"}


@pytest.mark.parametrize("source", sorted(KINDS))
@pytest.mark.parametrize("target", sorted(KINDS))
def test_images_keep_number_and_licence(source: str, target: str, tmp_path: Path) -> None:
    space = label_space(NATIVE[source])
    ids = np.full(SHAPE, space.train_ids[-1], np.uint8)
    said = {"image": image(77, "a.png", license=3)}
    if source != "coco-instances":
        said["image"] = {"id": 77, "license": 3}
    record = make_record(ids, space, "a", "train")
    record = replace(record, dataset=source, extra=json.dumps(said))
    rewrite(connector(target), [record], tmp_path, space)
    (file,) = (tmp_path / "annotations").glob("*.json")
    (entry,) = json.loads(file.read_text())["images"]
    assert (entry["id"], entry["license"], entry["file_name"]) == (77, 3, "a.png")


def test_a_worker_reads_no_images_for_the_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind, last in (("panoptic", True), ("stuff", False)):
        root = put_json(tmp_path / kind, kind, 30_000, last=last)
        tree = open_tree(str(root))
        name = f"annotations/{kind}_train2017.json"
        size = (root / name).stat().st_size
        read = list[int]()
        opened = type(tree).open

        def spied(self: Any, name: str, opened: Any = opened, read: Any = read) -> Any:
            file = opened(self, name)
            inner = file.read

            class Spy:
                def __getattr__(self, name: str) -> Any:
                    return getattr(file, name)

                def read(self, count: int = -1) -> bytes:
                    data = inner(count)
                    read.append(len(data))
                    return bytes(data)

            return Spy()

        monkeypatch.setattr(type(tree), "open", spied)
        key = ["json", name, tree.entry(name).fingerprint]
        assert space_by(tree, key, "coco-stuff").ids == (3, 7, 9)
        assert 0 < sum(read) <= (1 << 20) * (1 if last else 2) + 4096 < size
        monkeypatch.undo()


def test_cold_threads_read_the_classes_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = open_tree(str(put_json(tmp_path, "stuff", 5)))
    calls, gate = [], Barrier(8)
    real = coco_json.ends_of

    def counted(*args: Any) -> Any:
        calls.append(args)
        return real(*args)

    monkeypatch.setattr(coco_categories, "ends_of", counted)

    def work(_: int) -> str:
        gate.wait(10)
        return space_by(tree, key_of(tree, "", NAME, "coco-stuff"), "coco-stuff").name

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(work, range(8)))) == 1
    assert len(calls) == 1


NAME = "annotations/stuff_train2017.json"


EDGES = [sign * (1 << 31) + near for sign in (-1, 1) for near in (-1, 0, 1)] + [900100259990]


@given(st.lists(st.none() | st.integers(-3, 9) | st.sampled_from(EDGES), max_size=14))
def test_numbers(claims: list[int | None]) -> None:
    """Each has what it claims unless another came first; no two are equal."""
    ids = ImageIds()
    for claim in claims:
        ids.add(claim)
    given = [*map(ids.assign(), claims)]
    assert len(set(given)) == len(given) == len(claims)
    first = {claim: at for at, claim in reversed([*enumerate(claims)]) if claim is not None}
    assert all(given[at] == claim for claim, at in first.items())
    claimed = [c for c in claims if c is not None]
    assert ids.changed() == len(claimed) - len(set(claimed))
    assert [*map(ids.assign(), claims)] == given
