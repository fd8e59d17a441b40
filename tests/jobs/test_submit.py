"""What `segmill submit` decides before it talks to a cluster, and how it reads what Ray says."""

from __future__ import annotations

import http.server
import json
import os
import shlex
import subprocess
import sys
import threading
import time
from types import SimpleNamespace
from typing import ClassVar

import pytest

from jobs import VERBS, packing, ray_jobs
from jobs.examples import EXAMPLES
from jobs.jobs import end_job
from jobs.packing import check_places, gpu_options, job_name, pack, parse_verb, variables
from jobs.ray_jobs import ClusterSilent, JobRuns, NoSuchJob, ended, server_address, within
from jobs.submit import Order, _through, free_name
from pipeline.errors import SegmillError, UsageError
from tests.jobs.calls import call

LABEL = ("label", "images", "s3://labels/night", "--model", "zoo:enet")


def test_a_mistake_is_told_before_it_is_sent(capsys):
    summary, _ = call(capsys, "submit", "label", "images", code=2)
    assert "Missing" in summary["error"]
    summary, _ = call(capsys, "submit", "lable", "images", code=2)
    assert "no verb" in summary["error"]
    summary, _ = call(capsys, "submit", "store", "forget", "x", code=2)
    assert "info" in summary["error"]
    summary, _ = call(capsys, "submit", "jobs", "list", code=2)
    assert "not submitted" in summary["error"]
    summary, _ = call(capsys, "submit", "--no-wait", "--retries", 2, *LABEL, code=2)
    assert "--wait" in summary["error"]


def test_nobody_there_is_an_error_in_one_line(capsys, monkeypatch):
    where = ("--address", "http://127.0.0.1:9")
    monkeypatch.setenv("RAY_ADDRESS", "ray://elsewhere:10001")
    before = dict(os.environ)
    summary, said = call(capsys, "submit", *where, "store", "info", "s3://x/y", code=1)
    assert "nothing answers at http://127.0.0.1:9" in summary["error"]
    assert "Traceback" not in said
    changed = {name for name, value in os.environ.items() if before.get(name) != value}
    assert changed <= {"RAY_AUTH_MODE"}, "an address that it leaves would steer Ray's own client"
    assert os.environ["RAY_ADDRESS"] == "ray://elsewhere:10001"


def test_secrets_stay_at_home():
    assert variables(["A=b=c", "TOKENIZERS_PARALLELISM=false"]) == {
        "A": "b=c", "TOKENIZERS_PARALLELISM": "false",
    }  # fmt: skip
    os.environ["SEGMILL_HERE"] = "there"
    assert variables(["SEGMILL_HERE"]) == {"SEGMILL_HERE": "there"}
    for name in (
        "AWS_SECRET_ACCESS_KEY",
        "HF_TOKEN",
        "PASSWORD",
        "my_api_key",
        "AWS_ACCESS_KEY_ID",
    ):
        with pytest.raises(UsageError, match="shows a job's variables") as refused:
            variables([f"{name}=hunter2"])
        assert "hunter2" not in str(refused.value)
    for bad in ("=x", "A B=c", "SEGMILL_NOT_SET_ANYWHERE", "P=http://me:pw@proxy"):
        with pytest.raises(UsageError):
            variables([bad])
    with pytest.raises(UsageError, match="holds a login") as refused:
        parse_verb(["store", "info", "s3://me:hunter2@bucket/x"])
    assert "hunter2" not in str(refused.value)
    for signed in (
        "https://a.blob.core.windows.net/c/x.tar?sp=r&sig=hunter2",
        "https://b.s3.amazonaws.com/x.tar?X-Amz-Credential=a&X-Amz-Signature=hunter2",
        "https://host/x.tar?access_token=hunter2",
    ):
        with pytest.raises(UsageError, match="holds a login") as refused:
            parse_verb(["label", signed, "s3://labels/x"])
        assert "hunter2" not in str(refused.value)
        with pytest.raises(UsageError, match="holds a login"):
            variables([f"WHERE={signed}"])
    parse_verb(["label", "s3://b/x", "s3://b/y", "--model", "run:s3://b/m?classes=3&seed=1"])


