"""The verb: exit codes, the JSON summary, status, rollback, webhook, two at once."""

from __future__ import annotations

import http.server
import json
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from pipeline.files import open_sink
from pipeline.refresh.config import EXAMPLE, read_config
from pipeline.refresh.lease import Holder
from tests.jobs.calls import call
from tests.refresh.palette_model import BETTER, GOOD, POISONED
from tests.refresh.world import World, rows_of


@pytest.fixture
def hook():
    """Give a web address, and what was posted to it."""
    posted = []

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            posted.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204 if len(posted) < 3 else 500)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Answer)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/hook", posted
    server.shutdown()
    thread.join()
    server.server_close()


def test_nights_by_the_command_line(tmp_path, capsys, hook):
    url, posted = hook
    world = World(tmp_path, GOOD)
    world.arrive(0, 4)

    def refresh(*args: object, code: int = 0) -> dict:
        file = world.file(webhook={"url": url, "timeout": 5})
        return call(capsys, "refresh", file, *args, code=code)[0]

    first = refresh("--night", "2026-11-01")
    assert (first["status"], first["version"], first["done"]) == ("published", 1, 4)
    world.model, before = POISONED, rows_of(world.store())
    world.arrive(4, 1)
    rejected = refresh("--night", "2026-11-02", code=4)
    assert rejected["status"] == "rejected"
    assert "against the champion" in rejected["gate"]
    assert rows_of(world.store()) == before
    world.model = BETTER
    assert refresh("--night", "2026-11-03")["status"] == "published"
    world.model = "zoo:none"
    failed = refresh("--night", "2026-11-04", code=2)
    assert "none" in failed["error"]
    assert [p["status"] for p in posted] == ["published", "rejected", "published", "failed"]
    assert posted[1]["reasons"] == rejected["reasons"]
    assert posted[0]["tag"] == "night-2026-11-01"

    shown = refresh("--status")
    assert shown["in_force"] == "2026-11-03"
    assert [n["status"] for n in shown["nights"]] == [
        "failed", "published", "rejected", "published",
    ]  # fmt: skip
    back = refresh("--rollback")
    assert back["to"] == "2026-11-01"
    assert rows_of(world.store()) == before
    assert refresh("--status", "--limit", "2")["in_force"] == "2026-11-01"
    assert "first that was published" in refresh("--rollback", code=2)["error"]
    champion = json.loads((tmp_path / "models" / "champion.json").read_text())
    assert champion["night"] == "2026-11-01"
    records = [json.loads(p.read_text()) for p in sorted(tmp_path.glob("work/nights/*/night.json"))]
    assert [r["webhook"] for r in records] == ["204", "204", "500", "500"]


def test_who_comes_second_says_so_and_exits_0(tmp_path, capsys):
    world = World(tmp_path, GOOD)
    world.arrive(0, 2)
    other = replace(Holder.here(600), host="far", place="", attempt="0-00000000-1")
    sink = open_sink(f"{world.labels}.lease")
    sink.write("00000001.json", json.dumps(asdict(other)).encode())
    summary, _ = call(capsys, "refresh", world.file(), "--night", "2026-11-01")
    assert summary["status"] == "skipped"
    assert "process" in summary["reason"]
    assert not (tmp_path / "labels").exists()
    sink.write("00000001.json", json.dumps(asdict(replace(other, until=1.0))).encode())
    summary, _ = call(capsys, "refresh", world.file(), "--night", "2026-11-01")
    assert summary["status"] == "published"


