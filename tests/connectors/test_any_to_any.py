"""Every format into every other: nothing is lost but what the loss report says, pixel for pixel.

What goes in is read from trees that the conformance tests write with Pillow and the standard
library; what should come out is computed here, from the class tables, not by the code under test.
"""

from __future__ import annotations

import io
import json
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from connectors import CONNECTORS, connector
from pipeline.errors import RemapError
from pipeline.files import open_tree
from pipeline.label_space import find_remap, label_space
from tests.jobs.calls import call

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from pipeline.label_space import LabelSpace, Remap
    from pipeline.record import Instance, Record

MAKERS = {
    "ade20k": "test_ade20k:TestAde20k",
    "ade20k-full": "test_ade20k_full:TestAde20kFull",
    "camvid": "test_camvid:TestCamVid",
    "camvid-11": "test_camvid:TestCamVid11",
    "cityscapes": "test_cityscapes:TestCityscapes",
    "coco-instances": "test_coco_instances:TestCocoInstances",
    "coco-panoptic": "test_coco_panoptic:TestCocoPanoptic",
    "coco-stuff": "test_coco_stuff:TestMaps",
    "maskdir": "test_maskdir:TestMaskDir",
    "nyuv2": "test_nyuv2:TestNyuV2",
    "nyuv2-mat": "test_nyuv2_mat:TestNyuV2Mat",
    "sunrgbd": "test_sunrgbd:TestSunRgbd",
    "voc": "test_voc:TestVoc",
}
"""The conformance class that writes a small tree of each format."""

OWN_CLASSES = {"ade20k-full"}
"""Formats whose trees may hold classes that no table knows: converting those is refused."""

OBJECTS_ONLY = {"coco-instances"}
"""Formats without dense labels."""

FILLS_VOID = {"coco-panoptic"}
"""Formats in which masks and objects are one picture."""


def test_every_format_takes_part() -> None:
    assert set(MAKERS) == set(CONNECTORS)


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One small dataset of each format."""
    made = {}
    for name, place in MAKERS.items():
        module, _, kind = place.partition(":")
        made[name] = tmp_path_factory.mktemp(name)
        getattr(import_module(f"tests.connectors.{module}"), kind)().make_tree(made[name])
    for path in made["coco-instances"].rglob("*.json"):
        give_official_categories(path)
    return made


def give_official_categories(path: Path) -> None:
    """COCO's own 80 classes in place of those that the conformance test makes up."""
    said, official = json.loads(path.read_text()), label_space("coco-80").classes
    said["categories"] = [{"id": c.id, "name": c.name, "supercategory": ""} for c in official]
    for annotation in said.get("annotations", ()):
        annotation["category_id"] = official[annotation["category_id"] % 80].id
    path.write_text(json.dumps(said))


def ids_of(record: Record) -> NDArray[Any] | None:
    """A record's mask, read by Pillow."""
    if record.mask is None or record.mask.bytes is None:
        return None
    with Image.open(io.BytesIO(record.mask.bytes)) as image:
        return np.array(image).astype(np.int64)


def shape_of(instance: Instance, record: Record) -> NDArray[Any]:
    counts = (instance.rle or "").encode()
    size = [record.height, record.width]
    return coco_mask.decode({"size": size, "counts": counts}).astype(bool)


def painted(record: Record, remap: Remap, ground: int) -> NDArray[Any]:
    """Objects over one another, larger ones first; those of no class left out, and parts."""
    canvas = np.full((record.height, record.width), ground, np.int64)
    shapes = []
    for at, instance in enumerate(record.instances or ()):
        category = int(remap.lut[instance.category])
        whole = instance.part_of is None and instance.rle
        if whole and category != remap.target.ignore_index:
            region = shape_of(instance, record)
            shapes.append((-int(region.sum()), at, region, category))
    for _, _, region, category in sorted(shapes, key=lambda s: s[:2]):
        canvas[region] = category
    return canvas


def expected(record: Record, remap: Remap, objects_only: bool) -> NDArray[Any] | None:
    """The target's ids that a record must become; None where it has no label at all."""
    target, ids = remap.target, ids_of(record)
    ground = target.by_name.get("background")
    if ids is None or (objects_only and record.instances is not None):
        if record.instances is None or not (any(i.rle for i in record.instances) or ground):
            return None
        return painted(record, remap, ground.id if ground else target.ignore_index)
    return remap.lut[ids].astype(np.int64)


def filled(want: NDArray[Any], record: Record, remap: Remap) -> NDArray[Any]:
    """Give void pixels of a mask the objects that lie there, as a panoptic picture shows them."""
    void = remap.target.ignore_index
    things = [c.id for c in remap.target.classes if c.isthing]
    objects = painted(record, remap, void)
    return np.where((want == void) & np.isin(objects, things), objects, want)


