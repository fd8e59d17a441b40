"""Actors, nodes and drivers die while a cluster labels; the store does not show it."""

from __future__ import annotations

import os
import signal

import pyarrow.parquet as pq
import pytest

from tests.faults.stage import IMAGES, POISON, failures, rows, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def way(nodes):
    """Return the options of a job on the cluster, with an actor on each node."""
    return ("--runner", "ray", "--address", nodes.address, "--gpus-per-actor", "0",
            "--actors", "2:2")  # fmt: skip


def test_a_killed_actor_costs_a_shard_of_time(stage, way, store, undisturbed):
    stage.steer(hold="")
    job = stage.label(store, *way)
    for pid in wait_for(lambda: stage.at_work(2), job):
        os.kill(pid, signal.SIGKILL)
    stage.steer()
    report = job.sum()
    assert (report["inputs"], report["done"], report["failed"]) == (IMAGES, IMAGES, 0)
    assert rows(store) == undisturbed


def test_a_node_that_dies_takes_no_row_with_it(stage, nodes, way, store, undisturbed):
    stage.steer(hold="")
    job = stage.label(store, *way)
    wait_for(lambda: stage.at_work(2), job)
    node = stage.seen()[-1][1]
    nodes.do(f"kill {node}")
    stage.steer()
    try:
        report = job.sum()
    finally:
        nodes.do("grow")
    assert (report["inputs"], report["done"], report["failed"]) == (IMAGES, IMAGES, 0)
    assert rows(store) == undisturbed


def test_a_killed_driver_is_resumed(stage, way, store, undisturbed):
    stage.steer(pause="0.6")
    job = stage.label(store, *way)
    wait_for(lambda: len(list(store.glob("data/*/*/*.parquet"))) >= 3, job)
    written = [pq.read_metadata(file).num_rows for file in store.glob("data/*/*/*.parquet")]
    job.kill()
    stage.steer()
    report = stage.label(store, *way).sum()
    assert report["resumed"]
    assert report["adopted"] + report["skipped"] >= sum(written) > 0
    assert report["failed"] == 0
    assert sum(count for _, _, count in stage.seen()) >= report["done"]
    assert rows(store) == undisturbed


def test_a_full_object_store_does_not_stop_the_job(stage, nodes, way, store, undisturbed):
    nodes.do("fill")
    try:
        report = stage.label(store, *way).sum()
    finally:
        nodes.do("empty")
    assert (report["inputs"], report["done"]) == (IMAGES, IMAGES)
    assert rows(store) == undisturbed


def test_an_image_that_kills_its_process_stands_alone(stage, way, store, undisturbed):
    stage.steer(poison="")
    report = stage.label(store, *way, "--max-errors", "1", "--shard-images", "1").sum()
    assert (report["inputs"], report["done"], report["failed"]) == (IMAGES, IMAGES - 1, 1)
    assert rows(store) == [r for r in undisturbed if r.image_id != POISON]
    (failure,) = failures(store)
    assert (failure["image_id"], failure["error"]) == (POISON, "PoisonInput")
    assert failure["message"] == (
        f"{stage.images}/{POISON}.jpg: it killed the process that worked on it, twice; "
        "look at the file with another tool, or remove it"
    )
