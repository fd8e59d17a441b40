"""The images of each confusion: the same as by brute force, whatever the parts and their order."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.metrics.confused import Confused
from pipeline.metrics.pairing import Pair
from pipeline.tables.rows import RowKey


def pair(number):
    key = RowKey(f"image {number:03d}", "toy", number)
    return Pair(key, key, "val")


def brute(matrices, each, most):
    """Return (truth, predicted, pixels, image) from matrices [n, C, C] by sorting everything."""
    entries = [
        (int(matrices[n, i, j]), i, j, n)
        for n, i, j in zip(*np.nonzero(matrices), strict=True)
        if i != j
    ]
    entries.sort(key=lambda e: (-e[0], *e[1:]))
    taken, kept = {}, []
    for pixels, i, j, n in entries:
        taken[i, j] = taken.get((i, j), 0) + 1
        if taken[i, j] <= each:
            kept.append((int(i), int(j), pixels, pair(int(n))))
    return kept[:most]


def part_of(matrices, numbers, each, most):
    image, row, column = np.nonzero(matrices[numbers])
    found = Confused(each, most)
    counts = matrices[numbers][image, row, column]
    found.update([pair(n) for n in numbers], image, row, column, counts)
    return found


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.sampled_from([1, 5, 2048]))
def test_parts_make_the_whole_in_any_order(seed, each, most):
    rng = np.random.default_rng(seed)
    matrices = rng.integers(0, 6, (12, 4, 4)) * rng.integers(0, 2, (12, 4, 4))
    total = Confused(each, most)
    for numbers in rng.permutation(np.array_split(rng.permutation(12), 4)):
        total.merge(pickle.loads(pickle.dumps(part_of(matrices, numbers.tolist(), each, most))))
    assert [tuple(e) for e in total.entries] == brute(matrices, each, most)


def test_counts_of_one_image_and_pair_add_up():
    found = Confused()
    arrays = ([0, 0, 0], [1, 1, 1], [0, 0, 2], [4, 5, 8])
    found.update([pair(7)], *(np.array(a) for a in arrays))
    assert [(e.truth, e.predicted, e.pixels) for e in found.entries] == [(1, 0, 9), (1, 2, 8)]
    assert [e.pixels for e in found.of(1, 2)] == [8]


@pytest.mark.parametrize(("row", "column"), [(-1, 0), (0, -1), (2, 2)])
def test_void_no_label_and_right_pixels_are_no_confusion(row, column):
    found = Confused()
    found.update([pair(1)], np.array([0]), np.array([row]), np.array([column]), np.array([9]))
    assert found.entries == []
