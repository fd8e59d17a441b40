"""Verbs as jobs of a cluster: exit codes, killed nodes and drivers, places, stopping.

A head without CPUs, a node with CPUs and one with two GPUs in name. Many jobs at once, as most of
their time is Ray's start of processes.
"""

from __future__ import annotations

import signal
import subprocess
import sys

import psutil
import pytest
from ray.util.state import list_actors

from tests.cluster.conftest import IMAGES, MODEL
from tests.faults.stage import ROOT, rows, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

TRAINER = "RayTrainWorker"


class Client:
    """What `wait_for` asks of a job."""

    def __init__(self, process):
        self.process = process


def test_verbs_end_with_their_own_exit_codes(cluster, tmp_path):
    streets, there = cluster.stage.place / "streets" / "store", tmp_path
    local = ("--runner", "local")
    begun = [
        (0, cluster.begin("export", streets, there / "coco", "--format", "maskdir", *local)),
        (0, cluster.begin("store", "info", streets)),
        (0, cluster.begin("gallery", streets, "--out", there / "page", *local)),
        (1, cluster.begin("store", "info", there / "nothing")),
        (2, cluster.begin("label", cluster.stage.images, there / "s", "--model", MODEL,
                          "--gpus-per-actor", "0", "--runner", "sideways")),
        (4, cluster.begin("evaluate", "--truth", streets, "--pred", streets, "--split", "val",
                          "--out", there / "page4", "--fail-if", "miou<1.1", *local)),
    ]  # fmt: skip
    sums = [cluster.end(process, code) for code, process in begun]
    assert (sums[0]["inputs"], sums[0]["done"]) == (15, 15)
    assert sums[1]["verb"] == "store info"
    assert (there / "page" / "index.html").exists()
    assert "no label store here" in sums[3]["error"]
    assert "--runner takes" in sums[4]["error"]
    assert sums[5]["gate"]


