"""Expected quality, the ranking and the audit: against truth in made worlds, and by hand."""

from __future__ import annotations

import csv
import io

import cv2
import numpy as np
import pytest
from scipy.stats import spearmanr

from pipeline.errors import UsageError
from pipeline.pseudo import audit, ranking
from pipeline.pseudo.calibrate import Goal, calibrate
from pipeline.pseudo.held_out import gather
from pipeline.pseudo.quality import Expected, ImageQuality, Quality, assess, rarity
from pipeline.pseudo.round import Lists, judge
from pipeline.runner import LocalRunner
from pipeline.scoring import score
from pipeline.streetscenes import scene
from tests.pipeline.pseudo_world import SPACE, image, record, store_of, stores


def quality(name="x", *, accuracy=0.9, worth=0.1, rarest="a", path=None) -> ImageQuality:
    return ImageQuality(
        name, "toy", "val", path or f"/{name}.png", 100, accuracy, 0.5, 0.5, rarest, worth, ()
    )


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("held")
    truth, pred = stores(root, 500, seed=1, void=0.1)
    return calibrate(gather(truth, pred, LocalRunner(2)), Goal(target=0.9))


def test_expected_sums_are_those_of_each_pixel():
    rng = np.random.default_rng(0)
    levels = rng.integers(0, 5, (3, 256))
    maps, wrong = rng.random((3, 256)), rng.random((3, 3))
    np.fill_diagonal(wrong, 0)
    found = Expected.of(levels, maps, wrong)
    right, elsewhere = np.zeros(3), np.zeros(3)
    for (c, level), n in np.ndenumerate(levels):
        right[c] += n * maps[c, level]
        elsewhere += n * (1 - maps[c, level]) * wrong[c]
    assert np.allclose(found.right, right)
    assert np.allclose(found.elsewhere, elsewhere)
    assert np.allclose(found.iou, right / (levels.sum(axis=1) + elsewhere))


def test_what_is_expected_without_truth_is_what_truth_says(world, tmp_path):
    """In domain, with void pixels left in: the mean within two points, images in order."""
    truth, pred = stores(tmp_path, 300, seed=77, void=0.1)
    total, images = Quality.empty(world), []
    for part in assess(pred, world, LocalRunner(2)):
        total.merge(part.sums)
        images += part.images
    rows = []
    scores = score(
        truth, pred, runner=LocalRunner(2), on_images=lambda b: rows.extend(b.to_pylist())
    )
    assert abs(total.expected.miou - scores.tally.miou) < 0.02
    assert np.abs(total.expected.iou - scores.tally.iou).max() < 0.05
    assert abs(total.expected.accuracy - scores.tally.pixel_accuracy) < 0.02
    true = {r["image_id"]: r["pixel_accuracy"] for r in rows}
    order = [(i.accuracy, true[i.image_id]) for i in images]
    assert spearmanr(*zip(*order, strict=True)).statistic > 0.2
    # Of what the view keeps, the expected precision is the true one too, and coverage is told.
    kept = total.figures(world)
    assert kept["coverage"] == pytest.approx(np.mean([i.coverage for i in images]))
    for rule in world.rules:
        figures = kept["classes"][rule.name]
        assert figures["kept_precision"] == pytest.approx(rule.precision, abs=0.03)
        assert figures["kept_recall"] is not None


def test_images_without_a_class_and_bad_rows(world, tmp_path):
    rng = np.random.default_rng(0)
    _, ids, sure = image(rng)
    nothing = np.full_like(ids, 255)
    rows = [
        record("empty", nothing, sure),
        record("good", ids, sure, labels=(3, 4, 5, 6)),
        record("no", ids),
    ]
    store = store_of(tmp_path / "s", rows)
    total, images = Quality.empty(world), {}
    for part in assess(store, world, LocalRunner(1)):
        total.merge(part.sums)
        images |= {i.image_id: i for i in part.images}
    assert (total.images, total.failed) == (2, 1)
    assert total.unlabelled == ids.size
    assert images["empty"].miou is None
    assert images["empty"].coverage == 0
    absent = sorted({"a", "b", "c", "d"} - {"abcd"[i - 3] for i in np.unique(ids)})
    assert sorted(images["good"].missed) == absent
    assert total.flagged == bool(absent)


