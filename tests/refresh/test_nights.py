"""Ten nights: images arrive, a model is poisoned, one night is taken back, readers look on."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from pipeline import masks
from pipeline.errors import UsageError
from pipeline.refresh.night import Hooks
from pipeline.refresh.record import Nights
from pipeline.refresh.rollback import rollback
from pipeline.refresh.state import in_force, open_published
from pipeline.store import Store
from tests.refresh.palette_model import BETTER, GOOD, POISONED
from tests.refresh.world import LAX, World, date_of, picture, rows_of, truth_record, write


class Readers:
    """A thread that reads the newest snapshot again and again, as others do at night."""

    def __init__(self, labels: str) -> None:
        self.labels, self.seen, self.faults = labels, {}, []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()

    def _read(self) -> None:
        while not self._stop.is_set():
            try:
                self._look(Store.open(self.labels))
            except Exception as error:
                self.faults.append(repr(error))
            self._stop.wait(0.02)

    def _look(self, store: Store) -> None:
        columns = ["image_id", "provenance.model_digest", "provenance.kind", "mask.bytes"]
        rows = [r for b in store.scan(columns) for r in b.to_pylist()]
        made = {r["provenance.model_digest"] for r in rows if r["provenance.kind"] == "pseudo"}
        ids = [r["image_id"] for r in rows]
        whole = all(masks.decode(r["mask.bytes"]).shape == (24, 32) for r in rows)
        if len(made) != 1 or len(set(ids)) != len(ids) or not whole:
            self.faults.append(f"version {store.version}: {len(rows)} rows of {made}")
        self.seen[store.version] = len(rows)


def test_ten_nights(tmp_path):
    world = World(tmp_path, GOOD)
    world.arrive(0, 8)
    counts = {1: world.night(1).published.rows}
    with Readers(world.labels) as readers:
        for day in (2, 3):
            world.arrive(8 + 2 * (day - 2), 2)
            night = world.night(day)
            counts[day] = night.published.rows
            assert night.kept  # the champion labels what is new, and nothing else
            assert night.sums == {"inputs": 2, "done": 2, "skipped": 0, "failed": 0}
        before = rows_of(world.store())

        world.model = POISONED
        world.arrive(12, 2)
        poisoned = world.night(4)
        assert poisoned.status == "rejected"
        assert poisoned.published is None
        assert any("mIoU, against the champion" in why for why in poisoned.reasons)
        assert rows_of(world.store()) == before
        assert world.night(4).status == "rejected"  # decided: it is not run again

        world.model = BETTER
        better = world.night(5)
        assert better.status == "published"
        assert (better.images.new, better.published.rows) == (2, 14)
        assert better.champion.night == date_of(1)
        assert better.challenger.parent == better.champion.digest
        assert better.challenger.scores["miou"] > poisoned.champion.scores["miou"]

        done = rollback(world.config())
        assert done.to == date_of(3)
        assert rows_of(world.store()) == before
        found = in_force(open_published(world.labels), Nights(world.config().work))
        assert (found.night, found.champion.uri) == (date_of(3), GOOD)

        world.model = GOOD
        assert world.night(6).published.rows == 14  # what came in the nights that were taken back
        assert world.night(7).status == "nothing-new"
        write(world.bucket / "0003.png", 999)  # changed
        (world.bucket / "0005.png").unlink()  # gone
        night = world.night(8)
        assert (night.images.changed, night.images.gone, night.published.rows) == (1, 1, 13)
        assert night.published.removed == 2
        world.arrive(20, 3)
        nine = world.night(10)
        assert nine.caught_up == [date_of(9)]
        assert nine.published.rows == 16
    assert not readers.faults
    assert len(readers.seen) >= 5
    tags = world.store().tags()
    assert tags == {
        f"night-{n.id}": n.published.version
        for n in Nights(world.config().work).newest()
        if n.published
    }
    with pytest.raises(UsageError, match="nights go forward"):
        world.night(9)


def test_labels_are_the_models_own_and_hysteresis_decides_where_models_differ(tmp_path):
    """Judged pixel by pixel with NumPy, from the formula of the network."""
    world = World(tmp_path, GOOD)
    world.arrive(0, 3)
    world.night(1, hysteresis=None)
    first = rows_of(world.store())
    for n in range(3):
        rgb, _ = picture(n)
        probabilities = _probabilities(rgb, bias=1.0)
        ids = masks.decode(first[f"{n:04}"]["mask"]["bytes"])
        sure = np.sort(probabilities, axis=-1)
        clear = sure[..., -1] - sure[..., -2] > 1e-3
        np.testing.assert_array_equal(ids[clear], probabilities.argmax(-1)[clear])
    world.model = BETTER
    night = world.night(2, hysteresis=None)
    second = rows_of(world.store())
    moved = sum(
        np.count_nonzero(
            masks.decode(first[name]["mask"]["bytes"])
            != masks.decode(second[name]["mask"]["bytes"])
        )
        for name in first
    )
    assert moved > 0
    changes = night.drift["changes"]
    assert (changes["flips"], changes["held"], changes["images"]) == (moved, 0, 3)

    settled = World(tmp_path / "settled", GOOD)
    settled.arrive(0, 3)
    settled.night(1, hysteresis={"margin": 1.0})
    settled.model = BETTER
    held = settled.night(2, hysteresis={"margin": 1.0})
    assert held.drift["changes"]["flips"] == 0
    assert held.drift["changes"]["held"] == moved
    for name, row in rows_of(settled.store()).items():
        np.testing.assert_array_equal(
            masks.decode(row["mask"]["bytes"]), masks.decode(first[name]["mask"]["bytes"])
        )


def _probabilities(rgb, bias):
    from tests.refresh.palette_model import COLOURS

    distance = ((rgb[..., None, :] / 255 - np.array(COLOURS) / 255) ** 2).sum(-1)
    logits = -30 * distance + np.array([bias, 0, 0, 0])
    e = np.exp(logits - logits.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def test_what_people_labelled_is_left_alone(tmp_path):
    """An image of the bucket in the store of truth; and a row of truth among the labels."""
    from pipeline.record import to_table
    from pipeline.tables.fragment import write_fragment

    world = World(tmp_path, GOOD)
    world.arrive(0, 6)
    truth = Store.open(str(tmp_path / "truth"))
    mine = truth_record(world.bucket / "0002.png", "train", 2)
    truth.commit([write_fragment(truth.sink(), "data/more.parquet", to_table([mine]))])
    night = world.night(1)
    assert (night.images.of_truth, night.published.rows) == (1, 5)
    store = world.store()
    theirs = truth_record(world.bucket / "0004.png", "train", 4)
    store.commit([write_fragment(store.sink(), "data/people.parquet", to_table([theirs]))])
    world.model = BETTER
    night = world.night(2)
    assert (night.images.of_truth, night.published.truth_rows) == (2, 1)
    kinds = [r["provenance"]["kind"] for b in world.store().scan() for r in b.to_pylist()]
    assert sorted(kinds) == ["pseudo"] * 4 + ["truth"]


def test_half_a_bucket_is_rejected(tmp_path):
    world = World(tmp_path, GOOD)
    world.arrive(0, 6)
    world.night(1)
    before = rows_of(world.store())
    for n in range(3):
        (world.bucket / f"{n:04}.png").unlink()
    night = world.night(2)
    assert night.status == "rejected"
    assert "3 of 6 labelled images are gone" in night.reasons[0]
    assert rows_of(world.store()) == before


def test_bad_images_are_counted_and_too_many_reject(tmp_path):
    world = World(tmp_path, GOOD)
    world.arrive(0, 11)
    (world.bucket / "0001.png").write_bytes(b"no picture")
    night = world.night(1)
    assert night.sums == {"inputs": 11, "done": 10, "skipped": 0, "failed": 1}
    assert night.published.rows == 10
    world.arrive(11, 2)
    (world.bucket / "0011.png").write_bytes(b"no picture")
    night = world.night(2)  # of the 3 to be labelled 2 fail, and 10 % may
    assert night.status == "rejected"
    assert "2 images could not be labelled" in night.reasons[0]


def test_drift_is_rejected_though_the_gate_lets_it_through(tmp_path):
    world = World(tmp_path, GOOD)
    world.arrive(0, 8)
    world.night(1, gate=LAX)
    before = rows_of(world.store())
    files = {p.name for p in (tmp_path / "labels" / "data").rglob("*.parquet")}
    world.model = POISONED
    night = world.night(2, gate=LAX, hysteresis=None)
    assert night.status == "rejected"
    assert night.gate == []
    assert {c.name for c in night.checks if not c.passed} >= {"class shares, same images", "churn"}
    assert rows_of(world.store()) == before
    assert {p.name for p in (tmp_path / "labels" / "data").rglob("*.parquet")} == files


def test_a_canary_stops_a_bad_model_before_the_bucket_is_labelled(tmp_path):
    world = World(tmp_path, GOOD)
    world.arrive(0, 40)
    drift = {"canary": 8, "least_images": 4}
    first = world.night(1, gate=LAX, drift=drift)
    assert first.step("canary").figures["images"] == 8
    assert first.sums == {"inputs": 40, "done": 32, "skipped": 8, "failed": 0}
    world.model = POISONED
    night = world.night(2, gate=LAX, drift=drift, hysteresis=None)
    assert night.status == "rejected"
    assert night.step("label") is None
    assert Store.open(Nights(world.config().work).url(date_of(2), "staged")).count() == 8


def test_a_rejected_night_is_done_anew_when_asked(tmp_path):
    from pipeline.refresh.cycle import refresh

    world = World(tmp_path, POISONED)
    world.arrive(0, 4)
    assert world.night(1).status == "rejected"
    world.model = GOOD
    assert world.night(1).status == "rejected"
    night = refresh(world.config(), date_of(1), again=True)
    assert night.status == "published"
    assert len(night.attempts) == 2
    with pytest.raises(UsageError, match="--rollback"):
        refresh(world.config(), date_of(1), again=True)


def test_steps_tell_what_they_do(tmp_path):
    said, boundaries = [], []
    world = World(tmp_path, GOOD)
    world.arrive(0, 3)
    night = world.night(1, Hooks(say=said.append, boundary=boundaries.append))
    assert "3 images listed: 3 new" in said[0]
    assert boundaries == [
        "find", "train", "calibrate", "gate", "label", "check", "commit", "committed", "publish",
    ]  # fmt: skip
    assert night.images.listed == 3
    for path in night.paths.values():
        assert path.startswith(str(tmp_path / "work"))
