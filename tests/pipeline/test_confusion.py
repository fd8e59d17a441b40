"""The confusion matrix against counting by hand, cityscapesScripts, and its own algebra."""

from __future__ import annotations

import contextlib
import io
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import pipeline.metrics.confusion as module
from pipeline.metrics.block import Counted
from pipeline.metrics.confusion import (
    UNDEFINED,
    VOID,
    ConfusionMatrix,
    class_index,
    confusion,
    count_pairs,
)

CLASSES = 5
INDEX = class_index(range(CLASSES), void=[255])


@pytest.fixture(params=["compiled", "plain"], autouse=True, scope="module")
def _counter(request):
    """Run every test with the compiled loop, where there is one, and without."""
    if request.param == "compiled":
        if module.compiled_counter() is None:
            pytest.skip("the pixel counter was not compiled: segmill was installed without cc")
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "compiled_counter", lambda: None)
        yield


def by_hand(truth, predicted):
    """Count pairs one pixel at a time."""
    return Counter(zip(truth.ravel().tolist(), predicted.ravel().tolist(), strict=True))


def as_counter(pairs):
    triples = zip(
        pairs.truth.tolist(), pairs.predicted.tolist(), pairs.counts.tolist(), strict=True
    )
    return Counter({(t, p): n for t, p, n in triples})


SIDES = st.integers(1, 9)


def maps(dtype):
    top = np.iinfo(dtype).max
    values = st.one_of(st.integers(0, 6), st.integers(0, top))
    return st.tuples(SIDES, SIDES).flatmap(
        lambda s: st.tuples(arrays(dtype, s, elements=values), arrays(dtype, s, elements=values))
    )


@given(st.one_of(maps(np.uint8), maps(np.uint16)))
def test_pairs_are_those_counted_by_hand(both):
    truth, predicted = both
    pairs = count_pairs(truth, predicted)
    assert as_counter(pairs) == by_hand(truth, predicted)
    codes = (pairs.truth << 16) + pairs.predicted
    assert (np.diff(codes) > 0).all()


