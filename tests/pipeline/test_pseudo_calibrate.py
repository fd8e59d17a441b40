"""Thresholds and maps from held-out truth: against counting by hand, SciPy, and simulation."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy.stats import binomtest

from pipeline.errors import UsageError
from pipeline.pseudo import fit
from pipeline.pseudo.bounds import BOUNDS, design_effect, lower_bounds, wilson_lower
from pipeline.pseudo.calibrate import Calibration, Goal, calibrate, quota_level
from pipeline.pseudo.held_out import HeldOut, at_or_above, gather
from pipeline.runner import LocalRunner
from tests.pipeline.pseudo_world import SPACE, image, record, store_of, stores


def positions(ids):
    return np.where((ids >= 3) & (ids <= 6), ids - 3, 255).astype(np.uint8)


def held_of(images, replicates=0) -> HeldOut:
    held = HeldOut.empty(SPACE, replicates)
    for n, (truth, predicted, sure) in enumerate(images):
        held.add(positions(truth), positions(predicted), sure, 7919 * (n + 1))
    return held


def simulated(seed, count, replicates=0, **kind):
    rng = np.random.default_rng(seed)
    return held_of([image(rng, **kind) for _ in range(count)], replicates)


def test_wilson_s_bound_is_scipy_s():
    rng = np.random.default_rng(0)
    for _ in range(50):
        n = int(rng.integers(1, 3000))
        k = int(rng.integers(0, n + 1))
        wanted = binomtest(k, n).proportion_ci(0.9, method="wilson").low
        found = wilson_lower(np.array([float(k)]), np.array([float(n)]), 1.6448536269514722)
        assert found[0] == pytest.approx(wanted, abs=1e-9)
    assert wilson_lower(np.zeros(1), np.zeros(1), 1.645)[0] == 0


def test_the_sums_are_what_counting_pixel_by_pixel_gives(tmp_path):
    truth, pred = stores(tmp_path, 9, void=0.2)
    held = gather(truth, pred, LocalRunner(2))
    right, pixels, confusion = np.zeros((4, 256)), np.zeros((4, 256)), np.zeros((4, 4))
    rng = np.random.default_rng(0)
    for _ in range(9):
        for t, p, level in zip(*(m.ravel() for m in image(rng, void=0.2)), strict=True):
            if t != 255:
                pixels[p - 3, level] += 1
                right[p - 3, level] += t == p
                confusion[p - 3, t - 3] += 1
    assert (held.images, held.failed, held.unpredicted) == (9, 0, 0)
    assert np.array_equal(held.right, right)
    assert np.array_equal(held.pixels, pixels)
    assert np.array_equal(held.confusion, confusion)
    assert np.array_equal(held.truth, confusion.sum(axis=0))


def test_bad_pairs_are_counted_and_named(tmp_path):
    rng = np.random.default_rng(1)
    made = [image(rng) for _ in range(5)]
    small = made[3][1][:8]
    rows = [record(f"{n}", *m[1:]) for n, m in enumerate(made[:2])]
    rows.append(record("2", made[2][1]))  # no confidence
    rows.append(record("3", small, small))  # another size
    truth = store_of(tmp_path / "t", [record(f"{n}", m[0]) for n, m in enumerate(made)])
    held = gather(truth, store_of(tmp_path / "p", rows), LocalRunner(1))
    assert (held.images, held.failed, held.unpredicted, held.unlabelled) == (2, 2, 1, 0)
    assert held.images + held.failed + held.unpredicted + held.unlabelled == truth.count()
    assert {f.image_id for f in held.failures} == {"2", "3"}
    assert "--confidence" in next(f.message for f in held.failures if f.image_id == "2")


def test_the_design_effect_is_that_of_a_ratio_s_linearised_variance():
    rng = np.random.default_rng(2)
    images = [image(rng) for _ in range(25)]
    held = held_of(images)
    level, c = 120, 1
    r, n = np.zeros(25), np.zeros(25)
    for k, (truth, predicted, sure) in enumerate(images):
        mine = (predicted == c + 3) & (sure >= level)
        n[k], r[k] = mine.sum(), (mine & (truth == predicted)).sum()
    p, m = r.sum() / n.sum(), (n > 0).sum()
    variance = m / (m - 1) * ((r - p * n) ** 2).sum() / n.sum() ** 2
    wanted = variance / (p * (1 - p) / n.sum())
    assert design_effect(held)[c, level] == pytest.approx(wanted)
    assert wanted > 20  # blocks of 64 pixels are right or wrong together


def test_bounds_hold_as_often_as_they_say_and_wilson_s_does_not():
    """80 samples of 30 images: pixels come in blocks of 64, so Wilson's bound is over-sure."""
    level = 200
    big = simulated(99, 2500)
    true = at_or_above(big.right)[:2, level] / at_or_above(big.pixels)[:2, level]
    holds = {bound: np.zeros(2) for bound in ("wilson", "design")}
    rounds = 80
    for seed in range(rounds):
        held = simulated(seed, 30)
        for bound, count in holds.items():
            count += lower_bounds(held, bound)[:2, level] <= true
    assert (holds["design"] / rounds > 0.9).all()
    assert (holds["wilson"] / rounds < 0.8).all()


def test_the_bootstrap_agrees_with_the_design_effect():
    held = simulated(5, 120, replicates=200)
    a, b = lower_bounds(held, "design"), lower_bounds(held, "bootstrap")
    levels = slice(0, 230, 10)
    assert np.abs(a[:2, levels] - b[:2, levels]).max() < 0.02
    assert (lower_bounds(held, "wilson")[0, levels] > b[0, levels]).all()


