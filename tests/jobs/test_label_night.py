"""`segmill label` unattended: odd sources, and what a stop, a log and the metrics tell."""

from __future__ import annotations

import re
import signal
import socket
import time

import pytest

from pipeline.errors import StoreError
from pipeline.store import Store
from tests.jobs.calls import call
from tests.jobs.test_label import SLOW, start
from tests.samples import write_scenes

MODEL = ("--model", "zoo:enet?label_space=camvid-11&seed=0", "--runner", "local")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    root = tmp_path_factory.mktemp("night") / "100%25 of it"
    write_scenes(root, 6, height=48, width=64)
    return root


def test_one_image_is_a_source(scenes, tmp_path, capsys):
    summary, _ = call(capsys, "label", scenes / "0002.jpg", tmp_path / "s", *MODEL)
    assert (summary["inputs"], summary["done"]) == (1, 1)
    (row,) = Store.open(tmp_path / "s").records()
    assert row.image.path == str(scenes / "0002.jpg")


def test_a_source_may_hold_what_a_store_must_not(scenes, tmp_path, capsys):
    """%25 in a store's path would be undone by Delta; in an image's it is a part of the name."""
    summary, _ = call(capsys, "label", scenes, tmp_path / "s", *MODEL)
    assert (summary["inputs"], summary["done"]) == (6, 6)


def test_a_store_that_cannot_be_asked_is_told_in_plain_words(monkeypatch):
    def refuse(*_):
        raise OSError("Operation \x1b[31m↳\x1b[0m no credentials")

    monkeypatch.setattr("deltalake.DeltaTable.is_deltatable", refuse)
    with pytest.raises(StoreError, match=r"s3://b/labels: .* no credentials; check") as told:
        Store.create("s3://b/labels", [])
    assert not re.search("[\x1b↳]", str(told.value))


def test_a_list_under_a_new_name_is_told(scenes, tmp_path, capsys):
    names = "".join(f"{p}\n" for p in sorted(scenes.glob("*.jpg")))
    for night in ("monday.txt", "tuesday.txt"):
        (tmp_path / night).write_text(names)
    store = tmp_path / "s"
    monday, said = call(capsys, "label", tmp_path / "monday.txt", store, *MODEL, "--limit", 3)
    assert "--dataset" not in said
    _, said = call(capsys, "label", tmp_path / "monday.txt", store, *MODEL)
    assert "--dataset" not in said
    tuesday, said = call(capsys, "label", tmp_path / "tuesday.txt", store, *MODEL)
    assert (monday["done"], tuesday["done"]) == (3, 6)
    assert "none of these 6 inputs is among the 6 rows" in said
    assert "--dataset" in said
    same, said = call(
        capsys, "label", tmp_path / "tuesday.txt", store, *MODEL, "--dataset", "monday"
    )
    assert (same["skipped"], said) == (6, "")


def test_metrics_are_of_the_last_run_also_where_nothing_was_to_do(scenes, tmp_path, capsys):
    """The driver before died with images left: what alarms on that must hear of its successor."""
    file = tmp_path / "m.prom"

    def gauges():
        found = re.findall(r'^(\w+)\{run="([^"]+)",verb="label"\} (\S+)$', file.read_text(), re.M)
        return {name: (run, float(value)) for name, run, value in found}

    words = ("label", scenes, tmp_path / "s", *MODEL, "--metrics", file)
    first, _ = call(capsys, *words)
    assert gauges()["segmill_images_total"] == (first["run"], 6)
    for name in ("segmill_todo", "segmill_workers", "segmill_queue_depth"):
        assert gauges()[name] == (first["run"], 0), name
    second, _ = call(capsys, *words)
    assert (second["skipped"], second["run"]) == (6, gauges()["segmill_todo"][0])
    _, said = call(capsys, *words[:-1], tmp_path / "nowhere" / "m.prom", code=2)
    assert "--metrics" in said


def test_the_stages_of_the_driver_and_the_wall_are_the_command(scenes, tmp_path, capsys):
    summary, _ = call(capsys, "label", scenes, tmp_path / "s", *MODEL)
    stages = summary["stages"]
    named = summary["wall"] + sum(stages[name] for name in ("load", "list", "plan", "adopt"))
    assert named <= summary["seconds"] + 0.01
    assert stages["load"] > 0


