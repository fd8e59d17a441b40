"""Sums over a night's labels and what changed, against loops over pixels; the limits on them."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from pipeline.errors import UsageError
from pipeline.refresh.drift import (
    CHANGED_NIGHT,
    FLIPPED,
    MOST,
    Changes,
    Composition,
    Example,
    entropy,
    noted,
    total_variation,
)
from pipeline.refresh.hysteresis import settle
from pipeline.refresh.limits import Limits, compare
from pipeline.training.data import Channels
from tests.pipeline.pseudo_world import SPACE, record, store_of

VOID = SPACE.ignore_index
NAMES = SPACE.class_names
PLACE = {i: c for c, i in enumerate(SPACE.train_ids)}


def ids_of(seed, shape=(6, 8), chances=None):
    rng = np.random.default_rng(seed)
    choices = [*SPACE.train_ids, VOID]
    return rng.choice(choices, shape, p=chances).astype(np.uint8)


def sure_of(seed, shape=(6, 8)):
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def rows(count, night=1):
    for n in range(count):
        row = record(f"{n:02}", ids_of(n), sure_of(n + 100))
        yield replace(row, extra=json.dumps({CHANGED_NIGHT: night + n % 3}))


def test_a_composition_is_what_its_pixels_say(tmp_path):
    store = store_of(tmp_path / "s", list(rows(7)))
    found = Composition.of_store(store, SPACE)
    pixels, levels, ignored = Counter(), Counter(), 0
    for n in range(7):
        for i, level in zip(ids_of(n).flat, sure_of(n + 100).flat, strict=True):
            if i == VOID:
                ignored += 1
            else:
                pixels[PLACE[int(i)]] += 1
                levels[PLACE[int(i)]] += int(level)
    every = range(len(NAMES))
    assert found.pixels.tolist() == [pixels[c] for c in every]
    assert found.levels.tolist() == [levels[c] for c in every]
    assert (found.ignored, found.images, found.unmasked) == (ignored, 7, 0)
    told = found.figures(5)
    assert told["ignored_share"] == ignored / (7 * 48)
    assert told["mean_confidence"] == pytest.approx(sum(levels.values()) / 255 / pixels.total())
    assert told["ages"] == {"2": 2, "3": 2, "4": 3}
    for c, name in enumerate(NAMES):
        assert told["classes"][name]["share"] == pytest.approx(pixels[c] / pixels.total())
        assert told["classes"][name]["confidence"] == pytest.approx(levels[c] / 255 / pixels[c])
    json.dumps(told, allow_nan=False)


def test_parts_add_up_to_the_whole_and_a_file_gives_it_back(tmp_path):
    store = store_of(tmp_path / "s", [*rows(7), replace(record("x", ids_of(0)), classes=None)])
    whole = Composition.of_store(store, SPACE)
    assert (whole.images, whole.unmasked) == (7, 1)
    parts = [
        Composition.of_store(store, SPACE, where=w) for w in ("image_id < '03'", "image_id >= '03'")
    ]
    for first, second in (parts, parts[::-1]):
        total = Composition.empty(SPACE)
        total.merge(first)
        total.merge(second)
        assert total.to_json() == whole.to_json()
    read = Composition.from_json(json.loads(json.dumps(whole.to_json())))
    assert read.figures(4) == whole.figures(4)


def test_nothing_has_no_shares(tmp_path):
    nothing = Composition.empty(SPACE)
    told = nothing.figures(1)
    assert told["entropy"] is told["mean_confidence"] is told["ignored_share"] is None
    assert Changes.empty(SPACE).figures()["churn"] is None


def test_changes_are_what_each_pixel_did():
    lut, found = Channels(SPACE).lut(SPACE), Changes.empty(SPACE)
    moved, different = Counter(), 0
    names = {**{i: NAMES[c] for i, c in PLACE.items()}, VOID: "no label"}
    for n in range(4):
        old, new = ids_of(n), ids_of(n + 10 if n else 0)
        share = found.add(lut, old, new, Example(0, f"{n}", "d", f"{n}.png"), held=n)
        wrong = sum(int(a != b) for a, b in zip(old.flat, new.flat, strict=True))
        assert share == wrong / old.size
        different += wrong
        moved.update(
            (names[int(a)], names[int(b)]) for a, b in zip(old.flat, new.flat, strict=True)
        )
    told = found.figures()
    assert (told["images"], told["images_changed"], told["held"]) == (4, 3, 6)
    assert told["churn"] == different / (4 * 48)
    assert told["flips"] + told["gained"] + told["lost"] == different
    assert told["gained"] == sum(n for (a, b), n in moved.items() if a == "no label" != b)
    for name in names.values():
        kept = moved[name, name]
        gained = sum(n for (a, b), n in moved.items() if b == name != a)
        lost = sum(n for (a, b), n in moved.items() if a == name != b)
        assert told["classes"][name] == {
            "kept": kept,
            "gained": gained,
            "lost": lost,
            "churn": (gained + lost) / (kept + gained + lost),
        }
    most = max((n for (a, b), n in moved.items() if a != b))
    assert told["moves"][0]["pixels"] == most
    assert all(moved[m["from"], m["to"]] == m["pixels"] for m in told["moves"])
    assert [e["share"] for e in told["most"]] == sorted(
        (e["share"] for e in told["most"]), reverse=True
    )


def test_changes_merge_in_any_order_and_keep_few_examples():
    lut = Channels(SPACE).lut(SPACE)
    parts = []
    for start in (0, 20, 40):
        part = Changes.empty(SPACE)
        for n in range(start, start + 20):
            part.add(lut, ids_of(n, (4, 4)), ids_of(99, (4, 4)), Example(0, f"{n}", "d", ""))
        parts.append(part)
    told = []
    for order in ([0, 1, 2], [2, 0, 1]):
        total = Changes.empty(SPACE)
        for k in order:
            total.merge(parts[k])
        told.append(total.figures())
    assert told[0] == told[1]
    assert len(told[0]["most"]) == MOST
    assert told[0]["images"] == 60


def test_entropy_and_distance_by_their_definitions():
    shares = np.array([0.5, 0.25, 0.25, 0.0])
    assert entropy(shares) == pytest.approx(1.5 * np.log(2) / np.log(4))
    assert entropy(np.full(7, 1 / 7)) == pytest.approx(1)
    assert entropy(np.array([0.0, 1.0])) == 0
    assert np.isnan(entropy(np.full(3, np.nan)))
    p, q = np.random.default_rng(0).dirichlet(np.ones(5), 2)
    assert total_variation(p, q) == pytest.approx(max(0, (p - q)[p > q].sum()))


def test_a_row_notes_its_last_change():
    old, sure = ids_of(1), sure_of(1)
    first = noted({"depth_unit": 3}, 4, None)
    assert first == {"depth_unit": 3, CHANGED_NIGHT: 4, FLIPPED: 0}
    same = settle(old, sure, old, sure, margin=0, ignore_index=VOID)
    assert noted(first, 5, same)[CHANGED_NIGHT] == 4
    new = settle(old, sure, ids_of(2), sure_of(2), margin=0, ignore_index=VOID)
    after = noted(first, 5, new)
    assert after[CHANGED_NIGHT] == 5
    assert after[FLIPPED] == int(new.flipped.sum()) > 0
    assert noted({}, 6, same)[CHANGED_NIGHT] == 6  # nobody knows since when: from tonight on


# --- limits ---------------------------------------------------------------------------------------


def composition(pixels, ignored=0, level=200, images=50):
    counts = np.array(pixels, np.int64)
    return Composition(NAMES, counts, counts * level, ignored, images)


def moves(matrix, images=50):
    return Changes(NAMES, np.array(matrix, np.int64), images, images)


EVEN = [1000] * len(NAMES)


def failing(last, tonight, changes=None, **limits):
    found = compare(last, tonight, changes, Limits(**limits))
    return {c.name: c for c in found if not c.passed}


def test_the_same_night_twice_passes():
    same = moves(np.diag([*EVEN, 0]))
    found = compare(composition(EVEN), composition(EVEN), same)
    assert len(found) == 9
    assert all(c.passed and c.why is None for c in found)


@pytest.mark.parametrize(
    ("tonight", "name", "says"),
    [
        (composition([9000, *[100] * (len(NAMES) - 1)]), "class shares, all images", NAMES[0]),
        (composition(EVEN, level=150), "mean confidence", "78.4 % to 58.8 %"),
        (composition(EVEN, ignored=len(EVEN) * 400), "ignored share", "0 % to 28.6 %"),
        (composition([9000, *[100] * (len(NAMES) - 1)]), "entropy", "fewer classes"),
        (composition(EVEN, ignored=len(EVEN) * 19_000), "ignored share, at all", "95 %"),
        (composition([10**6, *[1] * (len(NAMES) - 1)]), "entropy, at all", "one class"),
    ],
)
def test_each_limit_finds_its_fault(tonight, name, says):
    found = failing(composition(EVEN), tonight)
    assert says in found[name].why
    assert not failing(composition(EVEN), composition(EVEN))


def test_a_model_that_moves_labels_is_found_on_the_same_images():
    poisoned = np.zeros((len(NAMES) + 1,) * 2, int)
    poisoned[:-1, 0] = 1000  # everything is the first class now
    found = failing(composition(EVEN), composition(EVEN), moves(poisoned))
    assert set(found) == {"class shares, same images", "classes that vanished", "churn"}
    for name in NAMES[1:]:
        assert name in found["classes that vanished"].why
    assert found["classes that vanished"].figure == len(NAMES) - 1
    assert NAMES[1] in found["churn"].why


def test_void_that_eats_a_class_is_a_class_that_vanished():
    eaten = np.diag([*EVEN, 0])
    eaten[1] = 0
    eaten[1, -1] = 1000
    assert (
        NAMES[1]
        in failing(composition(EVEN), composition(EVEN), moves(eaten))["classes that vanished"].why
    )


def test_a_limit_is_inclusive_and_none_leaves_it_out():
    half = np.diag([*EVEN, 0])
    half[0, 1], half[0, 0] = 500, 500
    churn = 500 / sum(EVEN)
    assert "churn" not in failing(composition(EVEN), composition(EVEN), moves(half), churn=churn)
    tight = failing(composition(EVEN), composition(EVEN), moves(half), churn=churn * 0.99)
    assert "churn" in tight
    off = {f: None for f in Limits.__slots__ if f != "least_images"}
    assert compare(composition(EVEN), composition(EVEN), moves(half), Limits(**off)) == []


def test_few_images_are_not_judged_and_the_first_night_has_no_last():
    few = composition([10**6, *[1] * (len(NAMES) - 1)], images=3)
    found = compare(composition(EVEN), few)
    assert all(c.passed and "few" in c.why for c in found)
    assert {c.name for c in compare(None, composition(EVEN))} == {
        "ignored share, at all",
        "entropy, at all",
    }


def test_labels_that_are_all_gone_fail():
    none = composition([0] * len(NAMES), ignored=5000)
    found = failing(composition(EVEN), none)
    assert {"class shares, all images", "mean confidence", "entropy"} <= set(found)
    assert all("no labelled pixel" in found[n].why for n in ("mean confidence", "entropy"))


def test_what_cannot_be_compared_is_refused():
    other = Composition(("a",), np.array([1]), np.array([1]), 0, 50)
    with pytest.raises(UsageError, match="different classes"):
        compare(composition(EVEN), other)
    with pytest.raises(UsageError, match="churn"):
        Limits(churn=30)
