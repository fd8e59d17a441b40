"""Boundary scores against pixel-by-pixel definitions and the published erosion of each class."""

from __future__ import annotations

import itertools
import math
import pickle

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pipeline.errors import UsageError
from pipeline.label_space import LabelClass, LabelSpace
from pipeline.metrics.boundary import Boundary, boundary_counts
from pipeline.metrics.confusion import class_index
from pipeline.metrics.contours import Contour, matched
from pipeline.metrics.measure import LabelPair

CLASSES = 4
SIDES = st.integers(1, 9)
TRIMAP = (1, 2, 4)


def space(classes=CLASSES):
    listed = tuple(LabelClass(i, f"class {i}", (0, 0, 0)) for i in range(classes))
    return LabelSpace("test", listed, ignore_index=65535 if classes > 254 else 255)


def pair(truth, predicted, classes=CLASSES):
    index = class_index(range(classes), void=[space(classes).ignore_index])
    return LabelPair("image", truth, predicted, index, index, space(classes))


def maps(dtype=np.uint8, sides=SIDES):
    top = int(np.iinfo(dtype).max)
    values = st.one_of(st.integers(0, CLASSES - 1), st.sampled_from([0, 1, top]))
    blocks = st.tuples(sides, sides).flatmap(
        lambda s: st.tuples(*(arrays(dtype, s, elements=values) for _ in range(2)))
    )
    # Noise has an edge at every pixel; enlarged pixels give regions with an inside.
    return st.tuples(blocks, st.sampled_from([1, 2, 3])).map(
        lambda drawn: tuple(np.kron(m, np.ones((drawn[1],) * 2, dtype)) for m in drawn[0])
    )


MEASURES = st.builds(
    Boundary,
    band_share=st.sampled_from([0.02, 0.15, 0.4]),
    band_pixels=st.sampled_from([None, 1, 2, 3, 30]),
    tolerance_pixels=st.sampled_from([None, 0, 1, 1.5, 2.3, 40]),
    trimap_pixels=st.just(TRIMAP),
    void=st.sampled_from(["ignored", "boundary"]),
)


# --- the definitions, one pixel at a time ---------------------------------------------------------


def seen_as(truth, predicted, classes):
    """Return both maps as Python integers: -1 where truth is void, `classes` for no label."""
    void = truth == np.iinfo(truth.dtype).max
    theirs = np.minimum(predicted.astype(int), classes)
    return np.where(void, -1, truth.astype(int)), np.where(void, -1, theirs)


def window(labels, y, x, radius):
    top, left = max(0, y - radius), max(0, x - radius)
    return labels[top : y + radius + 1, left : x + radius + 1].ravel().tolist()


def is_near(labels, y, x, radius, void):
    """Whether another label lies in the window."""
    others = set(window(labels, y, x, radius)) - {labels[y, x]}
    return bool(others - ({-1} if void == "ignored" else set()))


def by_hand(truth, predicted, classes, measure):
    """Return bands [3, C], contours [2, 2, C] and the trimaps' tallies [K, 3, C]."""
    both = seen_as(truth, predicted, classes)
    height, width = truth.shape
    d, tolerance = measure.band(truth.shape), measure.tolerance(truth.shape)
    # One column more, for pixels without a label.
    bands = np.zeros((3, classes + 1), int)
    trimaps = np.zeros((len(measure.trimap_pixels), 3, classes + 1), int)
    contours = [set(), set()]
    for y, x in zip(*np.nonzero(both[0] >= 0), strict=True):
        t, p = (int(m[y, x]) for m in both)
        rim = min(y, x, height - 1 - y, width - 1 - x) < d
        in_t, in_p = (rim or is_near(m, y, x, d, measure.void) for m in both)
        bands[[0, 1, 2], [t, t, p]] += in_t and in_p and t == p, in_t, in_p
        for n, m in enumerate(both):
            if m[y, x] < classes and is_near(m, y, x, 1, measure.void):
                contours[n].add((int(y), int(x), int(m[y, x])))
        for k, radius in enumerate(measure.trimap_pixels):
            if is_near(both[0], y, x, radius, measure.void):
                trimaps[k, [0, 1, 2], [t, t, p]] += t == p, 1, 1
    bands, trimaps = bands[:, :classes], trimaps[..., :classes]
    found = np.zeros((2, 2, classes), int)
    for n, (mine, theirs) in enumerate(itertools.permutations(contours)):
        for y, x, c in mine:
            found[n, 0, c] += 1
            found[n, 1, c] += any(
                c == k and (y - v) ** 2 + (x - u) ** 2 <= tolerance**2 for v, u, k in theirs
            )
    return bands, found, trimaps


