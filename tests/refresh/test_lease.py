"""One refresh at a time: expiry, dead owners, two at the same moment, a bucket."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace

import pytest

from pipeline.files import open_sink
from pipeline.refresh.lease import Holder, Lease, LeaseHeld, LeaseLost


@pytest.fixture(params=["disk", "memory"])
def store(request, tmp_path, memory) -> str:
    return str(tmp_path / "labels") if request.param == "disk" else "memory://bucket/labels"


def put(store: str, holder: Holder, number: int = 1) -> None:
    text = json.dumps(asdict(holder)).encode()
    open_sink(f"{store}.lease").write(f"{number:08d}.json", text)


def test_one_holds_it_until_it_is_given_back(store):
    with Lease.take(store, 1) as lease:
        lease.check()
        with pytest.raises(LeaseHeld, match=f"process {os.getpid()}"):
            Lease.take(store, 1)
    with Lease.take(store, 1) as second:
        assert second.number == lease.number + 1
        with pytest.raises(LeaseLost):
            lease.check()


def test_an_expired_lease_is_taken_over_and_its_owner_learns_of_it(store):
    elsewhere = replace(Holder.here(60), host="far", place="far", attempt="0-00000000-1")
    put(store, elsewhere)
    with pytest.raises(LeaseHeld, match="on far"):
        Lease.take(store, 1)
    slow = Lease(f"{store}.lease", 2, elsewhere, 60)
    put(store, replace(elsewhere, until=time.time() - 1), 2)
    with pytest.raises(LeaseLost, match="ran out"):
        slow.check()
    with Lease.take(store, 1) as lease:
        assert lease.number == 3
        with pytest.raises(LeaseLost, match=str(os.getpid())):
            slow.check()


def test_a_dead_process_of_this_machine_holds_nothing(store):
    here = Holder.here(3600)
    code = "from pipeline.runs.attempts import new_attempt; print(new_attempt())"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    dead = replace(here, attempt=ended.stdout.strip(), pid=1)
    put(store, replace(dead, place="another container"))
    with pytest.raises(LeaseHeld):
        Lease.take(store, 1)
    put(store, dead)
    Lease.take(store, 1).give_back()


def test_of_many_at_once_one_gets_it(store):
    start, held, refused = threading.Barrier(8), [], []

    def one() -> None:
        start.wait()
        try:
            held.append(Lease.take(store, 1))
        except LeaseHeld as error:
            refused.append(error)

    threads = [threading.Thread(target=one) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(held), len(refused)) == (1, 7)
    held[0].check()
    held[0].give_back()


def test_it_is_renewed_while_its_owner_lives(store):
    with Lease.take(store, 0.02) as lease:  # 1.2 s
        first = lease.holder.until
        deadline = time.monotonic() + 20
        while lease.holder.until == first and time.monotonic() < deadline:
            time.sleep(0.05)
        assert lease.holder.until > first
        lease.check()
    assert lease.holder.until == 0


def test_an_unreadable_lease_keeps_nobody_out(store):
    open_sink(f"{store}.lease").write("00000004.json", b"{")
    with Lease.take(store, 1) as lease:
        assert lease.number == 5


def test_who_lost_the_lease_publishes_nothing(tmp_path):
    """A run that was taken for dead comes back right before its commit."""
    from pipeline.refresh.night import Hooks
    from tests.refresh.world import World, rows_of

    world = World(tmp_path)
    world.arrive(0, 3)
    world.night(1)
    before = rows_of(world.store())
    world.arrive(3, 1)

    def stolen(name: str) -> None:
        if name == "commit":
            put(world.labels, replace(Holder.here(60), attempt="0-00000000-1"), 99)

    with pytest.raises(LeaseLost):
        world.night(2, Hooks(boundary=stolen))
    assert rows_of(world.store()) == before
    put(world.labels, replace(Holder.here(0), attempt="0-00000000-1", until=0.0), 99)
    assert world.night(2).status == "published"


def test_a_night_published_meanwhile_is_not_overwritten(tmp_path):
    """Were the lease to fail, the commit's own check still stands."""
    from pipeline.errors import StoreError
    from pipeline.refresh.night import Hooks
    from pipeline.refresh.record import Model
    from pipeline.refresh.state import note_of
    from tests.refresh.world import World

    world = World(tmp_path)
    world.arrive(0, 3)
    first = world.night(1)
    world.arrive(3, 1)

    def other(name: str) -> None:
        if name == "check":
            store = world.store()
            note = note_of("2026-11-01T12", Model.model_validate(first.challenger.model_dump()))
            store.commit([], store.fragments()[:1], note=note)

    with pytest.raises(StoreError, match="2026-11-01T12 is in force"):
        world.night(2, Hooks(boundary=other))
    assert world.night(2).published.rows == 4  # made anew, on what is in force now