def test_a_wrong_runner_is_told_before_anything_is_listed(tmp_path, capsys):
    _, said = call(capsys, "label", "nowhere", tmp_path / "s", *MODEL[:2], "--runner", "ry", code=2)
    assert "--runner takes" in said
    assert not (tmp_path / "s").exists()


def test_a_stopped_run_says_what_it_had_come_to(scenes, tmp_path, capsys):
    store, log = tmp_path / "s", tmp_path / "log"
    words = ("label", str(scenes), str(store), "--model", SLOW, "--runner", "local")
    process = start(*words, "--shard-images", "1", SEGMILL_TEST_LOG=str(log),
                    SEGMILL_TEST_SLEEP="4")  # fmt: skip
    deadline = time.monotonic() + 120
    while not list(store.glob("data/*/*/*.parquet")) and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert re.search(r"label: \d done and 0 failed of 6", err)
    assert '"so_far": {' in out.splitlines()[-1]


def test_evaluate_says_why_objects_have_no_score(scenes, tmp_path, capsys):
    model = "torchvision:maskrcnn_resnet50_fpn?min_size=32&max_size=48&label_space=coco-80"
    call(capsys, "label", scenes, tmp_path / "truth", *MODEL, "--limit", 1)
    call(capsys, "label", scenes, tmp_path / "objects", "--model", model, *MODEL[2:], "--limit", 1)
    both = ("--out", tmp_path / "report", "--runner", "local")
    stores = {"--truth": tmp_path / "truth", "--pred": tmp_path / "objects"}
    pairs = [word for pair in stores.items() for word in pair]
    _, said = call(capsys, "evaluate", *pairs, *both, code=3)
    assert "coco-instances" in said
    assert "no image was scored" in said


def test_a_wrong_source_is_told_before_anything_is_made(tmp_path, capsys):
    told, _ = call(capsys, "label", tmp_path / "nowhere", tmp_path / "s", *MODEL, code=1)
    assert "nowhere" in told["error"]
    assert not (tmp_path / "s").exists()


def test_an_unknown_option_of_a_model_is_told_with_those_it_has(scenes, tmp_path, capsys):
    model = ("--model", "zoo:enet?label_space=camvid-11&nope=1")
    told, _ = call(capsys, "label", scenes, tmp_path / "s", *model, code=2)
    assert "no option nope; it takes:" in told["error"]


def test_too_many_errors_end_the_job_and_keep_what_is_done(scenes, tmp_path, capsys):
    images = tmp_path / "images"
    images.mkdir()
    for n in range(12):
        (images / f"a{n:02d}.jpg").write_bytes(b"no image")
    write_scenes(images, 6, height=48, width=64)
    how = (*MODEL, "--shard-images", 2)
    told, _ = call(capsys, "label", images, tmp_path / "s", *how, "--max-errors", "20%", code=3)
    assert "--max-errors allows 3" in told["error"]
    assert 3 < told["so_far"]["failed"] < 12
    failed = Store.open(tmp_path / "s").failures().num_rows
    assert failed == told["so_far"]["failed"]
    whole, _ = call(capsys, "label", images, tmp_path / "s", *how, "--max-errors", "12")
    assert (whole["done"] + whole["skipped"], whole["failed"]) == (6, 12)
    assert all(0 <= w["device_busy"] <= 1 for w in whole["by_worker"])


def test_a_cluster_that_is_not_there_is_told_at_once(scenes, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("ray.is_initialized", lambda: False)  # the suite has a session
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{free.getsockname()[1]}"  # bound, and nobody listens
        where = ("--runner", "ray", "--gpus-per-actor", 0, "--address", place)
        _, said = call(capsys, "label", scenes, tmp_path / "s", *MODEL[:2], *where, code=2)
    assert f"no Ray cluster answers at '{place}'" in said


def test_ray_is_not_started_where_nothing_is_to_do(scenes, tmp_path, capsys, monkeypatch):
    command = ("label", scenes, tmp_path / "s", *MODEL[:2], "--runner")
    assert call(capsys, *command, "local")[0]["done"] == 6
    monkeypatch.setattr("pipeline.ray_runner.start_ray", lambda *_: pytest.fail("Ray was started"))
    report, _ = call(capsys, *command, "ray")
    assert (report["inputs"], report["skipped"]) == (6, 6)
