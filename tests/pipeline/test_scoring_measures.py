"""Measures fed by scoring: all or nothing, the same in any order, and a third store in one pass."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pytest

import pipeline.metrics.pair_scores as parts
import pipeline.scoring as module
from pipeline.errors import InputError, UsageError
from pipeline.label_space import label_space
from pipeline.masks import encode
from pipeline.metrics import MEASURES, measures
from pipeline.metrics.block import image_schema
from pipeline.metrics.tally_measure import GAINED, KEPT, LOST
from pipeline.record import File
from pipeline.runner import LocalRunner
from pipeline.scoring import score
from tests.pipeline.label_pairs import instance
from tests.pipeline.test_scoring import (
    CAMVID,
    ONE,
    masks_of,
    noisy,
    plain,
    record,
    store_of,
    stores,
)

CLASSES = 11


@dataclass
class Heard:
    """Keeps what it is told, in order."""

    refuse: tuple[str, ...] = ()
    names: list = field(default_factory=list)
    rows: list = field(default_factory=list)

    def update(self, pair):
        self.names.append(pair.image_id)  # counted before it refuses: nothing of it may stay
        if pair.image_id in self.refuse:
            raise InputError(pair.image_id, "no confidence", "label it again")
        self.rows.append((pair.truth_row["height"], pair.predicted_row["width"]))
        return {"right": int((pair.truth_positions == pair.predicted_positions).sum())}

    def merge(self, other):
        self.names += other.names
        self.rows += other.rows

    def figures(self):
        return {"names": self.names, "rows": self.rows}


@dataclass(frozen=True)
class Hears:
    refuse: tuple[str, ...] = ()
    name: str = "hears"
    truth_columns: ClassVar = ("height",)
    predicted_columns: ClassVar = ("width",)
    image_columns: ClassVar = (pa.field("right", pa.int64()),)

    def start(self, space):
        return Heard(self.refuse)


@dataclass
class Held:
    blocks: list = field(default_factory=list)

    def update(self, tallies, keys, rows, *, baseline=None, changes=None):
        self.blocks.append((tallies, keys, rows, baseline, changes))

    def merge(self, other):
        self.blocks += other.blocks

    def figures(self):
        return {
            "tallies": _joined([b[0] for b in self.blocks]),
            "keys": _joined([b[1] for b in self.blocks]),
            "names": [n for b in self.blocks for n in b[2]["image_id"]],
            "baseline": _joined([b[3] for b in self.blocks]),
            "changes": _joined([b[4] for b in self.blocks]),
        }


def _joined(found):
    return None if None in [None if f is None else 1 for f in found] else np.concatenate(found)


@dataclass(frozen=True)
class Holds:
    paired: bool = False
    name: str = "holds"
    columns: ClassVar = ("image_id",)

    def start(self, space):
        return Held()


@pytest.fixture
def small_chunks(monkeypatch):
    for name, value in (("_MOST_PAIRS", 3), ("_FEWEST_PAIRS", 1), ("_FEWEST_BYTES", 1)):
        monkeypatch.setattr(module, name, value)


def tally_of(truth, predicted):
    counts = plain([(truth, predicted)])
    return np.stack([np.diag(counts), counts.sum(1), counts.sum(0)[:-1]])


def changes_of(earlier, later):
    sides = [np.minimum(side, CLASSES) for side in (earlier, later)]
    found = np.zeros((3, CLASSES + 1), np.int64)
    for c in range(CLASSES + 1):
        was, now = (side == c for side in sides)
        found[KEPT, c] = (was & now).sum()
        found[GAINED, c], found[LOST, c] = (now & ~was).sum(), (was & ~now).sum()
    return found


def test_a_pair_is_counted_by_all_measures_or_by_none(tmp_path, small_chunks):
    held = masks_of(8)
    pair, batches = stores(tmp_path, held), []
    refused = ("i001", "i004")
    scores = score(
        *pair, runner=LocalRunner(2), measures=[Hears(name="first"), Hears(refused)],
        tally_measures=[Holds()], on_images=batches.append,
    )  # fmt: skip
    kept = [n for n in sorted(held) if n not in refused]
    assert (scores.inputs, scores.done, scores.skipped, scores.failed) == (8, 6, 0, 2)
    assert [f.image_id for f in scores.failures] == list(refused)
    assert scores.measured["first"]["names"] == scores.measured["hears"]["names"] == kept
    assert scores.measured["holds"]["names"] == kept
    np.testing.assert_array_equal(scores.matrix.counts, plain(held[n] for n in kept))
    rows = pa.Table.from_batches(batches)
    assert rows.schema == image_schema(Hears.image_columns * 2)
    assert rows["image_id"].to_pylist() == kept


def test_measures_see_the_columns_they_ask_for_and_give_columns_of_their_own(tmp_path):
    held, batches = masks_of(3), []
    scores = score(
        *stores(tmp_path, held), runner=ONE, measures=[Hears()], on_images=batches.append
    )
    assert scores.measured["hears"]["rows"] == [(24, 32)] * 3
    rows = pa.Table.from_batches(batches)
    for name, right in zip(rows["image_id"].to_pylist(), rows["right"].to_pylist(), strict=True):
        truth, predicted = held[name]
        assert right == (truth == predicted).sum()


@pytest.mark.parametrize("cells", [1 << 20, 30])
def test_tallies_come_in_the_order_of_truth_whatever_the_blocks(
    tmp_path, small_chunks, monkeypatch, cells
):
    monkeypatch.setattr(parts, "_MOST_CELLS", cells)
    held = masks_of(7)
    found = score(
        *stores(tmp_path, held, fragments=2), runner=LocalRunner(3), tally_measures=[Holds()]
    ).measured["holds"]
    assert found["names"] == sorted(held)
    expected = np.stack([tally_of(*held[n]) for n in sorted(held)])
    np.testing.assert_array_equal(found["tallies"], expected)
    assert found["keys"].dtype == np.uint64
    assert len(set(found["keys"].tolist())) == 7
    again = score(*stores(tmp_path / "again", held), runner=ONE, tally_measures=[Holds()])
    np.testing.assert_array_equal(found["keys"], again.measured["holds"]["keys"])


def test_a_baseline_is_compared_in_the_same_pass(tmp_path, small_chunks):
    held, rng = masks_of(7), np.random.default_rng(9)
    earlier = {n: noisy(rng, ids=np.arange(12, dtype=np.uint8))[1] for n in held}
    rows = [record(n, m) for n, m in earlier.items() if n != "i002"]
    rows[0] = replace(rows[0], mask=None)
    rows[3] = replace(rows[3], mask=File(None, rows[3].mask.bytes[:50]))
    base = store_of(tmp_path / "base", rows)
    scores = score(
        *stores(tmp_path, held), runner=LocalRunner(2), baseline=base,
        tally_measures=[Holds(), Holds(True, "pairs")],
    )  # fmt: skip
    compared = ["i001", "i003", "i005", "i006"]
    assert (scores.done, scores.failed) == (7, 0)
    assert (scores.compared, scores.incomparable) == (4, 1)
    assert [f.image_id for f in scores.incomparable_failures] == ["i004"]
    assert scores.measured["holds"]["names"] == sorted(held)
    found = scores.measured["pairs"]
    assert found["names"] == compared
    for k, n in enumerate(compared):
        np.testing.assert_array_equal(found["tallies"][k], tally_of(*held[n]))
        np.testing.assert_array_equal(found["baseline"][k], tally_of(held[n][0], earlier[n]))
        np.testing.assert_array_equal(found["changes"][k], changes_of(earlier[n], held[n][1]))


def test_labels_are_compared_with_labels(tmp_path):
    held = masks_of(3)
    held["same"] = (held["i000"][0],) * 2
    scores = score(*stores(tmp_path, held), runner=ONE, agreement=True)
    found = scores.figures()
    equal = sum(int((a == b).sum()) for a, b in held.values())
    assert found["agreement"] == equal / (4 * 24 * 32)
    assert (found["images_changed"], found["images_same"]) == (3, 1)
    changes = sum(changes_of(a, b) for a, b in held.values())
    for k, name in enumerate([*scores.class_names, "no label"]):
        churn = found["churn"][name]
        assert [churn[x] for x in ("kept", "gained", "lost")] == changes[:, k].tolist()
        assert churn["churn"] == changes[1:, k].sum() / changes[:, k].sum()
    assert not {"pixel_accuracy", "mean_accuracy", "coverage"} & found.keys()
    assert "recall" not in found["classes"]["Sky"]


def test_the_space_is_told_before_the_work(tmp_path):
    told = []

    def stop(space, taken):
        told.append((space, taken))
        raise UsageError("no such class")

    with pytest.raises(UsageError):
        score(*stores(tmp_path, masks_of(1)), runner=ONE, on_space=stop)
    assert told == [(CAMVID, ())]


def test_measures_are_known_by_name():
    with pytest.raises(UsageError, match="boundary"):
        measures(["boundry"])
    assert measures([]) == ()
    assert list(MEASURES) == sorted(MEASURES)


def test_noise_is_scored_in_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "_MOST_ENTRIES", 50)
    space, rng = label_space("nyu-894"), np.random.default_rng(2)
    held = {f"n{k}": [rng.integers(1, 895, (9, 9)).astype(np.uint16) for _ in "ab"] for k in "xyz"}
    sides = [
        store_of(tmp_path / f"s{k}", [record(n, p[k], space) for n, p in held.items()], space)
        for k in (0, 1)
    ]
    scores = score(*sides, runner=ONE)
    assert scores.done == 3
    assert scores.tally.pixels == 3 * 81
    assert scores.tally.correct == sum(int((a == b).sum()) for a, b in held.values())


def test_a_prediction_without_confidence_fails_alone(tmp_path):
    held = masks_of(4)
    sure = File(None, encode(np.full((24, 32), 200, np.uint8)))
    pred = [record(n, p, confidence=sure) for n, (_, p) in held.items()]
    pred[1] = replace(pred[1], confidence=None)
    sides = stores(tmp_path, held)[0], store_of(tmp_path / "sure", pred)
    scores = score(*sides, runner=ONE, measures=measures(["calibration"]))
    assert (scores.inputs, scores.done, scores.skipped, scores.failed) == (4, 3, 0, 1)
    assert [f.image_id for f in scores.failures] == ["i001"]
    kept = [h for n, h in held.items() if n != "i001"]
    np.testing.assert_array_equal(scores.matrix.counts, plain(kept))


@pytest.mark.parametrize(
    "extra",
    ['{"part_of": "x"}', '{"part_of":', '["part_of"]', '{"part_of": 1e400}', '"part_of"' + "[" * 5],
)
@pytest.mark.parametrize("side", [0, 1])
def test_an_object_that_names_no_whole_fails_its_image_only(tmp_path, extra, side):
    space = label_space("cityscapes-19")
    mask = np.full((8, 8), 13, np.uint8)
    sound = instance(mask == 13, 13, score=0.5)
    sides = [[record(n, mask, space, instances=(sound,)) for n in ("a", "b")] for _ in range(2)]
    sides[side][1] = replace(sides[side][1], instances=(replace(sound, extra=extra),))
    pair = [store_of(tmp_path / str(n), rows, space) for n, rows in enumerate(sides)]
    scores = score(*pair, runner=ONE, measures=measures(["panoptic"]))
    assert [(f.image_id, f.error) for f in scores.failures] == [("b", "BadAnnotation")]
    assert (scores.inputs, scores.done) == (2, 1)
    assert scores.measured["panoptic"]["classes"]["car"]["tp"] == 1