def test_precision_is_above_the_target_where_it_was_promised():
    """A 90 % target over 15 rounds: what is promised holds on images that were never seen."""
    fresh = simulated(1234, 1000)
    right, pixels = at_or_above(fresh.right), at_or_above(fresh.pixels)
    kept, promised = [], 0
    for seed in range(15):
        found = calibrate(simulated(seed, 150), Goal(target=0.9))
        for c, rule in enumerate(found.rules):
            if rule.sure is not None:
                promised += 1
                kept.append(right[c, rule.sure] / pixels[c, rule.sure])
    assert promised >= 30
    assert np.mean(kept) > 0.9
    assert np.mean(np.array(kept) > 0.89) > 0.9
    assert np.mean(kept) < 0.95  # and no more is thrown away than the promise takes


@pytest.mark.parametrize("bound", BOUNDS)
def test_no_class_is_starved(bound):
    held = simulated(3, 60, replicates=100)
    found = calibrate(held, Goal(target=0.93, quota=0.4, bound=bound))
    for c, rule in enumerate(found.rules):
        kept = at_or_above(held.pixels)[c, rule.keep]
        assert kept >= 0.4 * held.pixels[c].sum()
        assert rule.share == pytest.approx(kept / held.pixels[c].sum())
        if rule.why == "precision":
            assert rule.lower >= 0.93
            assert rule.keep == rule.sure
    assert {rule.why for rule in found.rules} & {"unmet", "starved"}


def test_classes_with_too_little_truth_are_listed():
    held = simulated(4, 3, shares=(0.7, 0.3, 0, 0))
    found = calibrate(held, Goal())
    assert found.listed("few") == ["a", "b"]
    assert found.listed("unseen") == ["c", "d"]
    assert [r.keep for r in found.rules[2:]] == [256, 256]
    bucket = np.zeros((4, 256), np.int64)
    bucket[2, [100, 200]] = 70, 30
    again = found.for_bucket(bucket)
    assert [r.keep for r in again.rules] == [256, 256, 100, 256]
    assert again.rules[2].share == 1


def test_a_quota_keeps_the_surest_share_and_no_more_than_it_must():
    rng = np.random.default_rng(0)
    for _ in range(200):
        counts = rng.integers(0, 4, 256) * (rng.random(256) < 0.1)
        quota = rng.random()
        level = quota_level(counts, quota)
        if not counts.sum():
            assert level == 256
            continue
        assert counts[level:].sum() >= quota * counts.sum()
        assert counts[level + 1 :].sum() < quota * counts.sum()


# --- maps -----------------------------------------------------------------------------------------


def test_maps_are_monotone_and_find_what_confidence_means():
    held = simulated(6, 600, power=2.0)
    maps = fit.maps(held.right, held.pixels)
    assert (np.diff(maps, axis=1) >= -1e-12).all()
    assert maps.min() >= 0
    assert maps.max() <= 1
    levels = np.arange(140, 250)
    assert np.abs(maps[0, levels] - (levels / 255) ** 2).mean() < 0.03
    before, after = fit.calibration_error(held.folds)
    assert before > 0.08
    assert after < 0.03


def test_the_temperature_is_found_again():
    """Right with probability q ** (1/T) / (...), T = 1.8."""
    q = np.clip(np.arange(256) / 255, 0.5 / 255, 1 - 0.5 / 255)
    warm = q ** (1 / 1.8)
    share = warm / (warm + (1 - q) ** (1 / 1.8))
    pixels = np.full((1, 256), 10**7)
    assert fit.temperature(np.round(share * pixels).astype(np.int64), pixels) == pytest.approx(
        1.8, abs=0.02
    )


def test_shares_of_wrong_pixels():
    found = fit.wrong_shares(np.array([[9, 1, 3], [0, 4, 0], [2, 2, 0]]))
    assert found.tolist() == [[0, 0.25, 0.75], [0, 0, 0], [0.5, 0.5, 0]]


# --- the file -------------------------------------------------------------------------------------


def test_the_file_says_everything_and_is_the_same_each_time():
    found = dataclasses.replace(calibrate(simulated(7, 30)), facts={"model": "m"})
    again = Calibration.from_json(found.to_json())
    assert again.to_json() == found.to_json()
    assert again.rules == found.rules
    assert again.space == SPACE
    assert np.allclose(again.maps, found.maps, atol=1e-6)


@pytest.mark.parametrize("text", ["{", "[]", '{"format": "x"}', '{"format": 3, "version": 1}'])
def test_other_files_are_refused(text):
    with pytest.raises(UsageError, match=r"here\.json"):
        Calibration.from_json(text, "here.json")


def test_a_damaged_file_is_refused():
    text = calibrate(simulated(7, 10)).to_json()
    for old, new in (
        ('"version": 1', '"version": 2'),
        ('"keep"', '"kep"'),
        ('"map": [', '"map": [1,'),
    ):
        assert old in text
        with pytest.raises(UsageError):
            Calibration.from_json(text.replace(old, new))


@pytest.mark.parametrize("bad", [{"target": 1.0}, {"quota": -0.1}, {"bound": "none"}])
def test_goals_out_of_range_are_refused(bad):
    with pytest.raises(UsageError):
        Goal(**bad)


def test_it_does_not_matter_who_counts(tmp_path):
    truth, pred = stores(tmp_path, 150)
    one = calibrate(gather(truth, pred, LocalRunner(1))).to_json()
    assert calibrate(gather(truth, pred, LocalRunner(3))).to_json() == one