def started(file: Path, night: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "jobs", "refresh", str(file), "--night", night, "--json"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def leased(process: subprocess.Popen[str], leases: Path) -> Path:
    """Wait until a process holds the lease; return its file."""
    ends = time.monotonic() + 60
    while time.monotonic() < ends and process.poll() is None:
        for path in leases.glob("*.json"):
            if json.loads(path.read_text())["pid"] == process.pid:
                return path
        time.sleep(0.005)
    raise AssertionError("it never took the lease")


def told(process: subprocess.Popen[str]) -> dict:
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0, out
    return json.loads(out)


def test_two_processes_at_once_and_one_that_is_killed(tmp_path):
    world = World(tmp_path, GOOD)
    world.arrive(0, 3)
    file, leases = world.file(), Path(f"{world.labels}.lease")

    first = started(file, "2026-11-01")
    leased(first, leases)
    first.send_signal(signal.SIGSTOP)  # it lives, however fast the second one is
    second = told(started(file, "2026-11-01"))
    first.send_signal(signal.SIGCONT)
    assert second["status"] == "skipped"
    assert f"process {first.pid}" in second["reason"]
    assert told(first)["status"] == "published"

    world.arrive(3, 1)
    killed = started(file, "2026-11-02")
    left = leased(killed, leases)
    killed.kill()
    assert killed.wait(60) == -signal.SIGKILL
    holder = json.loads(left.read_text())
    assert holder["until"] > time.time() + 60
    # Another machine cannot see that the process is dead: the lease holds until it expires.
    left.write_text(json.dumps(holder | {"host": "far", "until": time.time() + 20}))
    kept = told(started(file, "2026-11-02"))
    assert kept["status"] == "skipped"
    assert "on far" in kept["reason"]
    left.write_text(json.dumps(holder | {"host": "far", "until": time.time()}))
    assert told(started(file, "2026-11-02"))["status"] == "published"

    world.arrive(4, 1)
    killed = started(file, "2026-11-03")
    leased(killed, leases)
    killed.kill()
    killed.wait(60)
    assert told(started(file, "2026-11-03"))["status"] == "published"  # this one sees it
    assert len(rows_of(world.store())) == 5


def test_a_webhook_that_is_not_there_fails_no_night(tmp_path, capsys):
    world = World(tmp_path, GOOD)
    world.arrive(0, 2)
    file = world.file(webhook={"url": "http://127.0.0.1:9/none", "timeout": 1})
    summary, _ = call(capsys, "refresh", file, "--night", "2026-11-01")
    assert summary["status"] == "published"
    assert "refused" in summary["webhook"]


def test_the_example_is_a_configuration(tmp_path, capsys):
    summary, _ = call(capsys, "refresh", "--example")
    assert summary["example"] == EXAMPLE
    file = tmp_path / "example.yaml"
    file.write_text(EXAMPLE)
    assert read_config(file).tag_of("2026-11-24") == "night-2026-11-24"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("miou: 0.35", "mioo: 0.35"), "no key is called 'gate.least.mioo'; known: classes, miou"),
        (("canary: 256", "canary: -1"), "drift.canary"),
        (("lease_minutes: 10", "lease_minuts: 10"), "no key is called 'lease_minuts'"),
        (("max_errors: 1%", "max_errors: some"), "label.max_errors: is a count or a share"),
        (("labels: stores/labels", "labels: stores/camvid"), "are the same place"),
        (("tag: night-{night}", "tag: nightly"), "must hold {night}"),
        (("training: keep", "training: {recipee: x}"), "training.recipee"),
        (("model: run:models/first", ""), "name a model, or a training"),
        (("classes.Car.iou < 0.3", "classes.Car.iou <"), "gate.fail_if"),
        (("tta: flip", "tta: [flip"), "no YAML"),
    ],
)
def test_a_wrong_configuration_names_the_key(tmp_path, capsys, change, said):
    file = tmp_path / "refresh.yaml"
    assert change[0] in EXAMPLE
    file.write_text(EXAMPLE.replace(*change))
    summary, _ = call(capsys, "refresh", file, code=2)
    assert said in summary["error"]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ((), "--example"),
        (("none.yaml",), "none.yaml: cannot be read"),
        (("none.yaml", "--to", "2026-11-01"), "--to is of --rollback"),
    ],
)
def test_wrong_words(capsys, args, said):
    assert said in call(capsys, "refresh", *args, code=2)[0]["error"]


def test_a_night_is_a_date(tmp_path, capsys):
    world = World(tmp_path)
    summary, _ = call(capsys, "refresh", world.file(), "--night", "tonight", code=2)
    assert "2026-11-24" in summary["error"]
