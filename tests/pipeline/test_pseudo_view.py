"""The hard view: against a loop over pixels, and the same through every reader of a store."""

from __future__ import annotations

import pickle
from copy import copy

import numpy as np
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from connectors.exporting import RowReader, ranges
from pipeline import masks
from pipeline.errors import UnknownName, UsageError
from pipeline.label_space import label_space
from pipeline.labels.margin import margin_of, with_margin
from pipeline.pseudo.calibrate import Goal, calibrate
from pipeline.pseudo.held_out import gather
from pipeline.pseudo.view import View, border, missed
from pipeline.pseudo.viewed_store import open_viewed
from pipeline.record import ClassPixels, File
from pipeline.runner import LocalRunner
from pipeline.scoring import score
from pipeline.training.data import Channels, Reader
from tests.pipeline.pseudo_world import SPACE, image, record, store_of, stores


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    truth, pred = stores(root, 12)
    found = calibrate(gather(truth, pred, LocalRunner(1)), Goal(target=0.8))
    path = root / "thresholds.json"
    path.write_text(found.to_json())
    return truth, pred, found, str(path)


def by_hand(found, ids, sure, present=None):
    """Return the labels and weights of each pixel, one at a time."""
    hard, weights = ids.copy(), np.zeros(ids.shape)
    for at, i in np.ndenumerate(ids):
        if i == 255:
            continue
        rule, level = found.rules[i - 3], sure[at]
        if level < rule.keep or (present is not None and i not in present):
            hard[at] = 255
        elif rule.sure is not None and level >= rule.sure:
            weights[at] = 1
        else:
            weights[at] = found.maps[i - 3, level]
    return hard, weights


@pytest.mark.parametrize("present", [None, (3, 5)])
def test_labels_and_weights_are_what_the_rules_say(world, present):
    found, view = world[2], View.parse(world[3]).of(SPACE)
    rng = np.random.default_rng(5)
    ids = rng.choice([3, 4, 5, 6, 255], (40, 50)).astype(np.uint8)
    sure = rng.integers(0, 256, (40, 50)).astype(np.uint8)
    hard, weights = by_hand(found, ids, sure, present)
    assert np.array_equal(view.hard(ids, sure, present), hard)
    assert np.abs(view.weights(ids, sure, present) - weights).max() < 1e-5
    assert ((weights > 0) <= (hard != 255)).all()
    assert 0 < (hard == 255).mean() < 1


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(2, 6))
def test_borders_are_those_of_a_search_around_each_pixel(seed, width, classes):
    ids = np.random.default_rng(seed).integers(0, classes, (6, 5)).astype(np.uint8)
    ids = np.kron(ids, np.ones((3, 3), np.uint8))
    found = border(ids, width)
    for y, x in np.ndindex(*ids.shape):
        near = ids[max(0, y - width) : y + width + 1, max(0, x - width) : x + width + 1]
        assert found[y, x] == (near != ids[y, x]).any()


def test_a_border_is_ignored_and_a_view_never_adds_labels(world):
    rng = np.random.default_rng(6)
    _, ids, sure = image(rng)
    plain = View.parse(world[3]).of(SPACE).hard(ids, sure)
    banded = View.parse(world[3] + ":border=2").of(SPACE).hard(ids, sure)
    assert (banded[border(ids, 2)] == 255).all()
    assert np.array_equal(banded[~border(ids, 2)], plain[~border(ids, 2)])
    assert (plain[plain != 255] == ids[plain != 255]).all()


def test_thresholds_by_hand_cut_where_label_would_cut(world):
    sure = np.arange(256, dtype=np.uint8).reshape(16, 16)
    ids = np.full((16, 16), 4, np.uint8)
    hard = View.parse("0.2,b=0.6").of(SPACE).hard(ids, sure)
    assert np.array_equal(hard == 4, sure / 255 >= 0.6)
    assert np.array_equal(View.parse("0.2").of(SPACE).hard(ids, sure) == 4, sure / 255 >= 0.2)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("nowhere.json", UsageError),
        ("0.5:border=x", UsageError),
        ("0.5:border=65", UsageError),
        ("1.5", UsageError),
        ("zebra=0.5", UnknownName),
    ],
)
def test_bad_views_are_refused(text, error):
    with pytest.raises(error):
        View.parse(text).of(SPACE)


