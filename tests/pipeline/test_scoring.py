"""Scoring one store against another: the join, the sums, remaps, and what bad pairs do."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

import pipeline.scoring as module
from pipeline.errors import RemapError, SegmillError, UsageError
from pipeline.label_space import LabelClass, LabelSpace, find_remap, label_space
from pipeline.masks import encode
from pipeline.metrics.block import IMAGE_SCHEMA
from pipeline.metrics.pairing import pair_rows
from pipeline.ray_runner import RayRunner
from pipeline.record import File, Provenance, Record, to_table
from pipeline.runner import LocalRunner, Resources
from pipeline.scoring import score
from pipeline.store import Store
from pipeline.tables.fragment import write_fragment
from pipeline.tables.rows import list_rows

CAMVID = label_space("camvid-11")
ONE = LocalRunner(1)


def record(name, mask, space=CAMVID, **fields):
    height, width = (4, 6) if mask is None else mask.shape
    cell = None if mask is None else File(None, encode(mask, _palette(space)))
    row = Record(name, "toy", "val", File(f"/images/{name}.png"), "f", height, width, space.name,
                 mask=cell)  # fmt: skip
    return replace(row, **fields)


def _palette(space):
    return space.palette() if space.max_id < 256 else None


def store_of(path, records, *spaces, fragments=1):
    store = Store.create(path, spaces or [CAMVID])
    parts = [records[k::fragments] for k in range(fragments)]
    return store.commit(
        [
            write_fragment(store.sink(), f"data/{k}.parquet", to_table(part))
            for k, part in enumerate(parts)
        ]
    )


def noisy(rng, shape=(24, 32), ids=range(12)):
    """Return a truth and a prediction that is right in six pixels of ten."""
    choices = np.array(list(ids))
    truth = rng.choice(choices, shape)
    predicted = np.where(rng.random(shape) < 0.6, truth, rng.choice(choices, shape))
    return truth.astype(choices.dtype), predicted.astype(choices.dtype)


def masks_of(count, seed=0, **options):
    rng = np.random.default_rng(seed)
    options.setdefault("ids", np.arange(12, dtype=np.uint8))
    return {f"i{n:03d}": noisy(rng, **options) for n in range(count)}


def stores(tmp_path, held, **options):
    return (
        store_of(tmp_path / "truth", [record(n, t) for n, (t, _) in held.items()], **options),
        store_of(tmp_path / "pred", [record(n, p) for n, (_, p) in held.items()], **options),
    )


def plain(pairs, classes=11):
    """Count as a plain script does: [C, C + 1], the id after the last class is void."""
    total = np.zeros((classes, classes + 1), np.int64)
    for truth, predicted in pairs:
        valid = truth < classes
        codes = truth[valid].astype(np.int64) * (classes + 1) + np.minimum(
            predicted[valid], classes
        )
        total += np.bincount(codes, minlength=total.size).reshape(total.shape)
    return total


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(module, "_MOST_PAIRS", 3)
    monkeypatch.setattr(module, "_FEWEST_PAIRS", 1)
    monkeypatch.setattr(module, "_FEWEST_BYTES", 1)


def test_scores_are_those_of_a_plain_script(tmp_path, small_chunks):
    held = masks_of(10)
    batches: list[pa.RecordBatch] = []
    scores = score(
        *stores(tmp_path, held, fragments=3), runner=LocalRunner(2), on_images=batches.append
    )
    expected = plain(held.values())
    np.testing.assert_array_equal(scores.matrix.counts, expected)
    right = np.diag(expected)
    ious = right / (expected.sum(1) + expected.sum(0)[:-1] - right)
    assert scores.tally.miou == pytest.approx(ious.mean())
    assert (scores.inputs, scores.done, scores.skipped, scores.failed) == (10, 10, 0, 0)
    rows = pa.Table.from_batches(batches)
    assert rows.schema == IMAGE_SCHEMA
    assert rows["image_id"].to_pylist() == sorted(held)
    for row in rows.to_pylist():
        alone = plain([held[row["image_id"]]])
        hit = np.diag(alone)
        union = alone.sum(1) + alone.sum(0)[:-1] - hit
        assert row["correct"] == hit.sum()
        assert row["pixels"] + row["void"] == 24 * 32
        assert row["miou"] == pytest.approx((hit / union).mean())
        assert row["worst_class"] == CAMVID.classes[int(np.argmax(union - hit))].name


def everything(scores):
    fields = ("worst", "best", "histogram", "failures", "done", "by_path")
    return scores.matrix.counts.tolist(), scores.figures(), [getattr(scores, f) for f in fields]


def test_workers_and_chunks_change_nothing(tmp_path, monkeypatch):
    pair = stores(tmp_path, masks_of(30), fragments=4)
    rows: list[list[pa.RecordBatch]] = [[], [], []]
    one = score(*pair, runner=ONE, on_images=rows[0].append)
    monkeypatch.setattr(module, "_MOST_PAIRS", 2)
    monkeypatch.setattr(module, "_FEWEST_PAIRS", 1)
    monkeypatch.setattr(module, "_FEWEST_BYTES", 1)
    many = score(*pair, runner=LocalRunner(4), on_images=rows[1].append)
    assert everything(one) == everything(many)
    assert pa.Table.from_batches(rows[0]) == pa.Table.from_batches(rows[1])


def test_ray_gives_the_same_scores(tmp_path, small_chunks, ray_session):
    pair = stores(tmp_path, masks_of(8))
    runner = RayRunner(Resources(1, 2))
    assert everything(score(*pair, runner=runner)) == everything(score(*pair, runner=ONE))


# --- the join -------------------------------------------------------------------------------------


def test_rows_match_by_path_whatever_their_ids(tmp_path):
    held = masks_of(4)
    truth, _ = stores(tmp_path, held)
    renamed = [
        record(n, p, image_id=f"z{9 - k}", split="unlabelled", dataset="")
        for k, (n, (_, p)) in enumerate(held.items())
    ]
    scores = score(truth, store_of(tmp_path / "renamed", renamed), runner=ONE)
    np.testing.assert_array_equal(scores.matrix.counts, plain(held.values()))
    assert (scores.by_path, scores.by_id) == (4, 0)


def test_rows_of_moved_images_match_by_id(tmp_path):
    held = masks_of(4)
    truth, _ = stores(tmp_path, held)
    moved = [record(n, p, image=File(f"s3://b/{n}.png")) for n, (_, p) in held.items()]
    scores = score(truth, store_of(tmp_path / "moved", moved), runner=ONE)
    np.testing.assert_array_equal(scores.matrix.counts, plain(held.values()))
    assert (scores.by_path, scores.by_id) == (0, 4)


def test_ids_that_repeat_between_splits_match_within_their_split(tmp_path):
    held = list(masks_of(2).values())
    splits = ("train", "val")
    sides = [
        [
            record("same", held[k][side], split=s, image=File(f"/{side}/{s}.png"))
            for k, s in enumerate(splits)
        ]
        for side in (0, 1)
    ]
    scores = score(
        store_of(tmp_path / "t", sides[0]), store_of(tmp_path / "p", sides[1]), runner=ONE
    )
    np.testing.assert_array_equal(scores.matrix.counts, plain(held))


def test_rows_without_a_partner_are_counted(tmp_path):
    held = masks_of(6)
    truth, pred = (
        store_of(tmp_path / side, [record(n, held[n][k]) for n in names])
        for side, k, names in (
            ("t", 0, ["i000", "i001", "i002", "i003"]),
            ("p", 1, ["i002", "i003", "i004"]),
        )
    )
    scores = score(truth, pred, runner=ONE)
    assert (scores.inputs, scores.done, scores.unpredicted, scores.unused) == (4, 2, 2, 1)
    assert scores.inputs == scores.done + scores.skipped + scores.failed
    np.testing.assert_array_equal(scores.matrix.counts, plain([held["i002"], held["i003"]]))


def test_an_image_with_two_predictions_is_refused_until_one_is_chosen(tmp_path):
    held = masks_of(2)
    truth, _ = stores(tmp_path, held)
    twice = [
        record(n, p, dataset=run, provenance=Provenance("model", run))
        for n, (_, p) in held.items()
        for run in ("a", "b")
    ]
    pred = store_of(tmp_path / "twice", twice)
    with pytest.raises(UsageError, match=r"2 rows among the predictions.*--pred-where"):
        score(truth, pred, runner=ONE)
    scores = score(truth, pred, runner=ONE, pred_where="dataset = 'b'")
    assert (scores.done, scores.unused) == (2, 0)


def test_stores_of_other_images_are_refused_with_an_example(tmp_path):
    truth = store_of(tmp_path / "t", [record("here", np.zeros((4, 6), np.uint8))])
    pred = store_of(tmp_path / "p", [record("there", np.zeros((4, 6), np.uint8))])
    with pytest.raises(SegmillError, match=r"'here'.*'there'"):
        score(truth, pred, runner=ONE)
    with pytest.raises(SegmillError, match="no row of the truth is left"):
        score(truth, pred, runner=ONE, where="split = 'test'")


@pytest.mark.parametrize("where", ["image_id >= 'i003'", pc.field("image_id") >= "i003"])
def test_a_filter_takes_rows_of_truth(tmp_path, where):
    held = masks_of(5)
    scores = score(*stores(tmp_path, held), runner=ONE, where=where)
    assert (scores.inputs, scores.unused) == (2, 3)
    np.testing.assert_array_equal(scores.matrix.counts, plain([held["i003"], held["i004"]]))


def test_one_prediction_may_serve_two_rows_of_truth(tmp_path):
    held = masks_of(1)
    truth, predicted = held["i000"]
    rows = [record("i000", truth, dataset=d) for d in ("a", "b")]
    pairing = pair_rows(
        list_rows(store_of(tmp_path / "t", rows)),
        list_rows(store_of(tmp_path / "p", [record("i000", predicted)])),
    )
    assert (pairing.pairs, pairing.unpredicted, pairing.unused) == (2, 0, 0)
    assert [p.truth.dataset for p in pairing] == ["a", "b"]


def test_a_filter_chooses_among_rows_that_only_what_made_them_tells_apart(tmp_path):
    """The image, its id and its data set are the same: the row is read that was listed."""
    right, wrong = np.zeros((4, 6), np.uint8), np.ones((4, 6), np.uint8)
    made = [
        record("one", mask, provenance=Provenance("model", name))
        for name, mask in (("good", right), ("bad", wrong))
    ]
    truth, pred = store_of(tmp_path / "t", [record("one", right)]), store_of(tmp_path / "p", made)
    found = [
        score(truth, pred, runner=ONE, pred_where=f"provenance.model = '{name}'").tally
        for name in ("good", "bad")
    ]
    assert [tally.pixel_accuracy for tally in found] == [1.0, 0.0]


def test_rows_without_paths_that_repeat_between_splits_are_read_each(tmp_path):
    held = list(masks_of(2).values())
    sides = [
        store_of(
            tmp_path / str(side),
            [
                record("same", held[k][side], split=s, image=File(None))
                for k, s in ((0, "train"), (1, "val"))
            ],
        )
        for side in (0, 1)
    ]
    scores = score(*sides, runner=ONE)
    np.testing.assert_array_equal(scores.matrix.counts, plain(held))


def test_an_image_with_two_rows_of_truth_is_refused_until_one_is_chosen(tmp_path):
    held = masks_of(2)
    truth = [
        record(n, held[n][k], provenance=Provenance("model", run))
        for n in held
        for k, run in ((0, "a"), (1, "b"))
    ]
    sides = store_of(tmp_path / "t", truth), stores(tmp_path, held)[1]
    with pytest.raises(UsageError, match=r"i000.*two rows in the truth.*--where"):
        score(*sides, runner=ONE)
    scores = score(*sides, runner=ONE, where="provenance.model = 'b'")
    assert (scores.inputs, scores.done, scores.tally.pixel_accuracy) == (2, 2, 1.0)


# --- bad pairs ------------------------------------------------------------------------------------


def test_bad_pairs_are_counted_with_a_reason_and_the_rest_is_scored(tmp_path):
    held = masks_of(6)
    names = sorted(held)
    truth = [record(n, held[n][0]) for n in names]
    pred = [record(n, held[n][1]) for n in names]
    pred[0] = record(names[0], held[names[0]][1][:-1])
    pred[1] = replace(pred[1], mask=File(None, pred[1].mask.bytes[:40]))
    pred[2] = record(names[2], np.full((24, 32), 77, np.uint8))
    pred[3] = replace(pred[3], mask=None)
    truth[4] = replace(truth[4], mask=None)
    scores = score(
        store_of(tmp_path / "t", truth), store_of(tmp_path / "p", pred), runner=LocalRunner(2)
    )
    assert (scores.inputs, scores.done, scores.unlabelled, scores.failed) == (6, 1, 1, 4)
    np.testing.assert_array_equal(scores.matrix.counts, plain([held[names[5]]]))
    found = {f.image_id: (f.error, f.message) for f in scores.failures}
    assert [found[n][0] for n in names[:4]] == [
        "SizeMismatch", "CorruptMask", "LabelOutOfRange", "InputError",
    ]  # fmt: skip
    assert "32x23" in found[names[0]][1]
    assert "32x24" in found[names[0]][1]
    assert "77" in found[names[2]][1]
    assert all("\n" not in message for _, message in found.values())


def test_an_image_that_is_all_void_is_done_but_ranked_nowhere(tmp_path):
    void = np.full((4, 6), 11, np.uint8)
    good = np.zeros((4, 6), np.uint8)
    scores = score(*stores(tmp_path, {"a": (void, good), "b": (good, good)}), runner=ONE)
    assert scores.done == 2
    assert [i.pair.truth.image_id for i in (*scores.worst, *scores.best)] == ["b"]
    assert sum(scores.histogram) == 1
    assert scores.matrix.void == 24


def test_the_extremes_are_the_extremes(tmp_path, small_chunks):
    rng, held = np.random.default_rng(3), {}
    for n in range(9):
        truth = rng.integers(0, 3, (20, 20)).astype(np.uint8)
        wrong = rng.random(truth.shape) < 0.1 * n
        held[f"i{n}"] = truth, np.where(wrong, (truth + 1) % 3, truth).astype(np.uint8)
    scores = score(*stores(tmp_path, held), runner=LocalRunner(2), extremes=3)
    assert [i.pair.truth.image_id for i in scores.worst] == ["i8", "i7", "i6"]
    assert [i.pair.truth.image_id for i in scores.best] == ["i0", "i1", "i2"]
    assert scores.histogram[-1] == 1
    assert sum(scores.histogram) == 9


# --- label spaces ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mine", "theirs", "named", "scored"),
    [
        ("camvid-32", "camvid-11", None, "camvid-11"),
        ("camvid-11", "camvid-32", None, "camvid-11"),
        ("cityscapes-34", "cityscapes-19", None, "cityscapes-34"),
        ("nyu-894", "nyu-40", None, "nyu-40"),
        ("nyu-894", "nyu-894", None, "nyu-894"),
        ("nyu-894", "nyu-894", "nyu-13", "nyu-13"),
        ("camvid-32", "cityscapes-34", "unified", "unified"),
    ],
)
def test_labels_of_two_spaces_are_compared_in_one(tmp_path, mine, theirs, named, scored):
    source, other, target = map(label_space, (mine, theirs, scored))
    rng = np.random.default_rng(5)
    sides = []
    for space in (source, other):
        ids = np.flatnonzero(space.allowed())
        sides.append(rng.choice(ids, (40, 50)).astype(space.dtype))
    truth = store_of(tmp_path / "t", [record("x", sides[0], source)], source)
    pred = store_of(tmp_path / "p", [record("x", sides[1], other)], other)
    scores = score(truth, pred, runner=ONE, label_space=named)
    assert scores.space.name == scored
    # The same by remapping pixels: slower, and without any look-up on counts.
    both = [find_remap(s, target).apply(m) for s, m in zip((source, other), sides, strict=True)]
    expected = np.zeros_like(scores.matrix.counts)
    positions = {i: k for k, i in enumerate(target.train_ids)}
    for t, p in zip(both[0].ravel().tolist(), both[1].ravel().tolist(), strict=True):
        if t in positions:
            expected[positions[t], positions.get(p, -1)] += 1
    np.testing.assert_array_equal(scores.matrix.counts, expected)
    assert (scores.truth_loss is None) == (mine == scored)


def test_what_a_remap_loses_is_reported(tmp_path):
    rich = LabelSpace(
        "rich",
        (*CAMVID.classes, LabelClass(20, "Dragon", (1, 2, 3))),
        CAMVID.ignore_index,
    )
    mask = np.zeros((4, 6), np.uint8)
    mask[0] = 20
    truth = store_of(tmp_path / "t", [record("x", mask, rich)], rich)
    pred = store_of(tmp_path / "p", [record("x", np.zeros_like(mask))])
    scores = score(truth, pred, runner=ONE)
    assert scores.truth_loss is not None
    assert scores.truth_loss.to_void == {"Dragon": 6}
    assert scores.predicted_loss is None
    assert scores.matrix.void == 6


def test_rows_of_several_spaces_need_a_name(tmp_path):
    wide = label_space("camvid-32")
    rows = [
        record("a", np.zeros((4, 6), np.uint8)),
        record("b", np.full((4, 6), wide.by_name["Sky"].id, np.uint8), wide),
    ]
    pred = [record(n, np.zeros((4, 6), np.uint8)) for n in "ab"]
    truth = store_of(tmp_path / "t", rows, CAMVID, wide)
    pred = store_of(tmp_path / "p", pred)
    with pytest.raises(UsageError, match="--label-space"):
        score(truth, pred, runner=ONE)
    scores = score(truth, pred, runner=ONE, label_space="camvid-11")
    assert scores.tally.pixel_accuracy == 1.0


def test_spaces_without_a_way_between_them_are_refused(tmp_path):
    odd = LabelSpace("odd", (LabelClass(0, "wyvern", (9, 9, 9)),), 255)
    mask = np.zeros((4, 6), np.uint8)
    truth = store_of(tmp_path / "t", [record("x", mask)])
    pred = store_of(tmp_path / "p", [record("x", mask, odd)], odd)
    with pytest.raises(RemapError):
        score(truth, pred, runner=ONE)


def test_figures_are_plain_json_values(tmp_path):
    good = np.zeros((4, 6), np.uint8)
    figures = score(*stores(tmp_path, {"a": (good, good)}), runner=ONE).figures()
    assert figures["miou"] == 1.0
    assert figures["classes"]["Sky"]["iou"] == 1.0
    assert figures["classes"]["Road"]["iou"] is None
    assert not any(isinstance(v, float) and math.isnan(v) for v in figures.values())
