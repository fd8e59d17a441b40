"""Regions of a map of numbers, against one comparison for each number."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as coco

from pipeline import masks
from pipeline.label_space import label_space
from pipeline.labels.derive import with_instances
from pipeline.labels.regions import Regions
from tests.connectors.trees import make_record

if TYPE_CHECKING:
    import pytest

VOC = label_space("voc-21")
SHAPES = hnp.array_shapes(min_dims=2, max_dims=2, max_side=9)
VALUES = {np.uint8: [0, 1, 255], np.uint16: [0, 7, 65535], np.uint32: [0, 1, 70_000, (1 << 32) - 1]}
MAPS = st.one_of(
    *(
        hnp.arrays(kind, SHAPES, elements=st.sampled_from(values))
        for kind, values in (VALUES | {np.int64: [-1, 0, 1 << 40]}).items()
    )
)


@given(MAPS)
def test_regions_are_those_of_comparisons(numbers: np.ndarray) -> None:
    regions = Regions.of(numbers)
    assert regions.numbers.tolist() == np.unique(numbers).tolist()
    for place, number in enumerate(regions.numbers):
        here = numbers == number
        assert regions.areas[place] == here.sum()
        assert regions.rle(place) == masks.rle_encode(here)
        assert regions.bbox(place) == masks.rle_bbox(regions.rle(place), *numbers.shape)
    asked = [(place, 5 + place, place % 3, place % 2 == 0) for place in range(len(regions.areas))]
    for (place, *said), one in zip(asked[::-1], regions.instances(asked[::-1]), strict=True):
        here = numbers == regions.numbers[place]
        assert [one.id, one.category, one.iscrowd] == said
        assert (one.rle, one.area) == (masks.rle_encode(here), here.sum())
        assert one.bbox == masks.rle_bbox(one.rle or "", *numbers.shape)
    assert regions.instances([]) == ()


def test_objects_of_many_runs_are_coded_as_small_ones_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against pycocotools: lots of one object and of several, and runs of many letters."""
    chance = np.random.default_rng(0)
    numbers = chance.choice([0, 1, 2, 3, 9], (300, 200), p=[0.9, 0.04, 0.03, 0.02, 0.01])
    numbers[:, 50:150] = 7
    regions = Regions.of(numbers)
    for most in (1, 700, 1 << 15):
        monkeypatch.setattr("pipeline.instances._LOT_RUNS", most)
        for place, one in enumerate(regions.instances([(p, p, p, False) for p in range(6)])):
            here = np.asfortranarray(numbers == regions.numbers[place], np.uint8)
            assert one.rle == coco.encode(here)["counts"].decode()


@given(MAPS)
def test_painting_the_numbers_gives_the_map(numbers: np.ndarray) -> None:
    regions = Regions.of(numbers)
    np.testing.assert_array_equal(regions.paint(regions.numbers), numbers)


@given(hnp.arrays(np.uint8, SHAPES, elements=st.sampled_from([0, 3, 8, 15, 255])))
def test_objects_of_a_mask_are_its_classes(ids: np.ndarray) -> None:
    """Against one comparison for each class; background and void make none."""
    record = make_record(ids, VOC, "a", "train")
    found = with_instances(record, VOC).instances or ()
    classes = [c for c in (3, 8, 15) if (ids == c).any()]
    assert [(i.id, i.category) for i in found] == list(enumerate(classes, 1))
    for one in found:
        here = ids == one.category
        assert (one.rle, one.area) == (masks.rle_encode(here), here.sum())
        assert one.bbox == masks.rle_bbox(one.rle or "", *ids.shape)
