"""Votes of several teachers: against a loop over pixels, and as a run over stores."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline import masks
from pipeline.errors import UsageError
from pipeline.pseudo.agreement import agree, agreed
from pipeline.runner import LocalRunner
from pipeline.store import Store
from tests.pipeline.pseudo_world import SPACE, record, store_of


def maps(seed, count):
    rng = np.random.default_rng(seed)
    return [rng.choice([3, 4, 5, 255], (9, 11)).astype(np.uint8) for _ in range(count)]


@pytest.mark.parametrize("rule", ["lower", "ignore"])
def test_a_vote_is_what_counting_each_pixel_gives(rule):
    ids, *others = maps(0, 4)
    sure = np.random.default_rng(1).integers(0, 256, ids.shape).astype(np.uint8)
    found, lowered, mean = agreed(ids, sure, others, rule, 255)
    shares = []
    for at, own in np.ndenumerate(ids):
        votes = [own, *(o[at] for o in others if o[at] != 255)]
        share = sum(v == own for v in votes) / len(votes) if own != 255 else 1 / len(votes)
        if own != 255:
            shares.append(share)
        if rule == "lower":
            assert found[at] == own
            assert lowered[at] == round(float(sure[at]) * share)
        else:
            assert found[at] == (own if share == 1 else 255)
            assert lowered[at] == sure[at]
    assert mean == pytest.approx(np.mean(shares))


def test_stores_are_joined_by_image_and_the_run_is_done_once(tmp_path):
    first, second, third = (maps(s, 6) for s in (1, 2, 3))
    sure = np.full((9, 11), 200, np.uint8)
    a = store_of(tmp_path / "a", [record(f"{n}", m, sure) for n, m in enumerate(first)])
    b = store_of(tmp_path / "b", [record(f"{n}", m, sure) for n, m in enumerate(second)])
    rest = [record(f"{n}", m, sure) for n, m in list(enumerate(third))[2:5]]
    c = store_of(tmp_path / "c", [*rest, record("5", third[5][:4], sure[:4])])
    out = Store.create(tmp_path / "out", [SPACE])

    def run():
        return agree([a, b, c], out.latest(), choose_runner=lambda n: LocalRunner(2))

    report = run()
    assert (report.inputs, report.done, report.failed) == (6, 5, 1)
    rows = {r.image_id: r for r in out.latest().records()}
    assert set(rows) == set("01234")  # the sizes of image 5 differ: a failure, and named
    assert "5" in out.latest().failures()["image_id"].to_pylist()
    for name, row in rows.items():
        n = int(name)
        others = [second[n]] + ([third[n]] if n >= 2 else [])
        ids, lowered, mean = agreed(first[n], sure, others, "lower", 255)
        assert np.array_equal(masks.decode(row.mask.bytes), ids)
        assert np.array_equal(masks.decode(row.confidence.bytes), lowered)
        assert row.extras()["teachers"] == 1 + len(others)
        assert row.extras()["agreement"] == pytest.approx(mean, abs=1e-6)
        assert row.provenance.kind == "pseudo"
    again = run()
    assert again.done == 0
    assert again.skipped + again.failed == 6


def test_what_cannot_agree_is_refused(tmp_path):
    ids, sure = maps(0, 1)[0], np.full((9, 11), 9, np.uint8)
    a = store_of(tmp_path / "a", [record("1", ids, sure)])
    b = store_of(tmp_path / "b", [record("2", ids, sure)])
    out = Store.create(tmp_path / "out", [SPACE])
    pick = {"choose_runner": lambda n: LocalRunner(1)}
    with pytest.raises(UsageError, match="two stores"):
        agree([a], out, **pick)
    with pytest.raises(UsageError, match="no image"):
        agree([a, b], out, **pick)
    with pytest.raises(UsageError, match="replace"):
        agree([a, b], a, **pick)
    with pytest.raises(UsageError, match="ignore"):
        agree([a, b], out, rule="other", **pick)