def test_rays_own_client_does_as_well(cluster):
    """`ray job submit --working-dir .`, from the checkout; it knows 0 and 1 only."""
    store = cluster.stage.place / "streets" / "store"
    command = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit", "--address",
               cluster.address, "--working-dir", ".", "--", sys.executable, "-m", "jobs",
               "store", "info", store, "--json"]  # fmt: skip
    env = cluster.stage.environment() | {"SEGMILL_TEST_DIR": f"{cluster.stage.place}/clients"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert '"verb": "store info"' in done.stdout


def test_a_killed_gpu_node_and_a_killed_driver_leave_the_same_store(cluster, tmp_path):
    stage = cluster.stage
    label = ("label", stage.images)
    way = ("--model", MODEL, "--shard-images", "4")
    plain = cluster.begin(*label, tmp_path / "plain", *way, "--gpus", "0")
    assert cluster.end(plain)["done"] == IMAGES

    stage.steer(hold="")
    client = cluster.begin(*label, tmp_path / "node", *way, "--gpus", "1")
    wait_for(lambda: stage.at_work(1), Client(client))
    assert {node for _, node, _ in stage.seen()} == {cluster.nodes["gpu"]}
    cluster.do("kill", "gpu")
    cluster.do("grow", "gpu")
    # A worker outlives its raylet by a moment: it is held until another is at work.
    wait_for(lambda: cluster.nodes["gpu"] in {node for _, node, _ in stage.seen()}, Client(client))
    stage.steer()
    report = cluster.end(client)
    assert (report["inputs"], report["done"], report["failed"]) == (IMAGES, IMAGES, 0)
    assert rows(tmp_path / "node") == rows(tmp_path / "plain")

    stage.steer(pause="0.5")
    store = tmp_path / "driver"
    client = cluster.begin(*label, store, *way, "--gpus", "1", "--retries", "1")
    wait_for(lambda: len(list(store.glob("data/*/*/*.parquet"))) >= 2, Client(client))
    (driver,) = [p for p in psutil.process_iter() if is_driver(p, str(store), str(stage.place))]
    driver.send_signal(signal.SIGKILL)
    stage.steer()
    report = cluster.end(client)
    assert report["resumed"]
    assert report["adopted"] + report["skipped"] >= 2 * 4
    assert report["inputs"] == report["done"] + report["skipped"] == IMAGES
    assert rows(store) == rows(tmp_path / "plain")


def is_driver(process: psutil.Process, store: str, place: str) -> bool:
    """Tell whether a process of the cluster is the driver that writes the store."""
    try:
        return (
            process.environ().get("SEGMILL_TEST_DIR") == place
            and store in process.cmdline()
            and "jobs" in process.cmdline()
            and "submit" not in process.cmdline()
        )
    except psutil.Error:
        return False


def test_training_outlives_a_killed_node(cluster, tmp_path):
    place = cluster.stage.place
    recipe = ("--recipe", place / "tiny.yaml", "--cpu", "--workers", "1", "--epochs", "12")
    client = cluster.begin(
        "train", place / "streets" / "store", "--out", tmp_path / "model", *recipe
    )
    wait_for((tmp_path / "model" / "checkpoint.pt").exists, Client(client))
    trainer = wait_for(lambda: worker_node(cluster), Client(client))
    kind = next(kind for kind, node in cluster.nodes.items() if node == trainer)
    cluster.do("kill", kind)
    cluster.do("grow", kind)
    report = cluster.end(client)
    assert report["epochs"] == 12
    assert (tmp_path / "model" / "weights.safetensors").exists()
    assert len(list_actors(cluster.address, filters=[("class_name", "=", TRAINER)])) == 2
    assert kind == "cpu", "a CPU stage does not sit on a GPU node while there is room elsewhere"


def worker_node(cluster) -> str | None:
    """Return the node on which Ray says that a training worker lives."""
    found = list_actors(cluster.address, filters=[("state", "=", "ALIVE")], detail=True)
    return next((a.node_id for a in found if a.class_name == TRAINER), None)


@pytest.fixture(autouse=True)
def _no_token(monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")


def test_cpu_stages_take_no_gpu_and_segmenters_share_one(cluster, tmp_path):
    stage = cluster.stage
    stage.steer(pause="1")
    source = cluster.stage.place / "streets" / "store"
    clients = [
        cluster.begin("label", stage.images, tmp_path / "s", "--model", MODEL, "--gpus", "1",
                      "--gpus-per-actor", "0.5", "--shard-images", "4"),
        cluster.begin("export", source, tmp_path / "out", "--format", "maskdir", "--runner", "ray"),
    ]  # fmt: skip
    for client in clients:
        cluster.end(client)
    stage.steer()
    actors = [a for a in list_actors(cluster.address, detail=True, limit=1000)
              if a.class_name == "_Actor"]  # fmt: skip
    shares = {}
    for actor in actors:
        gpus = (actor.required_resources or {}).get("GPU", 0)
        if actor.node_id in cluster.nodes.values():
            shares.setdefault(gpus, set()).add(actor.node_id)
    assert shares[0.5] == {cluster.nodes["gpu"]}
    assert shares[0] == {cluster.nodes["cpu"]}


def test_a_job_that_has_no_place_is_stopped_all_the_same(cluster):
    plan = ("store", "info", cluster.stage.place / "streets" / "store")
    how = ("--submission-id", "pending", "--driver-cpus", "99", "--no-wait")
    assert cluster.end(cluster.begin(*how, *plan))["submission_id"] == "pending"
    refused = cluster.end(cluster.begin(*how, *plan), code=1)
    assert "pending runs already" in refused["error"]
    said = cluster.end(cluster.begin("jobs", "stop", "pending", "--timeout", "2", "--json"))
    assert said["status"] in {"FAILED", "STOPPED"}
    assert "by force" in said["how"]
    listed = cluster.end(cluster.begin("jobs", "list", "--json"))["jobs"]
    assert {"pending"} <= {job["submission_id"] for job in listed}
