"""Labels in other classes than were read: no file says what its record does not say any more.

A record keeps in `extra` what its format has no column for, some of it labels as they were read:
polygons, raw names, segments. Here every format loses half of its classes and is written again.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectors import connector
from pipeline.files import open_tree
from pipeline.label_space import LabelMap, LabelSpace, Remap
from pipeline.labels.relabel import Relabeller
from pipeline.record import File, Record
from tests.connectors import test_coco_stuff
from tests.connectors.makers import makers
from tests.connectors.test_any_to_any import ids_of
from tests.connectors.trees import rewrite

if TYPE_CHECKING:
    from pathlib import Path

    from connectors.base import Connector

OTHERS = {"coco-stuff": test_coco_stuff.TestJson}
"""Trees that hold more of what is kept than a format's first one."""
STATED = {
    "ade20k-full": {"annotations"},
    "cityscapes": {"polygons"},
    "coco-panoptic": {"segment_ids"},
    "coco-stuff": {"annotations"},
    "sunrgbd": {"raw_labels", "polygons"},
}
"""What some formats keep of labels as they were read, by the name of its loss."""


def tree_of(name: str, root: Path) -> None:
    root.mkdir(exist_ok=True)
    OTHERS.get(name, makers()[name])().make_tree(root)


def read_all(reader: Connector, root: Path) -> tuple[list[Record], LabelSpace]:
    tree = open_tree(str(root))
    (space,) = reader.label_spaces(tree)
    return [reader.read(tree, sample) for sample in reader.list(tree, ())], space


def halved(record: Record, space: LabelSpace, present: list[int]) -> Record:
    """Take every second class that occurs out of a record, through a space that lacks it."""
    gone = {i for i in present[::2] if i != space.ignore_index}
    classes = tuple(c for c in space.classes if c.id not in gone)
    half = replace(space, name="half", classes=classes)
    table: LabelMap = np.arange(65536 if space.dtype is np.uint16 else 256).astype(space.dtype)
    table[list(gone)] = space.ignore_index
    there, back = Remap(space, half, table), Remap(half, space, table)
    moved, _ = Relabeller(half, {space.name: there})(record)
    moved, _ = Relabeller(space, {"half": back})(moved)
    return moved


@pytest.mark.parametrize("name", sorted(makers()))
def test_files_say_what_the_records_say(name: str, tmp_path: Path) -> None:
    reader = connector(name)
    tree_of(name, tmp_path / "one")
    records, space = read_all(reader, tmp_path / "one")
    held = {c.id for r in records for c in r.classes or ()}
    held |= {i.category for r in records for i in r.instances or ()}
    moved = [halved(record, space, sorted(held)) for record in records]
    written = rewrite(reader, moved, tmp_path / "two", space)
    lost = {key for w in written for key in w.loss}
    assert STATED.get(name, set()) <= lost
    back, _ = read_all(reader, tmp_path / "two")
    found = {(r.split, r.image_id): r for r in back}
    assert len(found) == len(moved)
    for record in moved:
        other = found[record.split, record.image_id]
        assert not other.relabelled
        if (ids := ids_of(record)) is not None:
            read = ids_of(other)
            if read is None:  # a file of objects says nothing where none is left
                read = np.full_like(ids, space.ignore_index)
            np.testing.assert_array_equal(read, ids)
        allowed = {i.category for i in record.instances or ()} | {
            c.id for c in record.classes or ()
        }
        if record.mask is None and record.instances is None:
            continue
        assert {i.category for i in other.instances or ()} <= allowed


@pytest.mark.parametrize("name", sorted(makers()))
def test_the_same_classes_leave_no_mark(name: str, tmp_path: Path) -> None:
    reader = connector(name)
    tree_of(name, tmp_path)
    records, space = read_all(reader, tmp_path)
    relabel = Relabeller.to(space, [space])
    assert [relabel(r)[0] for r in records] == records


EXTRA = st.none() | st.dictionaries(st.text(), st.integers() | st.text(), max_size=3)


@given(EXTRA)
def test_the_mark(extra: dict[str, int | str] | None) -> None:
    text = None if extra is None else json.dumps(extra)
    record = Record("a", "voc", "train", File(), "", 1, 1, "voc-21", extra=text)
    marked = record.as_relabelled()
    assert marked.relabelled == bool(extra)
    assert marked.as_relabelled() == marked
    assert record.own("voc") == record.own_labels("camvid", "voc") == marked.own("voc")
    assert marked.own("voc") == (extra or {})
    assert marked.own("camvid") == marked.own_labels("voc" if extra else "camvid") == {}


def test_the_mark_leaves_the_text_as_it_is() -> None:
    record = Record("a", "coco-instances", "val", File(), "", 1, 1, "coco-80")
    marked = replace(record, extra='{"coco": {"x": 1.50}}').as_relabelled()
    assert marked.extra == '{"relabelled": true, "coco": {"x": 1.50}}'