def counts_of(ids: NDArray[Any]) -> dict[int, int]:
    values, counts = np.unique(ids, return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


def without_ground(counts: dict[int, int], space: LabelSpace) -> dict[int, int]:
    """Leave out what objects don't cover."""
    ground = space.by_name.get("background")
    none = {space.ignore_index, *(c.id for c in space.classes if c.void)}
    return {i: n for i, n in counts.items() if i not in none and (not ground or i != ground.id)}


def read_all(name: str, root: Path) -> dict[str, Record]:
    tree = open_tree(str(root))
    reader = connector(name)
    spaces = {space.name for space in reader.label_spaces(tree)}
    records = [reader.read(tree, sample) for sample in reader.list(tree, ())]
    assert {r.label_space for r in records} <= spaces
    return {f"{r.split}/{r.image_id}": r for r in records}


class Account:
    """Pixels by class: those that should come out, and those that did."""

    def __init__(self, space: LabelSpace, target: str) -> None:
        self.space = space
        self.objects_only, self.fills_void = target in OBJECTS_ONLY, target in FILLS_VOID
        self.wanted: dict[int, int] = {}
        self.found: dict[int, int] = {}
        self.to_void: dict[str, int] = {}
        self.pixels = 0

    def enter(self, record: Record, remap: Remap) -> None:
        """Book what a record's mask loses by the class tables."""
        ids = ids_of(record)
        for value, count in counts_of(ids).items() if ids is not None else ():
            self.pixels += count
            lost = remap.lut[value] == self.space.ignore_index
            if lost and value != remap.source.ignore_index:
                name = remap.source.by_id[value].name
                self.to_void[name] = self.to_void.get(name, 0) + count

    def compare(self, record: Record, got: Record, remap: Remap) -> None:
        """Compare what a record must become with what it became, pixel for pixel."""
        want = expected(record, remap, self.objects_only)
        if want is None:
            return
        if self.fills_void and record.instances is not None:
            want = filled(want, record, remap)
        if self.objects_only:
            have = painted(got, find_remap(self.space, self.space), -1)
            ground = without_ground(counts_of(want), self.space)
            want = np.where(np.isin(want, list(ground)), want, -1)
        else:
            read = ids_of(got)
            if read is None:  # nothing is left of its objects
                read = np.full_like(want, self.space.ignore_index)
            have = read
        np.testing.assert_array_equal(have, want, record.image_id)
        for total, ids in ((self.wanted, want), (self.found, have)):
            for value, count in counts_of(ids).items():
                total[value] = total.get(value, 0) + count


def refused(words: list[Any], spaces: list[LabelSpace], native: str | None, capsys: Any) -> bool:
    """Tell whether classes that no table knows are refused, before anything is written."""
    try:
        for one in spaces:
            find_remap(one, label_space(native or "unified"))
    except RemapError:
        _, said = call(capsys, *words, code=1)
        assert "no remap" in said
        assert not words[2].exists() or not any(words[2].rglob("*.png"))
        return True
    return False


@pytest.mark.parametrize("target", sorted(MAKERS))
@pytest.mark.parametrize("source", sorted(set(MAKERS) - {"maskdir"}))
def test_pixels_in_are_pixels_out_and_loss(
    source: str,
    target: str,
    sources: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    spaces = {s.name: s for s in connector(source).label_spaces(open_tree(str(sources[source])))}
    words = ["convert", sources[source], out, "--from", source, "--to", target, "--runner", "local"]
    native = connector(target).native
    if source in OWN_CLASSES and native and refused(words, [*spaces.values()], native, capsys):
        return
    summary, _ = call(capsys, *words)
    before, after = read_all(source, sources[source]), read_all(target, out)
    assert summary["inputs"] == summary["done"] == len(before) == len(after)
    assert summary["failed"] == 0
    ids = sorted(r.image_id for r in before.values())
    assert sorted(r.image_id for r in after.values()) == ids

    written = {s.name: s for s in connector(target).label_spaces(open_tree(str(out)))}
    account = Account(written[summary["label_space"]], target)
    by_id = {r.image_id: r for r in after.values()}
    for record in before.values():
        remap = find_remap(spaces[record.label_space], account.space)
        account.enter(record, remap)
        account.compare(record, by_id[record.image_id], remap)
    assert account.found == account.wanted
    assert account.wanted, "nothing was compared"
    assert summary["loss"]["pixels"] == account.pixels
    assert summary["loss"]["to_void"] == account.to_void
