"""Dice and kappa against sums over single pixels, and the formulas of the matrix."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pipeline.metrics.confusion import ConfusionMatrix, Tally
from pipeline.metrics.dice_kappa import dice, further_figures, kappa, mean_dice, total_dice
from pipeline.metrics.shares import by_name

CLASSES = 4


def tally_of(matrix):
    return ConfusionMatrix(np.asarray(matrix, np.int64)).tally()


@given(arrays(np.int64, (CLASSES, CLASSES + 1), elements=st.integers(0, 6)))
def test_scores_are_those_of_the_single_pixels(matrix):
    truth, predicted = (np.repeat(i.ravel(), matrix.ravel()) for i in np.indices(matrix.shape))
    tally = tally_of(matrix)
    each = []
    for c in range(CLASSES):
        a, b = truth == c, predicted == c
        each.append(2 * (a & b).sum() / (a.sum() + b.sum()) if a.any() or b.any() else math.nan)
    np.testing.assert_allclose(dice(tally), each, rtol=1e-14)
    held = [value for value in each if not math.isnan(value)]
    assert mean_dice(tally) == pytest.approx(np.mean(held) if held else math.nan, nan_ok=True)
    # F1 of precision and recall is the same number.
    p, r = tally.precision, tally.recall
    known = ~np.isnan(p) & ~np.isnan(r) & (tally.intersection > 0)
    p, r = p[known], r[known]
    np.testing.assert_allclose(dice(tally)[known], 2 * p * r / (p + r), rtol=1e-14)
    agreed = np.mean(truth == predicted) if len(truth) else math.nan
    chance = (
        sum(np.mean(truth == c) * np.mean(predicted == c) for c in range(CLASSES))
        if (len(truth))
        else math.nan
    )
    wanted = (agreed - chance) / (1 - chance) if len(truth) and chance < 1 - 1e-12 else math.nan
    assert kappa(tally) == pytest.approx(wanted, abs=1e-12, nan_ok=True)


def test_kappa_of_cohens_kind_of_table():
    """50 items, two readers: 20 yes/yes, 5 yes/no, 10 no/yes, 15 no/no gives 0.4."""
    assert kappa(tally_of([[20, 5, 0], [10, 15, 0]])) == pytest.approx(0.4)


def test_kappa_keeps_its_digits_for_many_pixels():
    few = kappa(tally_of([[20, 5, 0], [10, 15, 0]]))
    scale = 10**16
    assert kappa(tally_of(np.array([[20, 5, 0], [10, 15, 0]]) * scale)) == few


def test_total_dice_is_the_accuracy_where_all_is_labelled():
    full = tally_of([[3, 1, 0], [2, 4, 0]])
    assert total_dice(full) == pytest.approx(full.pixel_accuracy)
    gaps = tally_of([[3, 0, 1], [0, 4, 2]])
    assert total_dice(gaps) == pytest.approx(14 / 17)
    assert gaps.pixel_accuracy == 0.7


def test_scores_of_nothing_are_none():
    empty = further_figures(Tally(*np.zeros((3, 2), np.int64)))
    assert empty == {"dice": None, "mean_dice": None, "kappa": None}
    assert further_figures(tally_of([[7, 0, 0], [0, 0, 0]]))["kappa"] is None


def test_figures_by_name_keep_whole_numbers_whole():
    rows = by_name(["a", "b"], share=np.array([0.5, math.nan]), pixels=np.array([3, 0]))
    assert rows == {"a": {"share": 0.5, "pixels": 3}, "b": {"share": None, "pixels": 0}}
    assert isinstance(rows["a"]["pixels"], int)
