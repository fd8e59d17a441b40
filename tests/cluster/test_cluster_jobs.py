"""Verbs as jobs of a cluster: exit codes, killed nodes and drivers, places, stopping.

A head without CPUs, a node with CPUs and one with two GPUs in name. Few jobs, begun together where
they can be: most of their time is Ray's start of processes.
"""

from __future__ import annotations

import json
import signal
import sys
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import psutil
import pyarrow.parquet as pq
import pytest
from ray.util.state import list_actors

from jobs import VERBS
from tests.cluster.conftest import IMAGES, MODEL
from tests.cluster.verbs import SAYS
from tests.faults.stage import rows, wait_for
from tests.refresh.palette_model import BETTER, POISONED
from tests.refresh.world import World

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.cluster.conftest import Cluster

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

LOCAL = ("--runner", "local")
ON_RAY = ("--runner", "ray", "--workers", "1")
WAY = ("--model", MODEL, "--shard-images", "4")
TRAINER = "RayTrainWorker"
TOGETHER = "python:tests.tiny_net:plain?classes=11&label_space=camvid-11"
HERE_ONLY = {"submit", "jobs"}


class Client:
    """What `wait_for` asks of a job."""

    def __init__(self, process: Any) -> None:
        self.process = process


@pytest.fixture(autouse=True)
def _no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")


def commands(place: Path, out: Path) -> list[tuple[int, tuple[object, ...]]]:
    """Return every verb with the exit code that it must come to: success, failure and gate."""
    streets, masks = place / "streets" / "store", out / "masks"
    refresh = place / "nightly" / "refresh.yaml"
    soft = ("pseudo-label", TOGETHER, "--truth", streets, *LOCAL)
    score = ("evaluate", "--truth", streets, "--split", "val", *LOCAL)
    train = ("train", streets, "--cpu", "--workers", "1", "--epochs", "1", "--out", out / "model")
    return [
        (0, ("doctor",)),
        (0, ("models", "enet", "--size", "32x32")),
        (2, ("models", "no-such-network")),
        (0, ("export", streets, masks, "--format", "maskdir", *ON_RAY)),
        (1, ("export", out / "no", out / "x", "--format", "maskdir", *LOCAL)),
        (4, ("export", streets, out / "yolo", "--format", "yolo-seg", "--strict", *LOCAL)),
        (0, ("ingest", masks, out / "ingested", "--format", "maskdir", *LOCAL)),
        (1, ("ingest", out / "no", out / "x", "--format", "maskdir", *LOCAL)),
        (0, ("convert", masks, out / "cvat", "--from", "maskdir", "--to", "cvat", *LOCAL)),
        (1, ("convert", out / "no", out / "x", "--from", "maskdir", "--to", "cvat", *LOCAL)),
        (4, ("convert", masks, out / "y", "--from", "maskdir", "--to", "yolo-seg", "--strict",
             *LOCAL)),
        (0, ("label", place / "images", out / "plain", *WAY, "--gpus-per-actor", "0", *ON_RAY[:2],
             "--actors", "1")),
        (2, ("label", place / "images", out / "x", *WAY, "--runner", "sideways")),
        (0, (*soft, "--images", streets.parent / "images", "--out", out / "soft", "--report",
             out / "soft-report")),
        (1, (*soft, "--images", out / "no", "--out", out / "x", "--report", out / "x-report")),
        (2, (*train, "--recipe", out / "none.yaml")),
        (0, (*score, "--pred", streets, "--out", out / "page")),
        (1, (*score, "--pred", out / "no", "--out", out / "x")),
        (4, (*score, "--pred", streets, "--out", out / "page4", "--fail-if", "miou<1.1")),
        (0, ("gallery", streets, "--out", out / "pictures", *LOCAL)),
        (1, ("gallery", out / "no", "--out", out / "x", *LOCAL)),
        (0, ("store", "validate", streets, "--out", out / "checks")),
        (0, ("refresh", refresh, "--night", "2026-11-01")),
        (4, ("refresh", place / "nightly" / "poisoned.yaml", "--night", "2026-11-02")),
        (1, ("demo", "--data", out / "no", "--out", out / "tour")),
    ]  # fmt: skip


