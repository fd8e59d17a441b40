"""The unified taxonomy is whole: each class of each built-in space leads somewhere or says why."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.label_space import LABEL_SPACES, find_remap, label_space
from pipeline.labels.label_tables import rows, table

UNIFIED = label_space("unified")
SPACES = [name for name in LABEL_SPACES if name != "unified"]
EXPECTED = {
    "voc-21", "coco-80", "coco-panoptic-133", "coco-stuff", "cityscapes-34", "cityscapes-19",
    "camvid-32", "camvid-11", "ade20k-150", "nyu-894", "nyu-40", "nyu-13", "sunrgbd-37",
}  # fmt: skip
DIRECT = [name for name in SPACES if name != "cityscapes-19"]
"""Spaces with a table of their own; cityscapes-19 goes by cityscapes-34, class for class."""
LOST = {
    "ade20k-150": 9, "camvid-11": 0, "camvid-32": 1, "cityscapes-19": 0, "cityscapes-34": 0,
    "coco-80": 0, "coco-panoptic-133": 0, "coco-stuff": 7, "nyu-13": 2, "nyu-40": 3,
    "nyu-894": 801, "sunrgbd-37": 0, "voc-21": 1,
}  # fmt: skip
"""Classes that are trained in their own space and void in the unified one."""


def cells(name: str) -> list[list[str]]:
    return list(rows(name))


def test_every_space_of_the_formats_is_there():
    assert set(SPACES) >= EXPECTED


def test_unified_fits_eight_bits_and_its_colours_tell_classes_apart():
    assert UNIFIED.dtype is np.uint8
    assert UNIFIED.ignore_index == 255
    assert UNIFIED.train_ids == tuple(range(194))
    assert len({c.colour for c in UNIFIED.classes}) == len(UNIFIED.classes)


@pytest.mark.parametrize("name", DIRECT)
def test_the_table_to_unified_has_each_class_once_and_explains_void(name):
    lines = cells(f"{name}_to_unified")
    assert {len(line) for line in lines} == {3}
    assert sorted(line[0] for line in lines) == sorted(label_space(name).by_name)
    for source, target, why in lines:
        if target:
            assert target in UNIFIED.by_name, (source, target)
            assert not UNIFIED.by_name[target].void, (source, target)
        else:
            assert why.strip(), f"{name}: {source} is void, and the note does not say why"


def test_cityscapes_19_is_cityscapes_34_class_for_class():
    onward = table("cityscapes-34", "unified")
    assert set(label_space("cityscapes-19").by_name) - {"unlabeled", "void"} <= set(onward)


@pytest.mark.parametrize("name", SPACES)
def test_the_table_from_unified_leads_to_classes_that_exist(name):
    try:
        lines = cells(f"unified_to_{name}")
    except FileNotFoundError:
        assert name in {"cityscapes-19", "nyu-13", "nyu-894"}, "only these go by another table"
        return
    sources = [line[0] for line in lines]
    assert len(set(sources)) == len(sources)
    for source, target, _ in lines:
        assert source in UNIFIED.by_name, source
        assert not target or target in label_space(name).by_name, (source, target)


@pytest.mark.parametrize("name", SPACES)
def test_every_space_is_reached_both_ways_and_void_stays_void(name):
    space = label_space(name)
    there, back = find_remap(space, UNIFIED), find_remap(UNIFIED, space)
    lost = [i for i in space.train_ids if there.lut[i] == 255]
    assert len(lost) == LOST.get(name, len(lost)), [space.by_id[i].name for i in lost]
    assert int(there.lut[space.ignore_index]) == 255
    assert int(back.lut[255]) == space.ignore_index
    reached = {int(v) for v in back.lut[list(UNIFIED.train_ids)]} - {space.ignore_index}
    assert reached <= set(space.ids)
    assert len(reached) > 4


@pytest.mark.parametrize("name", SPACES)
def test_background_and_void_classes_are_no_class_of_unified(name):
    space = label_space(name)
    lut = find_remap(space, UNIFIED).lut
    for c in space.classes:
        if c.name == "background" or c.id == space.ignore_index:
            assert int(lut[c.id]) == 255, c.name