class Silent:
    """A cluster whose head answers with an error, or not at all, once a job is there."""

    address = "http://far:8265"

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.submitted: list[str] = []

    def here(self) -> bool:
        return False

    def python(self) -> str:
        return "python"

    def all(self) -> list[object]:
        return []

    def submit(self, **how: object) -> str:
        assert "hunter2" not in str(how)
        self.submitted.append(str(how["submission_id"]))
        return self.submitted[-1]

    def follow(self, name: str, patience: float, echo: object) -> object:
        if isinstance(self.error, ClusterSilent):
            raise self.error
        return SimpleNamespace(code=1, says="forgotten", again=True, summary=None)


def test_a_head_that_is_gone_is_said_and_what_to_do():
    cluster = Silent(ClusterSilent("http://far:8265: no answer in 30 s;"))
    order = Order(parse_verb(["store", "info", "s3://b/x"]), (), "night", installed="any")
    with pytest.raises(SegmillError, match=r"night may go on there.*the same command on another"):
        _through(order, cluster, 0, as_json=False)
    assert cluster.submitted == ["night"]


def test_a_cluster_that_forgot_the_job_gets_it_again(monkeypatch):
    cluster = Silent(ValueError())
    monkeypatch.setattr("jobs.submit.time.sleep", lambda _: None)
    monkeypatch.setattr(ray_jobs, "reconnected", lambda *_: cluster)
    order = Order(parse_verb(["store", "info", "s3://b/x"]), (), "night", installed="any")
    assert _through(order, cluster, 2, as_json=False).code == 1
    assert cluster.submitted == ["night"] * 3


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("Request failed with status code 503: upstream connect error", ClusterSilent),
        ("Request failed with status code 404: Job a does not exist", NoSuchJob),
        ("Request failed with status code 400: already exists", JobRuns),
        ("Ray version mismatch: 2.9 on the cluster", SegmillError),
    ],
)
def test_what_a_cluster_answers_is_told_apart(said, kind):
    """A gateway that says 503 while a head begins anew must not end the waiting."""
    jobs = ray_jobs.Jobs.__new__(ray_jobs.Jobs)
    jobs.address = "http://far:8265"

    def answer() -> None:
        raise RuntimeError(said)

    with pytest.raises(SegmillError) as raised:
        jobs._call(answer)
    assert type(raised.value) is kind


def test_paths_that_the_cluster_can_not_see(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text("")

    def places(*words: str, included: tuple[str, ...] = ()) -> list[str]:
        return check_places(parse_verb(words), included, address="http://far:8265")

    assert places("store", "info", "s3://bucket/store") == []
    assert "/mnt/store" in places("store", "info", "/mnt/store")[0]
    with pytest.raises(UsageError, match=r"^images: the cluster at http://far:8265"):
        places(*LABEL)
    train = ("train", "s3://b/store", "--out", "s3://b/model", "--recipe")
    with pytest.raises(UsageError, match=r"--include tiny\.yaml"):
        places(*train, "tiny.yaml")
    assert places(*train, "tiny.yaml", included=("tiny.yaml",)) == []
    assert places(*train, "camvid-fpn") == []
    (tmp_path / "best").mkdir()
    with pytest.raises(UsageError, match=r"^best"):
        places("label", "s3://b/x", "s3://b/y", "--model", "run:best?a=1")


@pytest.mark.parametrize(
    ("words", "gpus", "expected"),
    [
        (LABEL, None, []),
        (LABEL, 0, ["--gpus-per-actor", "0"]),
        (LABEL, 4, ["--gpus-per-actor", "1", "--actors", "1:4"]),
        (LABEL, 0.5, ["--gpus-per-actor", "0.5", "--actors", "1"]),
        ((*LABEL, "--gpus-per-actor=0.25"), 2, ["--actors", "1:8"]),
        ((*LABEL, "--actors", "3"), 2, "not both"),
        (LABEL, 1.5, "whole GPUs"),
        (("train", "s", "--recipe", "r", "--out", "o"), 2, ["--gpu", "--workers", "2"]),
        (("train", "s", "--recipe", "r", "--out", "o"), 0, ["--cpu"]),
        (("store", "info", "s"), 1, "does not take"),
    ],
)
def test_gpus_go_to_the_verbs_own_workers(words, gpus, expected):
    if isinstance(expected, str):
        with pytest.raises(UsageError, match=expected):
            gpu_options(parse_verb(words), gpus)
    else:
        options = gpu_options(parse_verb(words), gpus)
        assert options == expected
        parse_verb([*words, *options])


def test_the_code_goes_along_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets").mkdir()
    (tmp_path / "nets" / "mine.py").write_text("x = 1")
    (tmp_path / "huge.bin").write_bytes(b"0")
    size = pack(tmp_path / "sent", ["nets/mine.py"])
    sent = {p.name for p in (tmp_path / "sent").iterdir()}
    assert sent == {"connectors", "pipeline", "jobs", "nets"}
    assert size < 20 << 20
    assert not list((tmp_path / "sent").rglob("__pycache__"))
    assert (tmp_path / "sent/pipeline/training/recipes/camvid-fpn.yaml").exists()
    for bad, why in (("../x", "must lie below"), ("jobs", "not the folder"), ("no", "no such")):
        with pytest.raises(UsageError, match=why):
            pack(tmp_path / f"sent-{bad[-1]}", [bad])
    monkeypatch.setattr(packing, "LARGEST_BYTES", 1 << 20)
    with pytest.raises(UsageError, match="MiB to send"):
        pack(tmp_path / "large", [])


def test_a_folder_of_data_is_refused_before_a_byte_of_it_is_copied(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "more").mkdir(parents=True)
    with (tmp_path / "data" / "more" / "images.tar").open("wb") as file:
        file.truncate(2 << 30)  # a hole: takes no place
    with pytest.raises(UsageError, match=r"more than 100 MiB.*images\.tar \(2048 MiB\)"):
        pack(tmp_path / "sent", ["data"])
    assert not (tmp_path / "sent").exists()
    (tmp_path / "round").mkdir()
    (tmp_path / "round" / "again").symlink_to(tmp_path / "round")
    with pytest.raises(UsageError, match="link to a folder"):
        pack(tmp_path / "sent", ["round"])
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match="not a file"):
        pack(tmp_path / "sent", ["pipe"])
    (tmp_path / "gone").symlink_to(tmp_path / "nothing")
    with pytest.raises(UsageError, match="no such"):
        pack(tmp_path / "sent", ["gone"])