class Ran(NamedTuple):
    """The verbs that one job ran, their codes, and where their files are."""

    asked: list[tuple[int, tuple[object, ...]]]
    codes: dict[int, int]
    said: str
    out: Path


@pytest.fixture(scope="module")
def begun(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Ran]:
    """Begin all verbs in one job, sent by Ray's own client; return what waits for its end."""
    place, out = cluster.stage.place, tmp_path_factory.mktemp("verbs")
    world = World(place / "nightly", POISONED)
    world.file().rename(place / "nightly" / "poisoned.yaml")
    World(place / "nightly", BETTER).file()
    asked = commands(place, out)
    cluster.stage.steer()
    listed = out / "commands.json"
    listed.write_text(json.dumps([[str(word) for word in words] for _, words in asked]))
    client = cluster.spawn(
        "-m", "ray.scripts.scripts", "job", "submit", "--address", cluster.address,
        "--working-dir", ".", "--", sys.executable, "-m", "tests.cluster.verbs", listed,
    )  # fmt: skip

    @cache
    def end() -> Ran:
        said, err = client.communicate(timeout=400)
        assert client.returncode == 0, f"{err[-2000:]} {said[-2000:]}"
        told = [line.split()[1:] for line in said.splitlines() if line.startswith(SAYS)]
        return Ran(asked, {int(number): int(code) for number, code in told}, said, out)

    return end


@pytest.fixture
def ran(begun: Callable[[], Ran]) -> Ran:
    """Wait for the job of all verbs; tests that need nothing of it run beside it."""
    return begun()


@pytest.mark.usefixtures("begun")
def test_submit_leaves_with_the_drivers_exit_code(cluster: Cluster, tmp_path: Path) -> None:
    """Success, failure and gate of the driver itself; Ray's client knows 0 and 1 only."""
    streets, there = cluster.stage.place / "streets" / "store", tmp_path / "odd 'name\nof; $(two)"
    begun = [
        (0, cluster.begin("export", streets, there, "--format", "maskdir", *LOCAL)),
        (1, cluster.begin("store", "info", there / "nothing")),
        (4, cluster.begin("evaluate", "--truth", streets, "--pred", streets, "--split", "val",
                          "--out", there / "page4", "--fail-if", "miou<1.1", *LOCAL)),
    ]  # fmt: skip
    sums = [cluster.end(process, code) for code, process in begun]
    assert (sums[0]["inputs"], sums[0]["done"]) == (15, 15)
    assert (there / "classes.tsv").exists()
    assert sums[1]["verb"] == "store info"
    assert "no label store here" in sums[1]["error"]
    assert sums[2]["gate"]


@pytest.mark.usefixtures("begun")
def test_a_job_that_has_no_place_is_stopped_all_the_same(cluster: Cluster) -> None:
    plan = ("store", "info", cluster.stage.place / "streets" / "store")
    how = ("--submission-id", "pending", "--driver-cpus", "99", "--no-wait")
    assert cluster.end(cluster.begin(*how, *plan))["submission_id"] == "pending"
    refused = cluster.begin(*how, *plan)
    said = cluster.end(cluster.begin("jobs", "stop", "pending", "--timeout", "2", "--json"))
    assert "pending runs already" in cluster.end(refused, code=1)["error"]
    assert said["status"] in {"FAILED", "STOPPED"}
    assert "by force" in said["how"]
    listed = cluster.end(cluster.begin("jobs", "list", "--json"))["jobs"]
    assert {"pending"} <= {job["submission_id"] for job in listed}


def test_every_verb_has_its_own_exit_codes_in_a_job(ran: Ran) -> None:
    wrong = [
        (words, wanted, ran.codes.get(number))
        for number, (wanted, words) in enumerate(ran.asked)
        if ran.codes.get(number) != wanted
    ]
    assert not wrong, ran.said[-4000:]
    assert {str(words[0]) for _, words in ran.asked} == set(VERBS) - HERE_ONLY
    assert len(rows(ran.out / "plain")) == IMAGES
    assert len(rows(ran.out / "ingested")) == 15