@given(
    sides=st.tuples(st.integers(1, 40), st.integers(1, 300)),
    gap=st.integers(0, 2),
    noise=st.sampled_from([0.0, 0.002, 0.05, 0.5]),
    dtypes=st.tuples(*[st.sampled_from([np.uint8, np.uint16])] * 2),
    top=st.sampled_from([3, 255]),
    seed=st.integers(0, 1 << 30),
)
@settings(max_examples=150)
def test_maps_of_areas_are_counted_by_runs_as_by_hand(sides, gap, noise, dtypes, top, seed):
    rng, (height, width) = np.random.default_rng(seed), sides
    both = []
    for dtype in dtypes:
        areas = rng.integers(0, top + 1, (height // 4 + 1, width // 9 + 1))
        held = np.kron(areas, np.ones((4, 9), int))[:height, :width].astype(dtype)
        wrong = rng.random(held.shape) < noise
        held[wrong] = rng.integers(0, top + 1, int(wrong.sum()))
        # As an inflated cell lies in memory, but for what is between the rows: any value.
        rows = rng.integers(0, top + 1, (height, width + gap)).astype(dtype)
        rows[:, gap:] = held
        both.append(rows[:, gap:])
    assert as_counter(count_pairs(*both)) == by_hand(*both)


@pytest.mark.parametrize("block", [1, 50, 1 << 18])
def test_blocks_of_rows_add_up(monkeypatch, block):
    monkeypatch.setattr(module, "_BLOCK", block)
    rng = np.random.default_rng(8)
    truth = np.kron(rng.integers(0, 9, (5, 4)), np.ones((6, 8), int)).astype(np.uint8)
    predicted = np.roll(truth, 3, 1)
    assert as_counter(count_pairs(truth, predicted)) == by_hand(truth, predicted)


@pytest.mark.parametrize(
    "view",
    [
        lambda a: a[:, 1:],
        lambda a: a[::2, 3:-2],
        lambda a: a[::-1, ::-1],
        lambda a: a.T,
        lambda a: np.asfortranarray(a),
        lambda a: a[:, ::3],
    ],
    ids=["mask cell", "strided rows", "reversed", "transposed", "fortran", "strided columns"],
)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_views_count_as_their_copies(view, dtype):
    rng = np.random.default_rng(1)
    truth, predicted = (view(rng.integers(0, 7, (24, 31)).astype(dtype)) for _ in range(2))
    truth.flags.writeable = False
    assert as_counter(count_pairs(truth, predicted)) == by_hand(truth, predicted)


@pytest.mark.parametrize("dtypes", [(np.uint8, np.uint16), (np.uint16, np.uint8)])
def test_maps_of_two_depths_are_compared(dtypes):
    rng = np.random.default_rng(2)
    truth, predicted = (rng.integers(0, 200, (20, 30)).astype(t) for t in dtypes)
    assert as_counter(count_pairs(truth, predicted)) == by_hand(truth, predicted)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_counts_beyond_a_floats_whole_numbers_are_exact(dtype):
    # 2**24 + 1 is the first count that a float32 cannot hold, and the next odd ones neither.
    truth = np.zeros((4099, 4099), dtype)
    truth[-1, -2:] = 3
    pairs = count_pairs(truth, np.zeros_like(truth))
    assert pairs.counts.tolist() == [4099**2 - 2, 2]


def test_sixteen_bit_ids_are_counted_densely_and_sorted_alike(monkeypatch):
    rng = np.random.default_rng(3)
    truth, predicted = (rng.integers(0, 40, (64, 65)).astype(np.uint16) for _ in range(2))
    dense = count_pairs(truth, predicted)
    monkeypatch.setattr(module, "_DENSE", 0)
    assert as_counter(count_pairs(truth, predicted)) == as_counter(dense)


def test_noise_over_all_sixteen_bits_takes_no_more_memory_than_pixels():
    rng = np.random.default_rng(4)
    truth, predicted = (rng.integers(0, 1 << 16, (50, 60)).astype(np.uint16) for _ in range(2))
    assert count_pairs(truth, predicted).counts.sum() == 3000


@pytest.mark.parametrize(
    ("truth", "predicted"),
    [
        (np.zeros((2, 3), np.uint8), np.zeros((3, 2), np.uint8)),
        (np.zeros(6, np.uint8), np.zeros(6, np.uint8)),
        (np.zeros((2, 3), np.int64), np.zeros((2, 3), np.int64)),
    ],
    ids=["sizes", "one axis", "dtype"],
)
def test_maps_that_cannot_be_compared_are_refused(truth, predicted):
    with pytest.raises(ValueError, match="expected"):
        count_pairs(truth, predicted)


def test_empty_maps_hold_no_pairs():
    for dtype in (np.uint8, np.uint16):
        assert count_pairs(np.zeros((0, 4), dtype), np.zeros((0, 4), dtype)).counts.size == 0


def plain(truth, predicted, classes):
    """Fill the matrix as most evaluation scripts do: bincount of codes, void masked out."""
    valid = truth < classes
    wanted = np.where(predicted < classes, predicted, classes)
    codes = truth[valid].astype(np.int64) * (classes + 1) + wanted[valid]
    return np.bincount(codes, minlength=classes * (classes + 1)).reshape(classes, classes + 1)


def random_maps(seed, classes=CLASSES, shape=(40, 50), void=0.1):
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, classes, shape).astype(np.uint8)
    predicted = np.where(rng.random(shape) < 0.6, truth, rng.integers(0, classes, shape))
    predicted = predicted.astype(np.uint8)
    truth[rng.random(shape) < void] = 255
    predicted[rng.random(shape) < void] = 255
    return truth, predicted


def test_the_matrix_is_that_of_bincount_with_void_left_out():
    truth, predicted = random_maps(5)
    found = confusion(truth, predicted, INDEX, INDEX, CLASSES)
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, plain(truth, predicted, CLASSES))