def test_the_same_command_has_the_same_name_and_runs_once():
    parsed = parse_verb(LABEL)
    assert job_name(parsed) == job_name(parse_verb(LABEL))
    assert job_name(parsed) != job_name(parse_verb([*LABEL, "--limit", "3"]))

    def cluster(**jobs: str) -> SimpleNamespace:
        found = [
            SimpleNamespace(submission_id=k.replace("_", "-"), status=v) for k, v in jobs.items()
        ]
        return SimpleNamespace(all=lambda: found)

    assert free_name(cluster(), "a") == "a"
    assert free_name(cluster(a="FAILED", b="RUNNING"), "a") == "a-2"
    assert free_name(cluster(a="FAILED", a_2="SUCCEEDED"), "a") == "a-3"
    for status in ("PENDING", "RUNNING"):
        with pytest.raises(JobRuns, match="a-2 runs already"):
            free_name(cluster(a="FAILED", a_2=status), "a")


def test_the_entry_point_holds_odd_arguments_together():
    order = Order(parse_verb(["store", "info", "a b;$(x)"]), (), "n")
    assert order.entrypoint("python", here=False) == (
        "exec python -P -m jobs store info 'a b;$(x)'"
    )
    assert order.entrypoint("python", here=True).startswith(f"cd {os.getcwd()} && exec")
    pinned = Order(parse_verb(["doctor"]), (), "n", installed="1.2'3")
    assert "exit 2" in pinned.entrypoint("python", here=False)
    done = subprocess.run(["sh", "-c", pinned.entrypoint("false", here=False)], capture_output=True)
    assert done.returncode == 2


@pytest.mark.parametrize(
    ("status", "driver", "code", "again"),
    [
        ("SUCCEEDED", 0, 0, False), ("FAILED", 1, 1, True), ("FAILED", 2, 2, False),
        ("FAILED", 3, 3, False), ("FAILED", 4, 4, False), ("FAILED", 137, 137, True),
        ("FAILED", -9, 137, True), ("FAILED", None, 1, True), ("STOPPED", None, 130, False),
    ],
)  # fmt: skip
def test_exit_codes_are_the_drivers(status, driver, code, again):
    details = SimpleNamespace(status=status, driver_exit_code=driver, message="a\nlost its node")
    found = ended(details)
    assert (found.code, found.again) == (code, again)
    if driver is None and status == "FAILED":
        assert "lost its node" in found.says


