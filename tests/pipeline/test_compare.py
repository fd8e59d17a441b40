"""Two predictions compared: p-values are even under the null, real differences are found."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from scipy import stats

from pipeline.errors import UsageError
from pipeline.metrics.compare import baseline, benjamini_hochberg
from tests.pipeline.tallies import Population, keys_of, space_of


def names(count, prefix="i"):
    return {
        "image_id": [f"{prefix}{n:04d}" for n in range(count)],
        "dataset": ["toy"] * count,
        "split": ["val"] * count,
    }


def compared(measure, space, this, other, keys, rows=None, *, changes=None, chunks=1):
    """Compare in chunks, each in a worker of its own, merged after pickling."""
    rows = rows or names(len(keys))
    total = measure.start(space)
    for part in np.array_split(np.arange(len(keys)), chunks):
        worker = measure.start(space)
        worker.update(
            this[part],
            keys[part],
            {name: [cells[i] for i in part] for name, cells in rows.items()},
            baseline=None if other is None else other[part],
            changes=None if changes is None else changes[part],
        )
        total.merge(pickle.loads(pickle.dumps(worker)))
    return total.figures()


def two_predictions(rng, population, images, gain=0.0):
    """Return two predictions of the same truth; a share `gain` of the first one's errors is put
    right."""
    first = population.draw(rng, images)
    truth = first[:, 1]
    share = rng.beta(population.right, population.wrong, truth.shape)
    both = []
    for quality, mended in ((np.divide(first[:, 0], np.maximum(truth, 1)), gain), (share, 0.0)):
        right = truth * (quality + (1 - quality) * mended)
        lost = (truth - right).sum(axis=1, keepdims=True)
        tallies = np.stack([right, truth, right + lost * population.spread], axis=1)
        both.append(np.rint(tallies).astype(np.int64))
    return both


# --- what the p-values promise --------------------------------------------------------------------


def test_without_a_difference_p_is_below_a_twentieth_once_in_twenty():
    population, space, rng = Population.of(4), space_of(4), np.random.default_rng(8)
    measure = baseline(replicates=100, rounds=199, extremes=0)
    found = []
    for _ in range(1000):
        this, other = two_predictions(rng, population, 40)
        figures = compared(measure, space, this, other, keys_of(rng, 40))
        found.append([figures[name]["p"] for name in ("miou", "pixel_accuracy")])
    for p in np.transpose(found):
        assert 0.03 <= (p < 0.05).mean() <= 0.07
        assert stats.kstest(p, "uniform").pvalue > 1e-3


def test_a_real_difference_is_found_and_its_interval_holds_it():
    population, space, rng = Population.of(4), space_of(4), np.random.default_rng(9)
    measure = baseline(replicates=200, rounds=199, extremes=0)
    found, hits = 0, 0
    # Three errors in ten are mended: the difference over all images there are.
    right = population.right / (population.right + population.wrong)
    truth = population.presence * population.pixels

    def miou(share):
        kept = truth * share
        predicted = kept + (truth - kept).sum() * population.spread
        return (kept / (truth + predicted - kept)).mean()

    real = miou(right + (1 - right) * 0.3) - miou(right)
    for _ in range(200):
        this, other = two_predictions(rng, population, 100, gain=0.3)
        figures = compared(measure, space, this, other, keys_of(rng, 100))["miou"]
        found += figures["p"] < 0.05
        low, high = figures["interval"]
        hits += low <= real <= high
    assert found > 150
    assert 180 <= hits <= 199


def test_p_is_that_of_all_swaps_of_few_images():
    """Eight images have 256 ways to swap: their share is known."""
    population, space, rng = Population.of(3), space_of(3), np.random.default_rng(1)
    this, other = two_predictions(rng, population, 8)

    def miou(tallies):
        total = tallies.sum(axis=0)
        return np.mean(total[0] / (total[1] + total[2] - total[0]))

    real = abs(miou(this) - miou(other))
    ways = []
    for way in range(256):
        swap = np.array([way >> k & 1 for k in range(8)], bool)[:, None, None]
        ways.append(abs(miou(np.where(swap, other, this)) - miou(np.where(swap, this, other))))
    exact = np.mean(np.array(ways) >= real - 1e-12)
    found = compared(baseline(rounds=20_000), space, this, other, keys_of(rng, 8))
    assert found["miou"]["p"] == pytest.approx(exact, abs=0.015)
    assert "8 images" in found["note"]


def test_adjusted_p_is_scipys():
    p = np.random.default_rng(0).random(30) ** 3
    np.testing.assert_allclose(benjamini_hochberg(p.tolist()), stats.false_discovery_control(p))


# --- exactness ------------------------------------------------------------------------------------


def test_order_and_chunks_change_nothing():
    population, space, rng = Population.of(5), space_of(5), np.random.default_rng(2)
    this, other = two_predictions(rng, population, 400)
    this[::3] = other[::3]
    keys, rows = keys_of(rng, 400), names(400)
    changes = rng.integers(0, 99, (400, 3, 6))
    once = compared(baseline(), space, this, other, keys, rows, changes=changes)
    order = rng.permutation(400)
    mixed = {name: [cells[i] for i in order] for name, cells in rows.items()}
    again = compared(
        baseline(), space, this[order], other[order], keys[order], mixed,
        changes=changes[order], chunks=7,
    )  # fmt: skip
    assert again == once
    assert once["same"] >= 134


def test_the_scores_are_those_of_either_and_swapping_sides_turns_the_signs():
    population, space, rng = Population.of(4), space_of(4), np.random.default_rng(3)
    this, other = two_predictions(rng, population, 60)
    keys = keys_of(rng, 60)
    there, back = (
        compared(baseline(), space, a, b, keys) for a, b in ((this, other), (other, this))
    )
    for tallies, side in ((this, "this"), (other, "baseline")):
        total = tallies.sum(axis=0)
        iou = total[0] / (total[1] + total[2] - total[0])
        assert there["miou"][side] == pytest.approx(iou.mean())
        assert there["pixel_accuracy"][side] == pytest.approx(total[0].sum() / total[1].sum())
        assert [c[side] for c in there["classes"].values()] == pytest.approx(iou.tolist())
    assert back["miou"]["difference"] == -there["miou"]["difference"]
    assert back["miou"]["p"] == there["miou"]["p"]
    assert (back["better"], back["worse"]) == (there["worse"], there["better"])
    assert [m["image_id"] for m in back["most_worse"]] == [
        m["image_id"] for m in there["most_better"]
    ]


def test_the_images_that_moved_most_are_named_by_their_own_miou():
    space, rows = space_of(1), names(6)
    truth = np.full(6, 100)
    this = np.stack([[50, 60, 50, 50, 50, 10], truth, truth], axis=1)[:, :, None]
    other = np.stack([[50, 50, 50, 40, 90, 40], truth, truth], axis=1)[:, :, None]
    found = compared(baseline(extremes=2), space, this, other, np.arange(6, dtype=np.uint64), rows,
                     chunks=3)  # fmt: skip
    assert (found["better"], found["worse"], found["same"]) == (2, 2, 2)
    assert [m["image_id"] for m in found["most_better"]] == ["i0001", "i0003"]
    assert [m["image_id"] for m in found["most_worse"]] == ["i0004", "i0005"]
    worst = found["most_worse"][0]
    assert worst["difference"] == pytest.approx(50 / 150 - 90 / 110)
    assert (worst["dataset"], worst["split"]) == ("toy", "val")


def test_changes_are_counted_without_truth_too():
    space = space_of(2)
    # Of 10 pixels: 6 stay class 0, one goes from 0 to 1, one from 1 to no label, 2 keep none.
    changes = np.array([[[6, 0, 2], [0, 1, 1], [1, 1, 0]]])
    found = compared(baseline(), space, np.zeros((1, 3, 2), int), None, np.zeros(1, np.uint64),
                     changes=changes)  # fmt: skip
    assert found["agreement"] == 0.8
    assert found["churn"]["c0"] == {"kept": 6, "gained": 0, "lost": 1}
    assert found["churn"]["c1"] == {"kept": 0, "gained": 1, "lost": 1}
    assert "miou" not in found


def test_the_same_prediction_differs_by_nothing():
    tallies = Population.of(3).draw(np.random.default_rng(0), 50)
    tallies[:, :, 2] = 0
    found = compared(baseline(), space_of(3), tallies, tallies, np.arange(50, dtype=np.uint64))
    assert (found["miou"]["difference"], found["miou"]["p"]) == (0.0, 1.0)
    assert found["miou"]["interval"] == [0.0, 0.0]
    assert found["classes"]["c2"]["p"] is None
    assert (found["same"], found["most_better"]) == (50, [])


def test_too_few_rounds_are_refused():
    with pytest.raises(UsageError, match="rounds"):
        baseline(rounds=5)