def test_void_truth_is_out_and_void_prediction_is_an_error():
    truth = np.array([[0, 0, 0, 255, 1]], np.uint8)
    predicted = np.array([[0, 255, 1, 0, 1]], np.uint8)
    matrix = ConfusionMatrix.empty(2)
    index = class_index([0, 1], void=[255])
    matrix.update(count_pairs(truth, predicted), index, index)
    assert matrix.counts.tolist() == [[1, 1, 1], [0, 1, 0]]
    assert matrix.void == 1
    tally = matrix.tally()
    assert tally.iou.tolist() == [1 / 3, 1 / 2]
    assert tally.coverage == 3 / 4
    assert tally.pixel_accuracy == 2 / 4


def test_class_index_says_what_each_id_is():
    index = class_index([7, 3], void=[0, 255])
    assert [index[i] for i in (7, 3, 0, 255, 1, 65535)] == [
        0, 1, VOID, VOID, UNDEFINED, UNDEFINED,
    ]  # fmt: skip


def test_two_label_spaces_meet_in_the_index_not_in_the_pixels():
    # Truth has ids 10 and 20; predictions 0, 1, 2, of which 1 and 2 are the second class.
    rows, columns = class_index([10, 20]), np.full(1 << 16, UNDEFINED)
    columns[[0, 1, 2]] = 0, 1, 1
    truth = np.array([[10, 10, 20, 20]], np.uint8)
    predicted = np.array([[0, 1, 1, 2]], np.uint8)
    found = confusion(truth, predicted, rows, columns, 2)
    assert found.tolist() == [[1, 1, 0], [0, 2, 0]]


@given(st.lists(maps(np.uint8), min_size=1, max_size=4))
@settings(max_examples=40)
def test_matrices_of_parts_add_up_to_the_whole(parts):
    index = class_index(range(4), void=range(4, 256))
    whole = ConfusionMatrix.empty(4)
    total = ConfusionMatrix.empty(4)
    for truth, predicted in parts:
        pairs = count_pairs(truth, predicted)
        whole.update(pairs, index, index)
        one = ConfusionMatrix.empty(4)
        one.update(pairs, index, index)
        total = total + one
    joined = [np.concatenate([p[k].ravel() for p in parts])[None] for k in (0, 1)]
    at_once = ConfusionMatrix.empty(4)
    at_once.update(count_pairs(*joined), index, index)
    for matrix in (total, at_once):
        np.testing.assert_array_equal(matrix.counts, whole.counts)
        assert matrix.void == whole.void


@given(maps(np.uint8))
def test_an_images_tally_is_that_of_its_matrix(both):
    index = class_index(range(4), void=range(4, 256))
    pairs = count_pairs(*both)
    matrix = ConfusionMatrix.empty(4)
    matrix.update(pairs, index, index)
    counted = Counted()
    for _ in range(2):
        counted.add(index[pairs.truth], index[pairs.predicted], pairs.counts)
    for tally in counted.flat().tallies(4):
        np.testing.assert_array_equal(tally, matrix.tally().counts)


def test_scores_follow_their_definitions():
    truth, predicted = random_maps(6)
    matrix = ConfusionMatrix.empty(CLASSES)
    matrix.update(count_pairs(truth, predicted), INDEX, INDEX)
    tally, valid = matrix.tally(), truth != 255
    ious, recalls, weights = [], [], []
    for k in range(CLASSES):
        t, p = (truth == k) & valid, (predicted == k) & valid
        ious.append((t & p).sum() / (t | p).sum())
        recalls.append((t & p).sum() / t.sum())
        weights.append(t.sum() / valid.sum())
        assert tally.precision[k] == pytest.approx((t & p).sum() / p.sum())
    assert tally.iou == pytest.approx(ious)
    assert tally.miou == pytest.approx(np.mean(ious))
    assert tally.mean_accuracy == pytest.approx(np.mean(recalls))
    assert tally.fwiou == pytest.approx(np.dot(weights, ious))
    assert tally.pixel_accuracy == pytest.approx((truth == predicted)[valid].mean())
    assert tally.coverage == pytest.approx((predicted != 255)[valid].mean())