def test_no_call_hangs():
    assert within(5, "it", lambda: 3) == 3
    with pytest.raises(KeyError):
        within(5, "it", lambda: {}["x"])
    with pytest.raises(ClusterSilent, match="it: no answer"):
        within(0.05, "it", lambda: time.sleep(30))


def test_where_jobs_go(monkeypatch):
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    assert server_address(None) == ray_jobs.DEFAULT_ADDRESS
    monkeypatch.setenv("RAY_ADDRESS", "http://other:8265")
    assert server_address(None) == "http://other:8265"
    assert server_address("10.0.0.1:8265/") == "http://10.0.0.1:8265"
    with pytest.raises(UsageError, match="dashboard"):
        server_address("ray://head:10001")


def test_a_token_is_sent_where_there_is_one(monkeypatch, tmp_path):
    monkeypatch.setattr(ray_jobs.Path, "home", lambda: tmp_path)
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    assert ray_jobs.set_authentication() == "disabled"
    monkeypatch.delenv("RAY_AUTH_MODE")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "t")
    assert ray_jobs.set_authentication() == "token"
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert ray_jobs.set_authentication() == "disabled"


def test_work_in_the_drivers_process_takes_no_gpu_of_the_cluster(monkeypatch):
    """The head, where a job's driver runs, has none: `--runner local` would ask for one there."""
    from jobs import gpus

    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")  # as Ray sets it for a job
    monkeypatch.setattr(gpus, "has_gpu", lambda: False)
    assert gpus.default_gpus(None, "local") == 0


@pytest.mark.parametrize("verb", sorted(set(VERBS) - packing.HERE_ONLY))
def test_every_example_of_a_verb_can_be_submitted(verb):
    """What a shell makes of the entry point are the user's own words."""
    for example in EXAMPLES[verb]:
        _, *words = shlex.split(example.replace("\\\n", " "))
        order = Order(parse_verb(words), (), "n")
        line = shlex.split(order.entrypoint("python", here=False))
        assert line == ["exec", "python", "-P", "-m", "jobs", *words]


def test_words_that_a_shell_would_take_for_its_own():
    words = ["store", "info", "--", "-a b\nof 'c' $(d)"]
    order = Order(parse_verb(words), (), "n")
    assert shlex.split(order.entrypoint("python", here=False))[5:] == words


class Deaf:
    """A cluster on which asking a job to end hangs; it ends once its supervisor is ended."""

    def __init__(self) -> None:
        self.entrypoints: list[str] = []

    def details(self, name: str) -> object:
        status = "FAILED" if self.entrypoints else "PENDING"
        return SimpleNamespace(status=SimpleNamespace(value=status), name=name)

    def stop(self, name: str) -> bool:
        raise ClusterSilent(f"{name}: no answer in 30 s")

    def python(self) -> str:
        return "python"

    def submit(self, *, entrypoint: str, submission_id: str) -> str:
        self.entrypoints.append(entrypoint)
        return submission_id


def test_a_stop_that_hangs_is_followed_by_force():
    deaf = Deaf()
    assert end_job(deaf, "a b;c", 0) == "was PENDING, ended by force: Ray calls it FAILED"
    (line,) = deaf.entrypoints
    assert shlex.split(line)[-1] == "a b;c"
    assert end_job(deaf, "a b;c", 0) == "had ended before: FAILED"


TOKEN = "hunter2" * 8


class Head(http.server.BaseHTTPRequestHandler):
    """A job server that knows no job; it refuses whoever does not send the token."""

    heard: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        said = self.headers.get("Authorization", "")
        self.heard.append(said)
        good = said == f"Bearer {TOKEN}"
        if self.path.startswith("/api/version"):
            told = json.dumps({"version": "4", "ray_version": "2.60.0", "ray_commit": "x"})
        else:
            told = "[]"
        text = told if good else f"Unauthorized: {'Invalid' if said else 'Missing'} token"
        self.send_response(200 if good else 401)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def head():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Head)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(
    ("token", "code", "says"), [(TOKEN, 0, ""), (f"{TOKEN}-old", 2, "RAY_AUTH_TOKEN")]
)
def test_the_token_goes_along_with_every_call(head, tmp_path, token, code, says):
    Head.heard.clear()
    kept = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-m", "jobs", "jobs", "list", "--json", "--address", head],
        env=kept | {"HOME": str(tmp_path), "RAY_AUTH_TOKEN": token},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    assert set(Head.heard) == {f"Bearer {token}"}
    assert says in done.stderr
    assert TOKEN not in done.stdout + done.stderr
