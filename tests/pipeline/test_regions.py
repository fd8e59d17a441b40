"""Regions of a map of numbers, against one comparison for each number."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pipeline import masks
from pipeline.regions import Regions

MAPS = hnp.arrays(
    np.uint32,
    hnp.array_shapes(min_dims=2, max_dims=2, max_side=9),
    elements=st.sampled_from([0, 1, 2, 70_000, (1 << 24) - 1]),
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


@given(MAPS)
def test_painting_the_numbers_gives_the_map(numbers: np.ndarray) -> None:
    regions = Regions.of(numbers)
    np.testing.assert_array_equal(regions.paint(regions.numbers), numbers)