def test_classes_that_occur_nowhere_do_not_enter_the_means():
    truth = np.array([[0, 0, 1]], np.uint8)
    predicted = np.array([[0, 0, 2]], np.uint8)
    matrix = ConfusionMatrix.empty(4)
    index = class_index(range(4))
    matrix.update(count_pairs(truth, predicted), index, index)
    tally = matrix.tally()
    assert tally.miou == pytest.approx((1 + 0 + 0) / 3)
    assert math.isnan(tally.iou[3])
    assert tally.mean_accuracy == pytest.approx((1 + 0) / 2)


def test_scores_of_no_pixels_are_nan():
    tally = ConfusionMatrix.empty(3).tally()
    for name in ("miou", "pixel_accuracy", "mean_accuracy", "fwiou", "coverage"):
        assert math.isnan(getattr(tally, name)), name


def test_scores_agree_with_cityscapesscripts(tmp_path, monkeypatch):
    """The official tool reads PNG files of label ids; ours the same ids with its ignored labels."""
    monkeypatch.setattr("sys.argv", ["evaluate"])
    official = pytest.importorskip(
        "cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling",
        reason="cityscapesscripts is not installed",
    )
    from PIL import Image

    labels = [label for label in official.labels if label.id >= 0]
    scored = [label.id for label in labels if not label.ignoreInEval]
    void = [label.id for label in labels if label.ignoreInEval]
    index = class_index(scored, void)
    matrix, files, rng = ConfusionMatrix.empty(len(scored)), [], np.random.default_rng(7)
    for number in range(3):
        truth = rng.integers(0, 34, (60, 80)).astype(np.uint8)
        predicted = np.where(rng.random(truth.shape) < 0.7, truth, rng.integers(0, 34, truth.shape))
        predicted = predicted.astype(np.uint8)
        # A class that occurs nowhere, and one that is only ever predicted.
        truth[(truth == 31) | (truth == 30)] = 0
        predicted[predicted == 31] = 7
        matrix.update(count_pairs(truth, predicted), index, index)
        pair = tmp_path / f"{number}_pred.png", tmp_path / f"{number}_gt.png"
        for path, mask in zip(pair, (predicted, truth), strict=True):
            Image.fromarray(mask).save(path)
        files.append(tuple(map(str, pair)))
    options = official.args
    monkeypatch.setattr(options, "quiet", True)
    monkeypatch.setattr(options, "evalInstLevelScore", False)
    monkeypatch.setattr(options, "exportFile", str(tmp_path / "official.json"))
    with contextlib.redirect_stdout(io.StringIO()):
        result = official.evaluateImgLists(*map(list, zip(*files, strict=True)), options)
    tally = matrix.tally()
    for label in labels:
        if label.id in scored:
            mine = tally.iou[scored.index(label.id)]
            assert mine == pytest.approx(result["classScores"][label.name], nan_ok=True)
    assert tally.miou == pytest.approx(result["averageScoreClasses"])


def test_the_compiled_loop_reads_nothing_but_its_buffers():
    count = module.compiled_counter()
    if count is None:
        pytest.skip("this is the run without it")
    rows = np.zeros((4, 20), np.uint8)
    for other in (
        rows[:3],
        rows[:, :19],
        rows.T,
        rows[:, ::-1],
        rows.ravel(),
        rows.view(np.uint16),
    ):
        with pytest.raises(ValueError, match="two maps of bytes of one size"):
            count(rows, other)
        with pytest.raises(ValueError, match="two maps of bytes of one size"):
            count(other, rows)
    with pytest.raises(TypeError):
        count(rows, "text")
    huge = np.broadcast_to(np.zeros(1, np.uint8), (1 << 17, 1 << 16))
    with pytest.raises(ValueError, match=r"one size|32 bits"):
        count(huge, huge)
    assert count(rows[::2, 3:], rows[::-2, 3:]) == (bytes(2), (34).to_bytes(4, "little"))
