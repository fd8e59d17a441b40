"""kill -9 at every boundary of a night: last night's labels stay until the commit, and the night
that is taken up again publishes what an undisturbed one does, row for row."""

from __future__ import annotations

import multiprocessing
import signal
from multiprocessing import get_context

import pytest

from pipeline.refresh.record import Nights
from tests.refresh.killed import killed_night
from tests.refresh.palette_model import BETTER, GOOD
from tests.refresh.world import LAX, World, date_of, rows_of

POINTS = (
    "find", "train", "calibrate", "held-out+", "gate", "label+", "label", "check", "commit",
    "committed", "publish",
)  # fmt: skip
AFTER_COMMIT = {"committed", "publish"}


@pytest.fixture(scope="module")
def processes():
    context = get_context("forkserver")
    context.set_forkserver_preload(["tests.refresh.killed"])
    yield context
    server = multiprocessing.forkserver._forkserver
    server._stop()


def test_a_killed_night_ends_as_an_undisturbed_one(tmp_path, processes):
    """One point a night, in one world; its twin is never disturbed."""
    world, twin = World(tmp_path / "world"), World(tmp_path / "twin")
    for each in (world, twin):
        each.arrive(0, 6)
        each.night(1, gate=LAX)
    for day, point in enumerate(POINTS, 2):
        # Another sharpness each night: a model whose held-out labels nobody has made yet.
        model = f"{(GOOD, BETTER)[day % 2]}{day}"
        before = rows_of(world.store())
        for each in (world, twin):
            each.arrive(4 + day, 1)
            each.model = model
        ended = processes.Process(
            target=killed_night, args=(str(world.root), model, day, point), daemon=True
        )
        ended.start()
        ended.join(120)
        assert ended.exitcode == -signal.SIGKILL, point
        seen = rows_of(world.store())
        assert twin.night(day, gate=LAX).status == "published"
        wanted = rows_of(twin.store())
        assert seen == (wanted if point in AFTER_COMMIT else before), point
        night = world.night(day, gate=LAX)
        assert night.status == "published", point
        assert len(night.attempts) == 2
        assert night.attempts[0].ended is None  # it had no time to say so
        assert rows_of(world.store()) == wanted, point
        assert world.store().tags()[f"night-{date_of(day)}"] == night.published.version
        assert night.champion.night == date_of(day - 1)


def test_a_night_that_is_never_taken_up_again_is_done_by_the_next(tmp_path, processes):
    world, twin = World(tmp_path / "world"), World(tmp_path / "twin")
    for each in (world, twin):
        each.arrive(0, 5)
        each.night(1, gate=LAX)
        each.arrive(5, 2)
    for day, point in ((2, "check"), (3, "committed")):
        process = processes.Process(
            target=killed_night, args=(str(world.root), GOOD, day, point), daemon=True
        )
        process.start()
        process.join(120)
        assert process.exitcode == -signal.SIGKILL
    for each in (world, twin):
        each.arrive(7, 1)
        assert each.night(4, gate=LAX).status == "published"
    ours, theirs = rows_of(world.store()), rows_of(twin.store())
    for row in (*ours.values(), *theirs.values()):
        row.pop("extra"), row["provenance"].pop("run")  # name the night: 3 here, 4 there
    assert ours == theirs
    nights = Nights(world.config().work)
    assert nights.read(date_of(2)).status == "failed"
    assert "does its work" in nights.read(date_of(2)).reasons[0]
    assert nights.read(date_of(3)).status == "published"
