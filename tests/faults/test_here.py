"""Faults of a job without Ray: a full disk, other writers, an image that kills the process."""

from __future__ import annotations

import resource
import signal
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from pipeline.store import Store
from tests.faults.stage import IMAGES, POISON, failures, rows, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

LOCAL = ("--runner", "local")


@contextmanager
def small_disk(place: Path, megabytes: int) -> Iterator[Path]:
    """Mount a file system of so many megabytes."""
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(place)]
    try:
        done = subprocess.run(mount, capture_output=True)
    except FileNotFoundError:
        pytest.skip("no mount on this system")
    if done.returncode:
        pytest.skip("mounting a small disk takes root")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def fill(file: Path, leave: int) -> None:
    """Fill a disk up to so many bytes."""
    with open(file, "wb", buffering=0) as ballast:
        try:
            while ballast.write(bytes(4096)):
                pass
        except OSError:
            ballast.truncate(max(0, ballast.tell() - leave))


def no_torn_file(store: Path) -> None:
    """Check that nothing half-written is there, under any name that a reader looks at."""
    import pyarrow.parquet as pq

    for file in store.rglob("*.parquet"):
        pq.read_table(file)
    assert not list(store.rglob("*.tmp"))


def test_a_full_disk_is_told_and_the_same_command_goes_on(stage, tmp_path, undisturbed):
    """It fills up after the first fragments; those that are there are adopted."""
    with small_disk(tmp_path / "disk", 4) as disk:
        ballast, store = disk / "ballast", disk / "store"
        fill(ballast, leave=100 << 10)
        report, said = stage.label(store, *LOCAL).end(code=1)
        assert "no space left on device" in report["error"]
        assert str(disk) in report["error"]
        assert "run the same command again" in report["error"]
        assert "Traceback" not in said
        assert Store.open(store).count() == 0
        no_torn_file(store)
        ballast.unlink()
        report = stage.label(store, *LOCAL).sum()
        assert report["done"] + report["skipped"] == report["inputs"] == IMAGES
        assert report["adopted"] > 0
        no_torn_file(store)
        assert rows(store) == undisturbed


def test_a_disk_that_is_full_at_the_commit_leaves_the_store_as_it_was(tmp_path):
    from pipeline.errors import NoSpace
    from pipeline.record import to_table
    from pipeline.tables.fragment import write_fragment
    from tests.samples import SPACE, record_of, sample

    with small_disk(tmp_path / "disk", 1) as disk:
        ballast = disk / "ballast"
        fill(ballast, leave=0)
        with pytest.raises(NoSpace, match=r"disk/store: .* make room"):
            Store.create(disk / "store", [SPACE])
        ballast.unlink()
        store = Store.create(disk / "store", [SPACE])
        fragment = write_fragment(
            store.sink(), "data/x.parquet", to_table([record_of(sample("a"))])
        )
        fill(ballast, leave=0)
        with pytest.raises(NoSpace, match=r"disk/store: .* make room"):
            store.commit([fragment], rebase=lambda _: ([fragment], []))
        assert (store.latest().version, store.latest().count()) == (store.version, 0)
        ballast.unlink()
        assert store.commit([fragment]).count() == 1


def test_a_file_larger_than_allowed_is_told_as_well(stage, store, undisturbed):
    """The limit of a process, where no disk can be mounted; quotas act alike."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, 12_000))

    whole = (*LOCAL, "--shard-images", "60")
    report, _ = stage.label(store, *whole, preexec_fn=limit).end(code=1)
    assert "file too large" in report["error"]
    assert "run the same command again" in report["error"]
    assert Store.open(store).count() == 0
    assert not list(store.glob("data/**/*.*"))
    assert stage.label(store, *whole).sum()["done"] == IMAGES
    assert rows(store) == undisturbed


def test_two_drivers_at_once_label_each_image_into_one_row(stage, store, undisturbed):
    stage.steer(hold="")
    jobs = [stage.label(store, *LOCAL) for _ in range(2)]
    wait_for(lambda: stage.at_work(2))
    stage.steer()
    ends = [job.end(code=None) for job in jobs]
    assert 0 in {job.process.returncode for job in jobs}
    for job, (report, said) in zip(jobs, ends, strict=True):
        if job.process.returncode:
            assert "run this again" in said
        else:
            assert report["inputs"] == report["done"] + report["skipped"] == IMAGES
    assert rows(store) == undisturbed


def test_a_commit_of_another_between_is_no_conflict_for_ever(stage, store, undisturbed):
    """Half of the images are labelled by another command while this one is at work."""
    half = stage.images / "half.txt"
    names = sorted(p for p in stage.images.glob("*.jpg") if p.stem >= "0030")
    half.write_text("".join(f"{name}\n" for name in names))
    stage.steer(hold="")
    job = stage.label(store, *LOCAL)
    other = stage.label(store, *LOCAL, "--dataset", "images", images=str(half))
    wait_for(lambda: stage.at_work(2))
    stage.steer()
    assert other.sum()["failed"] == 0
    assert job.sum()["failed"] == 0
    assert rows(store) == undisturbed


def test_an_image_that_kills_the_process_costs_one_start(stage, store, undisturbed):
    """The first run dies of it; the same command then labels the rest and books it."""
    stage.steer(poison="")
    command = (*LOCAL, "--shard-images", "2", "--max-errors", "1")
    job = stage.label(store, *command)
    job.process.communicate(timeout=100)
    assert job.process.returncode == -signal.SIGSEGV
    report = stage.label(store, *command).sum()
    assert report["resumed"]
    assert report["done"] + report["skipped"] == IMAGES - 1
    assert rows(store) == [r for r in undisturbed if r.image_id != POISON]
    (failure,) = failures(store)
    assert (failure["image_id"], failure["error"]) == (POISON, "PoisonInput")


def test_upkeep_beside_a_job_costs_no_row(stage, store, undisturbed):
    """Compaction joins files that the job has committed; vacuum meets those it has not."""
    from pipeline.tables.upkeep import compact

    stage.steer()
    assert stage.label(store, *LOCAL, "--limit", "20").sum()["done"] == 20
    stage.steer(hold="")
    job = stage.label(store, *LOCAL)
    wait_for(lambda: stage.at_work(1), job)
    compact(Store.open(store))
    Store.open(store).vacuum(delete=True)
    stage.steer()
    report = job.sum()
    assert (report["done"], report["skipped"], report["failed"]) == (IMAGES - 20, 20, 0)
    assert rows(store) == undisturbed
