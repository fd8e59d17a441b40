"""Bootstrap intervals: they hold the truth as often as they say, and no order changes them."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
from scipy import stats

from pipeline.errors import UnknownName, UsageError
from pipeline.metrics import sums
from pipeline.metrics.bootstrap import intervals
from pipeline.metrics.confusion import Tally
from pipeline.metrics.resample import interval, poisson_weights, swap_signs, weighted_sums
from pipeline.metrics.units import Distinct, Units
from tests.pipeline.tallies import Population, keys_of, space_of


def gathered(measure, space, tallies, keys, rows=None, chunks=1):
    """Gather in chunks, each in a worker of its own, merged after pickling as between processes."""
    total = measure.start(space)
    for part in np.array_split(np.arange(len(keys)), chunks):
        worker = measure.start(space)
        held = {name: [cells[i] for i in part] for name, cells in (rows or {}).items()}
        worker.update(tallies[part], keys[part], held)
        total.merge(pickle.loads(pickle.dumps(worker)))
    return total.figures()


# --- coverage -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("classes", "images"), [(5, 60), (12, 100)])
def test_intervals_hold_the_truth_nineteen_times_of_twenty(classes, images):
    population, space = Population.of(classes), space_of(classes)
    rng, measure = np.random.default_rng(5), intervals(replicates=500)
    truth = {"miou": population.iou.mean(), "pixel_accuracy": population.accuracy}
    hits = dict.fromkeys(truth, 0)
    for _ in range(1000):
        sample = measure.start(space)
        sample.update(population.draw(rng, images), keys_of(rng, images), {})
        found = sample.figures()
        for name, value in truth.items():
            low, high = found[name]
            hits[name] += low <= value <= high
    assert {name: 930 <= count <= 970 for name, count in hits.items()} == dict.fromkeys(truth, True)


def test_groups_are_resampled_together():
    """Ten frames a drive, all alike: by image the interval is far too sure, by drive it is not."""
    population, space = Population.of(4), space_of(4)
    rng, truth = np.random.default_rng(3), population.iou.mean()
    hits = {None: 0, "image_id:^(.*)/": 0}
    for _ in range(200):
        tallies = np.repeat(population.draw(rng, 40), 10, axis=0)
        rows = {"image_id": [f"drive{n // 10}/{n}" for n in range(400)]}
        salt = keys_of(rng, 1)
        for by in hits:
            measure = intervals(replicates=200, by=by)
            # Drives are named alike in each repeat: their keys are salted here.
            keys = measure.units.of(np.arange(400, dtype=np.uint64), rows) ^ salt
            sample = intervals(replicates=200).start(space)
            sample.update(tallies, keys, {})
            low, high = sample.figures()["miou"]
            hits[by] += low <= truth <= high
    assert hits[None] < 120
    assert hits["image_id:^(.*)/"] > 178


# --- exactness ------------------------------------------------------------------------------------


def test_order_and_chunks_change_nothing():
    rng, space = np.random.default_rng(0), space_of(7)
    tallies, keys = Population.of(7).draw(rng, 700), keys_of(rng, 700)
    rows = {"image_id": [f"{n % 90}/x" for n in range(700)]}
    for measure in (intervals(), intervals(by=r"image_id:^(\d+)/")):
        once = gathered(measure, space, tallies, keys, rows)
        order = rng.permutation(700)
        mixed = {"image_id": [rows["image_id"][i] for i in order]}
        assert gathered(measure, space, tallies[order], keys[order], mixed, chunks=9) == once
    assert once["units"] == 90


def test_sums_are_those_of_images_drawn_again_and_again():
    rng = np.random.default_rng(1)
    tallies, keys = Population.of(3).draw(rng, 50), keys_of(rng, 50)
    weights = poisson_weights(keys, 120)
    expected = [
        sum((tallies[i] * int(weights[i, b]) for i in range(50)), np.zeros((3, 3), np.int64))
        for b in range(120)
    ]
    np.testing.assert_array_equal(weighted_sums(weights, tallies), expected)


def test_weighted_sums_of_huge_images_are_exact():
    tallies = np.full((256, 3, 1), 178_956_969, np.int64)
    weights = poisson_weights(np.arange(256, dtype=np.uint64), 100)
    exact = weights.astype(object).sum(axis=0) * 178_956_969
    assert weighted_sums(weights, tallies)[:, 0, 0].tolist() == exact.tolist()


def test_weights_are_poisson_and_independent():
    weights = poisson_weights(np.arange(4000, dtype=np.uint64), 402)  # counted keys: the worst case
    counts = np.bincount(weights.ravel(), minlength=10)
    expected = stats.poisson.pmf(np.arange(7), 1) * weights.size
    assert (
        stats.chisquare(
            [*counts[:6], counts[6:].sum()], [*expected[:6], weights.size - expected[:6].sum()]
        ).pvalue
        > 1e-3
    )
    off = np.corrcoef(weights[:, :40].T) - np.eye(40)
    assert np.abs(off).max() < 5 / math.sqrt(4000)
    between = np.corrcoef(weights[:40]) - np.eye(40)
    assert np.abs(between).max() < 5 / math.sqrt(402)
    # More replicates begin with the same ones.
    few = np.arange(9, dtype=np.uint64)
    np.testing.assert_array_equal(poisson_weights(few, 7), poisson_weights(few, 400)[:, :7])


def test_signs_are_even_and_not_those_of_the_weights():
    keys = np.arange(3000, dtype=np.uint64)
    signs = swap_signs(keys, 300)
    assert set(np.unique(signs)) == {-1, 1}
    assert abs(signs.mean()) < 5 / math.sqrt(signs.size)
    weights = poisson_weights(keys, 300).astype(float) - 1
    assert abs((weights * signs).mean()) < 5 / math.sqrt(signs.size)


def test_scores_of_sums_are_those_of_a_tally():
    tallies = Population.of(6).draw(np.random.default_rng(2), 30)
    tallies[0] = 0
    tallies[1:5, :, 2] = 0
    found, ious = sums.headline(tallies), sums.iou(tallies)
    for n, counts in enumerate(tallies):
        tally = Tally(*counts)
        np.testing.assert_allclose(ious[n], tally.iou)
        for name in sums.HEADLINE:
            np.testing.assert_allclose(found[name][n], getattr(tally, name))


def test_the_interval_of_a_mean_is_the_t_interval():
    """Of many normal values it is known; replicates of few are widened to it."""
    rng = np.random.default_rng(4)
    for units in (8, 500):
        replicates = rng.normal(3.0, math.sqrt((units - 1) / units), 200_000)
        low, high = interval(3.0, replicates, units, 0.95)
        reach = stats.t.ppf(0.975, units - 1)
        assert (low, high) == pytest.approx((3 - reach, 3 + reach), abs=0.03)


# --- edges ----------------------------------------------------------------------------------------


def test_few_images_say_so_and_one_has_no_interval():
    rng, space = np.random.default_rng(0), space_of(4)
    tallies, keys = Population.of(4).draw(rng, 40), keys_of(rng, 40)
    assert "note" not in gathered(intervals(), space, tallies, keys)
    few = gathered(intervals(), space, tallies[:12], keys[:12])
    assert "12 images" in few["note"]
    one = gathered(intervals(), space, tallies[:1], keys[:1])
    assert one["miou"] is None
    none = gathered(intervals(), space, tallies[:0], keys[:0])
    assert (none["images"], none["miou"], none["classes"]["c0"]["iou"]) == (0, None, None)


def test_a_class_is_as_sure_as_the_images_that_hold_it():
    rng, space = np.random.default_rng(0), space_of(3)
    tallies, keys = Population.of(3).draw(rng, 300), keys_of(rng, 300)
    tallies[1:, :, 1], tallies[0, :, 1] = 0, (5, 10, 12)
    tallies[:, :, 2] = 0
    found = gathered(intervals(), space, tallies, keys)["classes"]
    assert found["c1"] == {"iou": None, "images": 1}
    assert found["c2"] == {"iou": None, "images": 0}
    low, high = found["c0"]["iou"]
    total = tallies[:, :, 0].sum(axis=0)
    assert 0 < low < total[0] / (total[1] + total[2] - total[0]) < high < 1


def test_units_are_columns_and_patterns():
    keys = np.arange(4, dtype=np.uint64)
    rows = {"image_id": ["a/1", "a/2", "b/1", "stray"], "split": ["val", "val", None, "test"]}
    assert Units.parse(None).of(keys, rows) is keys
    drive = Units.parse("image_id:^([a-z])/").of(keys, rows)
    assert drive[0] == drive[1] != drive[2]
    assert drive[3] == 3  # nothing found: it stands alone
    split = Units.parse("split").of(keys, rows)
    assert split[0] == split[1] != split[3]
    assert split[2] == 2
    with pytest.raises(UnknownName, match="choose from: dataset"):
        Units.parse("mask")
    with pytest.raises(UsageError, match="no regular expression"):
        Units.parse("image_id:(")


@pytest.mark.parametrize("options", [{"replicates": 10}, {"level": 95}])
def test_options_that_give_no_interval_are_refused(options):
    with pytest.raises(UsageError):
        intervals(**options)


def test_distinct_keys_are_counted_in_bounded_memory():
    few, many = Distinct(), Distinct()
    few.add(np.arange(900, dtype=np.uint64))
    few.add(np.arange(500, dtype=np.uint64))
    assert few.count == 900
    for start in range(0, 200_000, 20_000):
        part = Distinct()
        part.add(np.arange(start, start + 20_000, dtype=np.uint64))
        many += part
    assert many.count == pytest.approx(200_000, rel=0.1)
    assert len(pickle.dumps(many)) < 10_000