def test_risk_falls_with_coverage(world):
    total = Quality.empty(world)
    held = np.random.default_rng(0).integers(0, 9, (4, 256))
    total.levels += held
    total.pixels = int(held.sum())
    curve = total.risk_coverage(world)
    coverage, risk = (np.array(c) for c in zip(*curve, strict=True))
    assert (np.diff(coverage) > 0).all()
    assert (np.diff(risk) >= -1e-9).all()
    assert coverage[-1] == pytest.approx(1)
    assert risk[-1] == pytest.approx((held * (1 - world.maps)).sum() / held.sum(), abs=1e-3)


# --- the ranking ----------------------------------------------------------------------------------


def test_the_ranking_is_the_order_by_worth_one_a_scene():
    rng = np.random.default_rng(3)
    images = [quality(f"s{n % 7}_{n:03d}", worth=float(rng.random())) for n in range(60)]
    ranked = ranking.Ranking(5)
    for start in range(0, 60, 13):
        ranked.add(images[start : start + 13])
    found = ranked.best(ranking.Named.parse(r"image_id:^(s\d)_"))
    best: dict[str, ImageQuality] = {}
    for one in sorted(images, key=lambda i: -i.worth):
        best.setdefault(one.image_id[:2], one)
    assert [r.image for r in found] == list(best.values())[:5]
    rows = list(csv.DictReader(io.StringIO(ranking.to_csv(found).decode())))
    assert [r["image"] for r in rows] == [r.image.path for r in found]
    assert [int(r["rank"]) for r in rows] == [1, 2, 3, 4, 5]


def test_memory_does_not_grow_with_the_images():
    ranked = ranking.Ranking(3)
    ranked.add(quality(str(n), worth=n % 100) for n in range(5000))
    assert len(ranked._held) == 30
    assert [r.image.worth for r in ranked.best(lambda image: None)] == [99, 99, 99]


def test_neighbouring_frames_look_alike_and_other_scenes_do_not(tmp_path):
    paths = []
    for seed in range(4):
        rgb, _ = scene(seed, 96, 128)
        for shift in (0, 1):
            path = str(tmp_path / f"{seed}_{shift}.png")
            cv2.imwrite(path, np.roll(rgb, shift, axis=1)[..., ::-1])
            paths.append(path)
    like = ranking.Lookalikes()
    scenes = [like(quality(p, path=p)) for p in paths]
    assert scenes[0::2] == scenes[1::2]
    assert len(set(scenes)) >= 3
    assert like(quality("no", path=str(tmp_path / "no.png"))) is None


@pytest.mark.parametrize("text", ["image_id", "mask:x", "image_id:(", ""])
def test_bad_scenes_are_refused(text):
    with pytest.raises(UsageError, match="--scene"):
        ranking.Named.parse(text)


def test_rare_classes_count_more():
    found = rarity(np.array([0.9, 0.1 - 1e-6, 1e-6, 0.0]))
    assert (np.diff(found) >= 0).all()
    assert found[0] == 1
    assert found[3] == 10


# --- the audit ------------------------------------------------------------------------------------


def test_a_draw_is_random_the_same_again_and_another_for_another_night():
    images = [quality(f"{n}", accuracy=n / 500, rarest="ab"[n % 9 == 0]) for n in range(500)]

    def drawn(seed, order):
        draw = audit.Draw(40, frozenset("b"), seed)
        draw.add(images[n] for n in order)
        return draw.sample()

    one = drawn("1", range(500))
    assert len(one) == 40
    assert {d.image.image_id for d in drawn("1", range(499, -1, -1))} == {
        d.image.image_id for d in one
    }
    assert {d.image.image_id for d in drawn("2", range(500))} != {d.image.image_id for d in one}
    sizes = {d.stratum: d.stratum_images for d in one}
    assert sum(sizes.values()) == 500
    back = audit.read_csv(audit.to_csv(one).decode(), "audit.csv")
    assert back == {d.image.path: (d.stratum, d.stratum_images) for d in one}
    # Every image of a stratum has the same chance.
    hits = np.zeros(500)
    for seed in range(150):
        for d in drawn(str(seed), range(500)):
            hits[int(d.image.image_id)] += 1
    common = [n for n in range(500) if n % 9 and n >= 400]
    assert 0.5 < np.var(hits[common]) / np.mean(hits[common]) < 1.5