def test_a_calibration_of_other_classes_is_refused(world):
    with pytest.raises(UsageError, match="camvid-11"):
        View.parse(world[3]).of(label_space("camvid-11"))


def test_every_reader_of_a_store_sees_the_same_labels(world):
    truth, pred, _, path = world
    view = View.parse(path)
    shown = view.of(SPACE)
    wanted = {}
    for row in pred.records():
        ids, sure = (masks.decode(c.bytes) for c in (row.mask, row.confidence))
        wanted[row.image_id] = shown.hard(ids, sure)
    viewed = open_viewed(pred.url, None, view)

    for store in (viewed, copy(viewed), pickle.loads(pickle.dumps(viewed)), viewed.latest()):
        for where in (None, pc.field("dataset") == "toy", "dataset = 'toy'"):
            found = {r.image_id: r for r in store.records(where)}
            assert found.keys() == wanted.keys()
            for name, row in found.items():
                assert np.array_equal(masks.decode(row.mask.bytes), wanted[name])
                counts = {c.id: c.pixels for c in row.classes}
                ids, pixels = np.unique(wanted[name], return_counts=True)
                assert counts == dict(zip(ids.tolist(), pixels.tolist(), strict=True))
    reader = RowReader(viewed, None, view)
    for part in ranges(viewed):
        for sample, row in reader()(part):
            assert np.array_equal(masks.decode(row.mask.bytes), wanted[sample.image_id])
    channels = Channels(SPACE)
    rows = list(Reader(viewed, "val", channels).rows())
    assert len(rows) == 12
    for row in rows:
        assert np.array_equal(masks.decode(row.cell), wanted[row.image_id])
    survey = Reader(viewed, "val", channels).survey
    assert survey.pixels.sum() == sum(int((m != 255).sum()) for m in wanted.values())

    scores = score(truth, viewed, runner=LocalRunner(2))
    kept = np.mean([(m != 255).mean() for m in wanted.values()])
    assert scores.tally.coverage == pytest.approx(kept)
    assert scores.tally.miou < score(truth, pred, runner=LocalRunner(2)).tally.miou


def test_truth_is_shown_as_it_is(world):
    truth, _, _, path = world
    seen = open_viewed(truth.url, None, View.parse(path))
    assert list(seen.records()) == list(truth.records())


def test_a_broken_cell_gives_no_labels(tmp_path):
    rng = np.random.default_rng(0)
    _, ids, sure = image(rng)
    good, bad = record("a", ids, sure), record("b", ids, sure)
    broken = File(bytes=bad.confidence.bytes[:60])
    store = store_of(tmp_path / "s", [good, bad.__class__(**_fields(bad) | {"confidence": broken})])
    rows = {r.image_id: r for r in open_viewed(store.url, None, View.parse("0.5")).records()}
    assert rows["b"].mask.bytes == b""
    assert masks.decode(rows["a"].mask.bytes).shape == ids.shape


def _fields(row):
    return {name: getattr(row, name) for name in row.__dataclass_fields__}


def test_image_level_labels_forbid_and_flag():
    ids = np.array([[3, 4], [5, 6]], np.uint8)
    sure = np.full((2, 2), 250, np.uint8)
    view = View.parse("0.1").of(SPACE)
    row = record("x", ids, sure, labels=(3, 6))
    assert masks.decode(view.record(row).mask.bytes).tolist() == [[3, 255], [255, 6]]
    assert missed([ClassPixels(3, 1), ClassPixels(4, 0)], (3, 4, 6)) == [4, 6]
    assert missed([], None) == []


def test_a_margin_stays_where_it_is_when_a_view_reads(tmp_path):
    rng = np.random.default_rng(0)
    _, ids, sure = image(rng)
    row = record("a", ids, sure)
    cell = File(bytes=with_margin(row.confidence.bytes, sure // 2))
    store = store_of(tmp_path / "s", [row.__class__(**_fields(row) | {"confidence": cell})])
    [seen] = open_viewed(store.url, None, View.parse("0.5")).records()
    assert np.array_equal(margin_of(seen.confidence.bytes), sure // 2)
