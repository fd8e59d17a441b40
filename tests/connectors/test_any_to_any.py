"""Every format into every other: nothing is lost but what the loss report says, pixel for pixel.

What goes in is what the conformance tests put into the trees that they write with Pillow and the
standard library; what should come out is computed here from that and the remaps, whose tables
`tests/pipeline/test_unified.py` and `test_label_space.py` hold against the files. What came out is
read by the connectors, which the formats' own tests hold against official tools.
"""

from __future__ import annotations

import io
import json
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from connectors import CONNECTORS, connector
from pipeline.errors import RemapError
from pipeline.files import open_tree
from pipeline.label_space import find_remap, label_space
from tests.connectors.makers import makers
from tests.jobs.calls import call

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from pipeline.label_space import LabelSpace, Remap
    from pipeline.record import Instance, Record
    from tests.connectors.conformance import Made


def test_every_format_takes_part() -> None:
    assert set(makers()) == set(CONNECTORS)


@pytest.fixture(scope="session")
def source_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Made]]:
    """A small dataset of a format, made once, and what was put into it."""

    @cache
    def make(name: str) -> tuple[Path, Made]:
        root = tmp_path_factory.mktemp(name)
        made = makers()[name]().make_tree(root)
        if name == "coco-instances":
            for path in root.rglob("*.json"):
                give_official_categories(path)
        return root, made

    return make


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
    region: NDArray[Any] = coco_mask.decode({"size": size, "counts": counts}).astype(bool)
    return region


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


def expected(
    record: Record, ids: NDArray[Any] | None, remap: Remap, objects_only: bool
) -> NDArray[Any] | None:
    """The target's ids that a record must become; None where it has no label at all."""
    target = remap.target
    ground = target.by_name.get("background")
    if ids is None or (objects_only and record.instances is not None):
        if record.instances is None or not (any(i.rle for i in record.instances) or ground):
            return None
        return painted(record, remap, ground.id if ground else target.ignore_index)
    return np.take(remap.lut, ids).astype(np.int64)


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
        self.objects_only = connector(target).objects_only
        self.fills_void, self.exact = makers()[target].fills_void, makers()[target].exact
        self.changed = 0
        self.wanted: dict[int, int] = {}
        self.found: dict[int, int] = {}
        self.to_void: dict[str, int] = {}
        self.pixels = 0

    def enter(self, ids: NDArray[Any] | None, remap: Remap) -> None:
        """Book what a mask loses by the class tables."""
        for value, count in counts_of(ids).items() if ids is not None else ():
            self.pixels += count
            lost = remap.lut[value] == self.space.ignore_index
            if lost and value != remap.source.ignore_index:
                name = remap.source.by_id[value].name
                self.to_void[name] = self.to_void.get(name, 0) + count

    def compare(self, record: Record, ids: NDArray[Any] | None, got: Record, remap: Remap) -> None:
        """Compare what a record must become with what it became, pixel for pixel."""
        want = expected(record, ids, remap, self.objects_only)
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
        if self.exact:
            np.testing.assert_array_equal(have, want, record.image_id)
        self.changed += int((have != want).sum())
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


@pytest.mark.parametrize("target", sorted(makers()))
@pytest.mark.parametrize("source", sorted(set(makers()) - {"maskdir"}))
def test_pixels_in_are_pixels_out_and_loss(
    source: str,
    target: str,
    source_of: Callable[[str], tuple[Path, Made]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, (root, made) = tmp_path / "out", source_of(source)
    spaces = {s.name: s for s in connector(source).label_spaces(open_tree(str(root)))}
    words = ["convert", root, out, "--from", source, "--to", target, "--runner", "local"]
    native = connector(target).native
    if (
        makers()[source].own_classes
        and native
        and refused(words, [*spaces.values()], native, capsys)
    ):
        return
    summary, _ = call(capsys, *words)
    before, after = read_all(source, root), read_all(target, out)
    assert summary["inputs"] == summary["done"] == len(before) == len(after)
    assert summary["failed"] == 0
    ids = sorted(r.image_id for r in before.values())
    assert sorted(r.image_id for r in after.values()) == ids

    written = {s.name: s for s in connector(target).label_spaces(open_tree(str(out)))}
    account = Account(written[summary["label_space"]], target)
    by_id = {r.image_id: r for r in after.values()}
    for record in before.values():
        remap = find_remap(spaces[record.label_space], account.space)
        put = made.ids[f"{record.split}/{record.image_id}"]
        mask = put.astype(np.int64) if put.size else None
        account.enter(mask, remap)
        account.compare(record, mask, by_id[record.image_id], remap)
    if account.exact:
        assert account.found == account.wanted
    told = summary["loss"]["attributes"].get("pixels_changed_by_polygons", 0)
    assert account.changed == told
    assert account.wanted, "nothing was compared"
    assert summary["loss"]["pixels"] == account.pixels
    assert summary["loss"]["to_void"] == account.to_void