@settings(max_examples=100, deadline=None)
@given(st.one_of(maps(), maps(np.uint16)), MEASURES)
def test_counts_are_those_of_the_definitions(both, measure):
    counts = boundary_counts(*both, CLASSES, measure)
    bands, contours, trimaps = by_hand(*both, CLASSES, measure)
    np.testing.assert_array_equal(counts.bands, bands)
    np.testing.assert_array_equal(counts.contours, contours)
    tallies = [np.stack([t.intersection, t.truth, t.predicted]) for t in counts.trimaps()]
    np.testing.assert_array_equal(tallies, trimaps)


def published(mask, share):
    """Return the pixels of a mask within a share of the diagonal of its contour, by erosion."""
    height, width = mask.shape
    steps = max(1, round(share * np.sqrt(height**2 + width**2)))
    framed = cv2.copyMakeBorder(mask, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    inner = cv2.erode(framed, np.ones((3, 3), np.uint8), iterations=steps)
    return mask - inner[1:-1, 1:-1]


def regions(rng, shape, classes):
    """Draw a map of smooth regions."""
    coarse = rng.random((classes, 5, 6)).astype(np.float32)
    planes = [cv2.resize(c, shape[::-1], interpolation=cv2.INTER_CUBIC) for c in coarse]
    return np.argmax(planes, axis=0).astype(np.uint8)


@pytest.mark.parametrize("shape", [(90, 120), (61, 47)])
@pytest.mark.parametrize("share", [0.02, 0.005, 0.1])
def test_boundary_iou_is_the_published_formula_where_all_is_labelled(shape, share):
    rng = np.random.default_rng(3)
    truth, predicted = (regions(rng, shape, 6) for _ in range(2))
    predicted[:, : shape[1] // 2] = np.roll(truth, 2, axis=1)[:, : shape[1] // 2]
    counts = boundary_counts(truth, predicted, 6, Boundary(band_share=share))
    for c in range(6):
        a, b = (published((m == c).astype(np.uint8), share) for m in (truth, predicted))
        wanted = (a & b).sum() / (a | b).sum()
        assert counts.boundary_iou[c] == pytest.approx(wanted, abs=1e-15)


def test_void_belongs_to_every_class_in_the_published_formula():
    rng = np.random.default_rng(4)
    truth, predicted = (regions(rng, (80, 100), 5) for _ in range(2))
    truth[20:33, 30:70] = 255
    d, void = 3, truth == 255
    counts = boundary_counts(truth, predicted, 5, Boundary(band_pixels=d))
    for c in range(5):
        parts = []
        for labels in (truth, predicted):
            wide = np.pad(((labels == c) | void).astype(np.uint8), 1)
            inner = cv2.erode(wide, np.ones((3, 3), np.uint8), iterations=d)[1:-1, 1:-1]
            parts.append((labels == c) & ~void & (inner == 0))
        both, either = (parts[0] & parts[1]).sum(), (parts[0] | parts[1]).sum()
        assert counts.boundary_iou[c] == pytest.approx(both / either, abs=1e-15)


def test_contours_match_by_the_distance_to_the_nearest_of_their_class():
    rng = np.random.default_rng(5)
    shape, classes, tolerance = (70, 90), 7, 4.3
    truth, predicted = (regions(rng, shape, classes) for _ in range(2))
    counts = boundary_counts(truth, predicted, classes, Boundary(tolerance_pixels=tolerance))

    def edge(labels, c):
        mask = (labels == c).astype(np.uint8)
        return (mask != cv2.erode(mask, np.ones((3, 3), np.uint8))).astype(np.uint8)

    for c in range(classes):
        for n, (mine, theirs) in enumerate(((truth, predicted), (predicted, truth))):
            a, b = edge(mine, c), edge(theirs, c)
            away = cv2.distanceTransform(1 - b, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
            near = (a == 1) & (away <= tolerance) & b.any()
            assert counts.contours[n, :, c].tolist() == [a.sum(), near.sum()]


@pytest.mark.parametrize("block", [1, 400, 1 << 18])
@pytest.mark.parametrize("classes", [8, 9, 140])
def test_more_classes_than_a_byte_has_bits(classes, block, monkeypatch):
    monkeypatch.setattr("pipeline.metrics.contours._BLOCK", block)
    rng = np.random.default_rng(6)
    shape, tolerance = (20, 40), 2.9
    sets = []
    for _ in range(2):
        places = np.sort(rng.choice(800, 500, replace=False))
        sets.append(Contour(places, rng.integers(0, classes, 500)))
    a, b = sets
    y, x = np.divmod(a.places[:, None], 40)
    v, u = np.divmod(b.places[None], 40)
    near = (y - v) ** 2 + (x - u) ** 2 <= tolerance**2
    wanted = (near & (a.labels[:, None] == b.labels[None])).any(axis=1)
    assert 0 < wanted.sum() < len(wanted)
    np.testing.assert_array_equal(matched(a, b, shape, tolerance), wanted)


@pytest.mark.parametrize("width", [1, 2, 5, 12, 19])
@pytest.mark.parametrize("tolerance", [0, 1, 2, 3.5, 7, 18, 40])
def test_every_place_of_a_row_is_reached_from_every_other(width, tolerance):
    places, labels = np.arange(width), np.zeros(width, np.intp)
    for there in range(width):
        other = Contour(places[there : there + 1], labels[:1])
        for shape in ((1, width), (width, 1)):
            near = matched(Contour(places, labels), other, shape, tolerance)
            assert near.tolist() == [abs(at - there) <= tolerance for at in range(width)]


def test_300_classes_count_as_their_ranks():
    """Positions of 16 bits, as a label space of 255 classes or more has them."""
    rng = np.random.default_rng(7)
    few = [regions(rng, (50, 60), 6) for _ in range(2)]
    few[0][5:9] = 255
    ids = np.array([3, 70, 254, 255, 256, 299], np.uint16)
    many = [np.where(m == 255, 65535, ids[np.minimum(m, 5)]).astype(np.uint16) for m in few]
    a = Boundary().start(space(6))
    b = Boundary().start(space(300))
    row = a.update(pair(*few, classes=6))
    assert b.update(pair(*many, classes=300)) == row
    for mine, theirs in zip(
        (a.counts.bands, a.counts.contours, a.counts.rings),
        (b.counts.bands, b.counts.contours, b.counts.rings),
        strict=True,
    ):
        np.testing.assert_array_equal(mine, theirs[..., ids])
        assert mine.sum() == theirs.sum()
    assert a.figures()["boundary_iou"] == b.figures()["boundary_iou"]


# --- figures --------------------------------------------------------------------------------------


def test_equal_maps_score_one_and_void_images_nothing():
    truth = regions(np.random.default_rng(8), (40, 50), CLASSES)
    gathering = Boundary().start(space())
    assert gathering.update(pair(truth, truth)) == {"boundary_iou": 1.0, "boundary_f1": 1.0}
    void = np.full((40, 50), 255, np.uint8)
    before = pickle.dumps(gathering.counts)
    assert gathering.update(pair(void, truth)) == {"boundary_iou": None, "boundary_f1": None}
    assert pickle.dumps(gathering.counts) == before
    figures = gathering.figures()
    assert figures["boundary_iou"] == figures["boundary_f1"] == 1.0
    assert {row["miou"] for row in figures["trimap"]} == {1.0}
    assert figures["trimap"][-1]["share"] <= 1.0


def test_a_shifted_edge_scores_as_counted_on_paper():
    """A vertical edge one pixel aside: 8 rows, 16 columns, truth's edge at 8, the other's at 9."""
    truth, predicted = np.zeros((2, 8, 16), np.uint8)
    truth[:, 8:], predicted[:, 9:] = 1, 1
    exact = Boundary(band_pixels=2, tolerance_pixels=0, trimap_pixels=(1, 2))
    one = boundary_counts(truth, predicted, 2, exact)
    # The left class: rows 0, 1, 6, 7 whole (8 of truth, 9 of the other); in the four others the
    # columns 0, 1 and two at the edge (6, 7 against 7, 8).
    assert one.bands[:, 0].tolist() == [4 * 8 + 4 * 3, 4 * 8 + 4 * 4, 4 * 9 + 4 * 4]
    assert one.contours[:, 1].tolist() == [[0, 0], [0, 0]]
    near = boundary_counts(truth, predicted, 2, Boundary(tolerance_pixels=1))
    assert near.boundary_f1.tolist() == [1.0, 1.0]
    assert [t.pixel_accuracy for t in one.trimaps()] == [0.5, 0.75]


def test_a_class_of_one_side_only_scores_zero_and_of_neither_none():
    truth = np.zeros((12, 12), np.uint8)
    predicted = truth.copy()
    predicted[4:8, 4:8] = 1
    gathering = Boundary().start(space())
    gathering.update(pair(truth, predicted))
    classes = gathering.figures()["classes"]
    assert classes["class 1"] == {
        "boundary_iou": 0.0, "boundary_f1": 0.0, "precision": 0.0, "recall": None,
    }  # fmt: skip
    assert set(classes["class 2"].values()) == {None}


def test_edges_against_void_count_only_when_asked_for():
    truth = np.zeros((20, 20), np.uint8)
    truth[5:15, 5:15] = 1
    truth[4:16, 4:16][cv2.erode(truth[4:16, 4:16], np.ones((3, 3), np.uint8)) == 0] = 255
    predicted = np.where(truth == 255, 0, truth)
    ignored = boundary_counts(truth, predicted, 2, Boundary(band_pixels=1))
    counted = boundary_counts(truth, predicted, 2, Boundary(band_pixels=1, void="boundary"))
    assert ignored.contours.sum() == 0
    assert counted.contours[:, 0, 1].tolist() == [28, 28]
    assert counted.boundary_f1.tolist() == [1.0, 1.0]


@settings(max_examples=25, deadline=None)
@given(st.lists(maps(sides=st.integers(1, 6)), min_size=2, max_size=5), st.randoms())
def test_parts_add_up_in_any_order(images, order):
    measure = Boundary(trimap_pixels=TRIMAP)
    whole, parts = measure.start(space()), []
    for image in images:
        whole.update(pair(*image))
        part = pickle.loads(pickle.dumps(measure)).start(space())
        part.update(pair(*image))
        parts.append(pickle.loads(pickle.dumps(part)))
    order.shuffle(parts)
    total = measure.start(space())
    for part in parts:
        total.merge(part)
    assert total.figures() == whole.figures()


@pytest.mark.parametrize("shape", [(1, 1), (1, 200), (200, 1), (3, 150)])
def test_thin_images(shape):
    rng = np.random.default_rng(9)
    truth, predicted = rng.integers(0, CLASSES, (2, *shape)).astype(np.uint8)
    measure = Boundary()
    counts = boundary_counts(truth, predicted, CLASSES, measure)
    bands, contours, trimaps = by_hand(truth, predicted, CLASSES, measure)
    np.testing.assert_array_equal(counts.bands, bands)
    np.testing.assert_array_equal(counts.contours, contours)
    np.testing.assert_array_equal([t.truth for t in counts.trimaps()], trimaps[:, 1])


def test_widths_are_shares_of_the_diagonal_unless_given():
    measure = Boundary()
    assert (measure.band((360, 480)), measure.tolerance((360, 480))) == (12, 4.5)
    assert measure.band((2, 2)) == 1
    fixed = Boundary(band_pixels=5, tolerance_pixels=3)
    assert (fixed.band((360, 480)), fixed.tolerance((360, 480))) == (5, 3)


@pytest.mark.parametrize(
    "wrong",
    [
        {"band_share": -0.1},
        {"tolerance_pixels": math.nan},
        {"tolerance_share": math.inf},
        {"trimap_pixels": (0, 1)},
        {"trimap_pixels": (2, 2)},
        {"trimap_pixels": tuple(range(1, 40))},
    ],
)
def test_widths_that_make_no_sense_are_refused(wrong):
    with pytest.raises(UsageError, match="boundary: "):
        Boundary(**wrong)


def test_maps_that_differ_in_size_or_type_are_refused():
    a = np.zeros((3, 4), np.uint8)
    for b in (a.T, a.astype(np.uint16)):
        with pytest.raises(ValueError, match="expected two maps of one size"):
            boundary_counts(a, b, 2, Boundary())


def test_figures_of_nothing_hold_no_number():
    figures = Boundary().start(space()).figures()
    assert figures["boundary_iou"] is figures["boundary_f1"] is None
    assert all(row["miou"] is None for row in figures["trimap"])
    fields = Boundary().image_columns
    assert [f.name for f in fields] == ["boundary_iou", "boundary_f1"]