def test_allocation_spends_what_there_is():
    assert sum(audit.allocate({"a": 1000, "b": 3, "c": 1, "d": 50}, 30).values()) == 30
    assert audit.allocate({"a": 3, "b": 2}, 50) == {"a": 3, "b": 2}
    assert audit.allocate({}, 5) == {}


def test_the_estimate_is_unbiased_and_its_interval_holds():
    """1,500 images in two strata of different quality; 40 labelled, time and again."""
    rng = np.random.default_rng(8)
    poor = rng.random(1500) < 0.2
    truth = rng.integers(50, 500, (1500, 3))
    share = np.clip(rng.normal(np.where(poor, 0.4, 0.9), 0.1), 0, 1)[:, None]
    right = (truth * share).astype(np.int64)
    population = np.stack([right, truth, truth + rng.integers(0, 40, (1500, 3))], axis=1)
    from pipeline.metrics import sums

    true = float(sums.miou(population.sum(axis=0)))
    strata = np.where(poor, "poor", "good")
    sizes = {"poor": int(poor.sum()), "good": int((~poor).sum())}
    found, inside, naive = [], 0, []
    for seed in range(120):
        draw = np.random.default_rng(seed)
        mine = np.concatenate(
            [draw.choice(np.flatnonzero(strata == s), 20, replace=False) for s in sizes]
        )
        figures = audit.estimate(population[mine], strata[mine], sizes, "abc").figures()
        found.append(figures["miou"])
        low, high = figures["miou_interval"]
        inside += low <= true <= high
        naive.append(float(sums.miou(population[mine].sum(axis=0))))
    assert np.mean(found) == pytest.approx(true, abs=0.006)
    assert abs(np.mean(naive) - true) > 0.05  # without the weights it would be far off
    assert inside / 120 > 0.88


def test_a_census_leaves_nothing_open_and_an_unlabelled_stratum_is_refused():
    tallies = np.random.default_rng(0).integers(1, 9, (6, 3, 2)) + np.array([[0], [9], [9]])
    figures = audit.estimate(tallies, ["a"] * 6, {"a": 6}, "xy").figures()
    assert figures["miou_interval"] == [figures["miou"]] * 2
    with pytest.raises(UsageError, match="b"):
        audit.estimate(tallies, ["a"] * 6, {"a": 6, "b": 2}, "xy")
    with pytest.raises(UsageError):
        audit.estimate(tallies[:0], [], {}, "xy")
    with pytest.raises(UsageError, match=r"a\.csv"):
        audit.read_csv("image,x\n1,2\n", "a.csv")


# --- together -------------------------------------------------------------------------------------


def test_a_round_s_quotas_are_the_bucket_s(world, tmp_path):
    _, pred = stores(tmp_path, 60, seed=5, power=0.5)
    rows = []
    lists = Lists(7, lambda image: None, 9, "night")
    found = judge(pred, world, lists, LocalRunner(2), on_images=lambda b: rows.append(b.num_rows))
    assert sum(rows) == found.quality.images == 60
    assert (len(found.ranked), len(found.drawn)) == (7, 9)
    above = np.cumsum(found.quality.levels[:, ::-1], axis=1)[:, ::-1]
    for c, rule in enumerate(found.calibration.rules):
        if rule.why != "precision":
            assert above[c, rule.keep] >= 0.5 * above[c, 0]
        else:
            assert rule.keep == world.rules[c].keep


def test_other_classes_are_refused(world, tmp_path):
    from dataclasses import replace

    other = replace(world, space=replace(SPACE, name="other"))
    _, pred = stores(tmp_path, 2)
    with pytest.raises(UsageError, match="other"):
        list(assess(pred, other, LocalRunner(1)))
