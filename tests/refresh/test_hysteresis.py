"""Hysteresis between nights, against the rule written down pixel by pixel."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pipeline.errors import UsageError
from pipeline.label_space import label_space
from pipeline.refresh.hysteresis import Scale, settle

VOID = 255
IDS = st.sampled_from([0, 1, 2, VOID])
LEVELS = st.sampled_from([0, 1, 100, 125, 126, 127, 200, 254, 255])
SHAPE = (3, 5)


def maps(dtype=np.uint8):
    return st.tuples(
        hnp.arrays(dtype, SHAPE, elements=IDS),
        hnp.arrays(np.uint8, SHAPE, elements=LEVELS),
    )


MARGINS = st.sampled_from([0.0, 0.1, 26 / 255, 0.5, 0.999, 1.0])
AGREE = st.none() | hnp.arrays(np.bool_, SHAPE)


def by_hand(old, old_sure, new, new_sure, margin, agree):
    """Say of one pixel which night's label stands."""
    if old in (VOID, new):
        return "new"
    if new == VOID:
        return "old"
    if agree:
        return "new"
    if margin == 1:
        return "old"
    return "new" if (int(new_sure) - int(old_sure)) / 255 >= margin - 1e-9 else "old"


@settings(max_examples=200, deadline=None)
@given(maps(), maps(), MARGINS, AGREE)
def test_each_pixel_follows_the_rule(last, tonight, margin, agree):
    found = settle(*last, *tonight, margin=margin, agree=agree, ignore_index=VOID)
    flipped = held = gained = 0
    for at in np.ndindex(SHAPE):
        pixel = [m[at] for m in (*last, *tonight)]
        stands = by_hand(*pixel, margin, agree is not None and agree[at])
        ids, sure = last if stands == "old" else tonight
        assert (found.ids[at], found.confidence[at]) == (ids[at], sure[at])
        old, new = pixel[0], found.ids[at]
        assert found.flipped[at] == (old != VOID and old != new)
        flipped += old not in (VOID, new)
        gained += old == VOID and new != VOID
        held += stands == "old"
    assert (found.gained, found.held) == (gained, held)
    assert found.changed == flipped + gained == np.count_nonzero(found.ids != last[0])


@settings(max_examples=100, deadline=None)
@given(maps(), maps(), MARGINS, AGREE)
def test_once_more_changes_nothing(last, tonight, margin, agree):
    once = settle(*last, *tonight, margin=margin, agree=agree, ignore_index=VOID)
    again = settle(
        once.ids, once.confidence, *tonight, margin=margin, agree=agree, ignore_index=VOID
    )
    np.testing.assert_array_equal(again.ids, once.ids)
    np.testing.assert_array_equal(again.confidence, once.confidence)
    assert not again.flipped.any()
    assert not again.gained


@settings(max_examples=50, deadline=None)
@given(maps(), maps())
def test_the_ends_of_the_margin(last, tonight):
    old, had = last[0], last[0] != VOID
    never = settle(*last, *tonight, margin=1, ignore_index=VOID)
    np.testing.assert_array_equal(never.ids, np.where(had, old, tonight[0]))
    everywhere = np.ones(SHAPE, np.bool_)
    always = settle(*last, *tonight, margin=1, agree=everywhere, ignore_index=VOID)
    has = tonight[0] != VOID
    np.testing.assert_array_equal(always.ids, np.where(has, tonight[0], old))
    zero = settle(*last, *tonight, margin=0, ignore_index=VOID)
    at_least = has & (tonight[1] >= last[1])
    np.testing.assert_array_equal(zero.ids[at_least], tonight[0][at_least])


@settings(max_examples=50, deadline=None)
@given(maps(), maps(), st.permutations(range(5)))
def test_a_wider_margin_holds_no_less(last, tonight, order):
    held = [
        settle(*last, *tonight, margin=m, ignore_index=VOID).held for m in (0, 0.1, 0.3, 0.8, 1)
    ]
    assert held == sorted(held)
    moved = [m[:, order] for m in (*last, *tonight)]
    assert settle(*moved, margin=0.3, ignore_index=VOID).held == held[2]


@given(maps(np.uint16), maps())
@settings(max_examples=20, deadline=None)
def test_sixteen_bits_win(last, tonight):
    found = settle(*last, *tonight, margin=0.1, ignore_index=VOID)
    assert found.ids.dtype == np.uint16
    narrow = settle(last[0].astype(np.uint8), last[1], *tonight, margin=0.1, ignore_index=VOID)
    np.testing.assert_array_equal(found.ids, narrow.ids)


def test_wide_ids_are_kept_whole():
    old, new = (np.full((1, 1), i, np.uint16) for i in (40_000, 300))
    sure = np.full((1, 1), 9, np.uint8)
    kept = settle(old, sure, new, sure, margin=0.5, ignore_index=65_535)
    assert kept.ids[0, 0] == 40_000
    assert settle(old, sure, new, sure, margin=0, ignore_index=65_535).ids[0, 0] == 300


def test_what_does_not_fit_is_refused():
    ids, sure = np.zeros((2, 2), np.uint8), np.zeros((2, 2), np.uint8)
    with pytest.raises(UsageError, match="margin"):
        settle(ids, sure, ids, sure, margin=1.5, ignore_index=VOID)
    with pytest.raises(UsageError, match="margin"):
        settle(ids, sure, ids, sure, margin=float("nan"), ignore_index=VOID)
    with pytest.raises(ValueError, match="shapes"):
        settle(ids, sure, ids[:1], sure[:1], margin=0.1, ignore_index=VOID)
    with pytest.raises(ValueError, match="uint8"):
        settle(ids, sure.astype(np.uint16), ids, sure, margin=0.1, ignore_index=VOID)


def test_a_scale_says_what_levels_mean_and_finds_them_again():
    space = label_space("camvid-11")
    rng = np.random.default_rng(5)
    table = np.sort(rng.random((len(space.train_ids), 256)), axis=1)
    scale = Scale.of(space, table)
    ids = rng.integers(0, 12, (40, 50)).astype(np.uint8)
    levels = rng.integers(0, 256, (40, 50)).astype(np.uint8)
    meant = scale.probability(ids, levels)
    position = {i: c for c, i in enumerate(space.train_ids)}
    for at in np.ndindex(4, 5):
        c = position.get(int(ids[at]))
        wanted = levels[at] if c is None else round(255 * table[c, levels[at]])
        assert meant[at] == wanted
    back = scale.level(ids, meant)
    # Levels that mean nearly the same may be told apart no more; what they mean stays.
    assert np.abs(scale.probability(ids, back).astype(int) - meant).max() <= 1