def test_killed_nodes_lose_neither_labels_nor_a_training(
    cluster: Cluster, ran: Ran, tmp_path: Path
) -> None:
    """The node of the segmenter and the node of the trainer, of two jobs at work at once."""
    stage, store, model = cluster.stage, tmp_path / "node", tmp_path / "model"
    stage.steer(hold="")
    label = cluster.begin("label", stage.images, store, *WAY, "--gpus", "1")
    train = cluster.begin(
        "train", stage.place / "streets" / "store", "--out", model, "--recipe",
        stage.place / "tiny.yaml", "--cpu", "--workers", "1", "--epochs", "12",
    )  # fmt: skip
    wait_for((model / "checkpoint.pt").exists, Client(train))
    trainer = wait_for(lambda: worker_node(cluster), Client(train))
    assert trainer == cluster.nodes["cpu"], "a CPU stage sits on no GPU node while there is room"
    cluster.do("kill", "cpu")
    cluster.do("grow", "cpu")
    wait_for(lambda: stage.at_work(1), Client(label))
    first = stage.at_work(1)
    assert {node for _, node, _ in stage.seen()} == {cluster.nodes["gpu"]}
    cluster.do("kill", "gpu")
    cluster.do("grow", "gpu")
    # A worker outlives its raylet by a moment: it is held until another is at work.
    wait_for(lambda: cluster.nodes["gpu"] in {node for _, node, _ in stage.seen()}, Client(label))
    assert stage.at_work(1) - first
    stage.steer()
    report = cluster.end(label)
    assert (report["inputs"], report["done"], report["failed"]) == (IMAGES, IMAGES, 0)
    assert rows(store) == rows(ran.out / "plain")
    assert cluster.end(train)["epochs"] == 12
    assert (model / "weights.safetensors").exists()
    assert len(list_actors(cluster.address, filters=[("class_name", "=", TRAINER)])) == 2


def worker_node(cluster: Cluster) -> str | None:
    """Return the node on which Ray says that a training worker lives."""
    found = list_actors(cluster.address, filters=[("state", "=", "ALIVE")], detail=True)
    return next((str(a.node_id) for a in found if a.class_name == TRAINER), None)


def test_a_killed_driver_goes_on_and_every_stage_has_its_place(
    cluster: Cluster, ran: Ran, tmp_path: Path
) -> None:
    stage, store = cluster.stage, tmp_path / "driver"
    stage.steer(pause="0.5")
    client = cluster.begin(
        "label", stage.images, store, *WAY, "--gpus", "1", "--gpus-per-actor", "0.5",
        "--retries", "1",
    )  # fmt: skip
    written = wait_for(lambda: two_fragments(store), Client(client))
    (driver,) = [p for p in psutil.process_iter() if is_driver(p, str(store), str(stage.place))]
    driver.send_signal(signal.SIGKILL)
    stage.steer()
    report = cluster.end(client)
    assert report["resumed"]
    assert report["adopted"] + report["skipped"] >= written > 0
    assert report["inputs"] == report["done"] + report["skipped"] == IMAGES
    assert rows(store) == rows(ran.out / "plain")

    actors = [a for a in list_actors(cluster.address, detail=True, limit=1000)
              if a.class_name == "_Actor" and a.node_id]  # fmt: skip  # some never had a place
    places: dict[float, set[str]] = {}
    for actor in actors:
        share = (actor.required_resources or {}).get("GPU", 0)
        kind = next((k for k, nodes in cluster.ever.items() if actor.node_id in nodes), "head")
        places.setdefault(share, set()).add(kind)
    assert places[0.5] == {"gpu"}, "segmenters"
    assert places[0] == {"cpu"}, "the export and the labelling without a GPU"


def two_fragments(store: Path) -> int:
    """Return the rows of the fragments that there are, once there are two."""
    found = list(store.glob("data/*/*/*.parquet"))
    return sum(pq.read_metadata(path).num_rows for path in found) if len(found) >= 2 else 0


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
