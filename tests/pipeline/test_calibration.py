"""Calibration against sums over single pixels, and its own algebra."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pipeline import masks
from pipeline.errors import CorruptMask, InputError, SizeMismatch, UsageError
from pipeline.label_space import LabelClass, LabelSpace
from pipeline.metrics.calibration import Calibration, Reliability, aurc, risk_coverage
from pipeline.metrics.confusion import class_index
from pipeline.metrics.measure import LabelPair

CLASSES = 3


def space(classes=CLASSES):
    listed = tuple(LabelClass(i, f"class {i}", (0, 0, 0)) for i in range(classes))
    return LabelSpace("test", listed, ignore_index=65535 if classes > 254 else 255)


def pair(truth, predicted, confidence, classes=CLASSES):
    index = class_index(range(classes), void=[space(classes).ignore_index])
    row = {"confidence": {"bytes": masks.encode(confidence), "path": None}}
    return LabelPair("one", truth, predicted, index, index, space(classes), predicted_row=row)


def images(dtype=np.uint8):
    top = int(np.iinfo(dtype).max)
    labels = st.sampled_from([*range(CLASSES), top])
    levels = st.one_of(st.integers(0, 255), st.sampled_from([0, 17, 18, 34, 51, 254, 255]))
    return st.tuples(st.integers(1, 8), st.integers(1, 8)).flatmap(
        lambda s: st.tuples(
            arrays(dtype, s, elements=labels),
            arrays(dtype, s, elements=labels),
            arrays(np.uint8, s, elements=levels),
        )
    )


def gathered(drawn, measure=None):
    gathering = (measure or Calibration()).start(space())
    rows = [gathering.update(pair(*image)) for image in drawn]
    return gathering, rows


def pixels_of(drawn):
    """Return level, right or not, and predicted class of each scored pixel."""
    parts = [np.stack([c.astype(int), t == p, p.astype(int)]) for t, p, c in drawn]
    kept = [
        part[:, (t < CLASSES) & (p < CLASSES)] for part, (t, p, _) in zip(parts, drawn, strict=True)
    ]
    return np.concatenate(kept, axis=1)


def ece_of_pixels(levels, right, bins):
    """The definition: bins (low, high] of equal width, the first with 0."""
    if not len(levels):
        return None, None
    gaps, total = [], 0.0
    for n in range(bins):
        # low < level / 255 <= high, in whole numbers.
        inside = (levels * bins > 255 * n) & (levels * bins <= 255 * (n + 1))
        inside |= (levels == 0) & (n == 0)
        if inside.any():
            gap = abs(right[inside].mean() - (levels[inside] / 255).mean())
            gaps.append(gap)
            total += gap * inside.sum()
    return total / len(levels), max(gaps)


@settings(max_examples=30, deadline=None)
@given(st.lists(images(), min_size=1, max_size=3), st.sampled_from([1, 10, 15, 16, 255]))
def test_errors_are_those_of_the_single_pixels(drawn, bins):
    gathering, rows = gathered(drawn, Calibration(bins=bins))
    figures = gathering.figures()
    levels, right, chosen = pixels_of(drawn)
    ece, mce = ece_of_pixels(levels, right, bins)
    assert figures["pixels"] == len(levels)
    assert (figures["ece"], figures["mce"]) == (pytest.approx(ece), pytest.approx(mce))
    assert sum(b["pixels"] for b in figures["bins"]) == len(levels)
    assert len(figures["bins"]) == bins
    if len(levels):
        assert figures["accuracy"] == pytest.approx(right.mean())
        assert figures["mean_confidence"] == pytest.approx((levels / 255).mean())
    for c in range(CLASSES):
        mine = chosen == c
        wanted, _ = ece_of_pixels(levels[mine], right[mine], bins)
        assert figures["classes"][f"class {c}"]["ece"] == pytest.approx(wanted)
        assert figures["classes"][f"class {c}"]["pixels"] == mine.sum()
    for image, row in zip(drawn, rows, strict=True):
        levels, right, _ = pixels_of([image])
        assert row["ece"] == pytest.approx(ece_of_pixels(levels, right, bins)[0])
        unlabelled = sum(int(((t < CLASSES) & (p >= CLASSES)).sum()) for t, p, _ in drawn)
        assert figures["unlabelled_pixels"] == unlabelled


@settings(max_examples=20, deadline=None)
@given(st.lists(images(), min_size=1, max_size=3))
def test_risk_is_the_share_of_errors_among_the_surest(drawn):
    figures = gathered(drawn)[0].figures()
    levels, right, _ = pixels_of(drawn)
    points = figures["risk_coverage"]
    assert [round(p["threshold"] * 255) for p in points] == sorted(set(levels), reverse=True)
    for point in points:
        kept = levels / 255 >= point["threshold"]
        assert point["coverage"] == pytest.approx(kept.mean())
        assert point["risk"] == pytest.approx(1 - right[kept].mean())


def mean_risk(levels, right):
    """Mean over n of the share of errors among the n surest, ties as they are expected to fall."""
    order = np.argsort(-levels, kind="stable")
    levels, wrong = levels[order], 1.0 - right[order]
    for level in set(levels.tolist()):
        wrong[levels == level] = wrong[levels == level].mean()
    return (np.cumsum(wrong) / np.arange(1, len(wrong) + 1)).mean()


@settings(max_examples=20, deadline=None)
@given(st.lists(images(), min_size=1, max_size=3))
def test_area_is_the_mean_risk_over_all_coverages(drawn):
    figures = gathered(drawn)[0].figures()
    levels, right, _ = pixels_of(drawn)
    if len(levels):
        assert figures["aurc"] == pytest.approx(mean_risk(levels, right), rel=1e-9, abs=1e-12)
    else:
        assert figures["aurc"] is None


def test_area_is_the_mean_over_random_orders_of_ties():
    rng = np.random.default_rng(1)
    levels, right = rng.integers(250, 256, 60), rng.random(60) < 0.7
    counts = np.stack(
        [np.bincount(levels[right], minlength=256), np.bincount(levels, minlength=256)]
    )
    means = []
    for _ in range(4000):
        order = np.lexsort((rng.random(60), -levels))
        means.append((np.cumsum(~right[order]) / np.arange(1, 61)).mean())
    spread = np.std(means) / math.sqrt(len(means))
    assert aurc(counts) == pytest.approx(np.mean(means), abs=5 * spread)


def test_area_keeps_its_digits_for_many_pixels():
    """10**13 pixels of three levels: against the sum in logarithms, which is exact there."""
    counts = np.zeros((2, 256), np.int64)
    counts[1, [255, 200, 100]] = 4 * 10**12, 3 * 10**12, 3 * 10**12
    counts[0, [255, 200, 100]] = 4 * 10**12, 2 * 10**12, 10**12
    first, second, last = 0.4, 0.3, 0.3
    share = [0.0, 1 / 3, 2 / 3]
    total, wrong, before = share[0] * first, 0.0, first
    for part, rate in ((second, share[1]), (last, share[2])):
        total += rate * part + (wrong - rate * before) * math.log((before + part) / before)
        wrong, before = wrong + rate * part, before + part
    assert aurc(counts) == pytest.approx(total, rel=1e-9)


def test_certain_and_right_is_perfect_and_certain_and_wrong_is_not():
    truth = np.zeros((4, 5), np.uint8)
    sure = np.full((4, 5), 255, np.uint8)
    good = gathered([(truth, truth, sure)])[0].figures()
    assert (good["ece"], good["mce"], good["aurc"], good["accuracy"]) == (0, 0, 0, 1)
    bad = gathered([(truth, truth + 1, sure)])[0].figures()
    assert (bad["ece"], bad["mce"], bad["aurc"], bad["accuracy"]) == (1, 1, 1, 0)
    assert bad["classes"]["class 0"] == {
        "pixels": 0, "ece": None, "confidence": None, "accuracy": None, "aurc": None,
    }  # fmt: skip


def test_15_bins_hold_17_levels_each():
    pixels = np.ones((2, 256), np.int64)
    assert Reliability.of(pixels, 15).pixels.tolist() == [18] + [17] * 14


def test_images_of_void_count_nothing():
    void = np.full((3, 4), 255, np.uint8)
    gathering, rows = gathered([(void, void * 0, void)])
    assert rows == [{"mean_confidence": None, "ece": None}]
    figures = gathering.figures()
    assert figures["pixels"] == figures["unlabelled_pixels"] == 0
    assert figures["ece"] is figures["mce"] is figures["aurc"] is None
    assert figures["risk_coverage"] == []


def test_16_bit_positions_count_as_8_bit_ones():
    rng = np.random.default_rng(2)
    truth, predicted = rng.integers(0, 4, (2, 30, 40)).astype(np.uint8)
    truth[truth == 3], predicted[predicted == 3] = 255, 255
    sure = rng.integers(0, 256, (30, 40)).astype(np.uint8)
    ids = np.array([5, 255, 299], np.uint16)
    wide = [
        np.where(m == 255, 65535, ids[np.minimum(m, 2)]).astype(np.uint16)
        for m in (truth, predicted)
    ]
    a, b = Calibration().start(space()), Calibration().start(space(300))
    assert a.update(pair(truth, predicted, sure)) == b.update(pair(*wide, sure, classes=300))
    np.testing.assert_array_equal(a.counts, b.counts[:, ids])
    assert a.counts.sum() == b.counts.sum()
    assert a.unlabelled == b.unlabelled > 0


@settings(max_examples=10, deadline=None)
@given(st.lists(images(), min_size=2, max_size=5), st.randoms())
def test_parts_add_up_in_any_order(drawn, order):
    whole = gathered(drawn)[0]
    parts = [pickle.loads(pickle.dumps(gathered([image])[0])) for image in drawn]
    order.shuffle(parts)
    total = pickle.loads(pickle.dumps(Calibration())).start(space())
    for part in parts:
        total.merge(part)
    assert total.figures() == whole.figures()


@pytest.mark.parametrize("row", [{}, {"confidence": None}, {"confidence": {"bytes": None}}])
def test_without_confidence_the_mend_is_told(row):
    one = pair(*np.zeros((3, 2, 2), np.uint8))
    one.predicted_row = row
    with pytest.raises(InputError, match="label with --confidence"):
        Calibration().start(space()).update(one)


def test_bad_confidence_maps_are_failures_of_their_pair():
    truth = np.zeros((4, 6), np.uint8)
    gathering = Calibration().start(space())
    with pytest.raises(SizeMismatch, match="6x5 pixels, the mask 6x4"):
        gathering.update(pair(truth, truth, np.zeros((5, 6), np.uint8)))
    with pytest.raises(CorruptMask, match="16 bits"):
        gathering.update(pair(truth, truth, np.full((4, 6), 999, np.uint16)))
    broken = pair(truth, truth, truth)
    broken.predicted_row["confidence"]["bytes"] = broken.predicted_row["confidence"]["bytes"][:30]
    with pytest.raises(CorruptMask, match="confidence"):
        gathering.update(broken)
    assert gathering.counts.sum() == gathering.unlabelled == 0


@pytest.mark.parametrize("bins", [0, -1, 256])
def test_bins_out_of_range_are_refused(bins):
    with pytest.raises(UsageError, match="1 to 255 bins"):
        Calibration(bins=bins)


def test_risk_coverage_of_nothing_is_empty():
    assert risk_coverage(np.zeros((2, 256), np.int64)) == []
    assert math.isnan(aurc(np.zeros((2, 256), np.int64)))
