"""Models in a bucket or on a web server: fetched once a node, by processes that start at once."""

from __future__ import annotations

import hashlib
import http.server
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from pipeline.errors import ModelError
from pipeline.files import open_sink
from pipeline.models import load_model
from pipeline.models.directory import save_model
from pipeline.models.fetched import local_file, local_folder
from tests.pipeline.s3_server import Fault

URI = "zoo:enet?classes=3&seed=5"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("SEGMILL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "models"


FETCH = """
import sys
from pipeline.models.fetched import local_file
print(local_file(sys.argv[1]))
"""


def start_fetch(url):
    command = [sys.executable, "-c", FETCH, url]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_processes_of_a_node_fetch_once(s3, bucket, cache):
    data = os.urandom(3 << 20)
    open_sink(bucket).write("w.safetensors", data)
    s3.reset(latency=0.2)
    started = [start_fetch(f"{bucket}/w.safetensors") for _ in range(3)]
    paths = {process.communicate(timeout=120)[0].strip() for process in started}
    assert {process.returncode for process in started} == {0}
    assert len(paths) == 1
    path = Path(paths.pop())
    assert path.read_bytes() == data
    assert path.is_relative_to(cache)
    assert s3.count(r"^GET .*w\.safetensors") == 1
    assert not list(cache.glob("*.part"))


def test_a_killed_process_leaves_no_half_file(s3, bucket, cache):
    data = os.urandom(1 << 20)
    open_sink(bucket).write("w.pt", data)
    s3.reset(latency=1.5)
    process = start_fetch(f"{bucket}/w.pt")
    while not list(cache.glob("*.part")) and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert list(cache.glob("*.part"))
    s3.reset()
    assert Path(local_file(f"{bucket}/w.pt")).read_bytes() == data
    assert not list(cache.glob("*.part"))


def test_a_changed_file_is_fetched_again(s3, bucket):
    sink = open_sink(bucket)
    for data in (b"one", b"two"):  # of one size: the checksum tells
        sink.write("w.bin", data)
        assert Path(local_file(f"{bucket}/w.bin")).read_bytes() == data
    s3.reset()
    local_file(f"{bucket}/w.bin")
    assert s3.count(r"^GET .*w\.bin") == 0


def test_failing_requests_are_made_again(s3, bucket):
    data = os.urandom(200_000)
    open_sink(bucket).write("w.bin", data)
    s3.reset(Fault(r"^GET .*w\.bin", 503, most=1), Fault(r"^GET .*w\.bin", 0, most=1))
    assert Path(local_file(f"{bucket}/w.bin")).read_bytes() == data


def test_a_large_file_comes_in_ranges(s3, bucket, monkeypatch):
    monkeypatch.setattr("pipeline.models.fetched._PIECE", 100_000)
    data = os.urandom(450_001)
    open_sink(bucket).write("w.bin", data)
    s3.reset()
    assert Path(local_file(f"{bucket}/w.bin")).read_bytes() == data
    assert s3.count(r"^GET .*w\.bin") == 5


@pytest.mark.filterwarnings("ignore:.*jit.*:DeprecationWarning")
def test_equal_models_from_anywhere_have_one_digest(s3, bucket, tmp_path):
    model = load_model(URI)
    save_model(model, f"{bucket}/enet")
    assert load_model(f"run:{bucket}/enet").digest == model.digest
    assert load_model(f"{bucket}/enet").digest == model.digest
    for weights in (f"{bucket}/enet", f"{bucket}/enet/weights.safetensors"):
        assert load_model("zoo:enet?classes=3", weights=weights).digest == model.digest
    assert s3.count(r"^GET .*weights\.safetensors") == 1
    torch.manual_seed(0)
    torch.jit.save(torch.jit.script(nn.Conv2d(3, 2, 1).eval()), tmp_path / "m.pt")
    sink = open_sink(f"{bucket}/programs")
    sink.write("n.pt", (tmp_path / "m.pt").read_bytes())
    sink.write("n.pt.json", b'{"names": ["a", "b"]}')
    far = load_model(f"script:{bucket}/programs/n.pt")
    (tmp_path / "m.pt.json").write_text('{"names": ["a", "b"]}')
    assert far.digest == load_model(f"script:{tmp_path}/m.pt").digest
    sink.write("n.pt.json", b'{"names": ["a", "c"]}')
    assert load_model(f"script:{bucket}/programs/n.pt").digest != far.digest


def test_a_transformers_directory_in_a_bucket(s3, bucket, tmp_path):
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    names = {0: "road", 1: "sky"}
    config = SegformerConfig(
        depths=[1] * 4, hidden_sizes=[8] * 4, num_attention_heads=[1] * 4, decoder_hidden_size=8,
        id2label=names, label2id={v: k for k, v in names.items()},
    )  # fmt: skip
    SegformerForSemanticSegmentation(config).save_pretrained(tmp_path / "here")
    sink = open_sink(f"{bucket}/there")
    for file in (tmp_path / "here").iterdir():
        sink.write(file.name, file.read_bytes())
    sink.write("pytorch_model.bin", b"never fetched")
    sink.write("checkpoint-1/model.safetensors", b"nor this")
    s3.reset()
    far = load_model(f"hf:{bucket}/there")
    assert far.digest == load_model(f"hf:{tmp_path}/here").digest
    assert load_model(f"hf:{bucket}/there").digest == far.digest
    assert s3.count(r"^GET .*model\.safetensors") == 1
    assert s3.count(r"^GET .*(pytorch_model|checkpoint-1)") == 0


def test_what_is_not_there_is_told(s3, bucket):
    for uri in (f"run:{bucket}/none", f"export:{bucket}/none.pt2?classes=2", f"hf:{bucket}/none"):
        with pytest.raises(ModelError, match="none") as caught:
            load_model(uri)
        assert "\n" not in str(caught.value)
    with pytest.raises(ModelError, match="no such file"):
        load_model("zoo:enet?classes=3", weights=f"{bucket}/none.safetensors")


# --- a web server, and no server ---------------------------------------------------------------


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format, *args):
        pass


@pytest.fixture
def web(tmp_path):
    """A server that knows no ranges and no checksums, only times."""
    pytest.importorskip("aiohttp")
    (tmp_path / "www").mkdir()
    handler = partial(_Quiet, directory=str(tmp_path / "www"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield tmp_path / "www", f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def test_weights_from_a_web_server(web, monkeypatch):
    root, url = web
    monkeypatch.setattr("pipeline.models.fetched._PIECE", 1000)  # asks for ranges in vain
    model = load_model(URI)
    save_model(model, str(root / "enet"))
    assert load_model(f"run:{url}/enet").digest == model.digest
    with pytest.raises(ModelError, match="no such file"):
        load_model("zoo:enet?classes=3", weights=f"{url}/none.safetensors")


def test_a_server_that_tells_no_change_is_asked_again(web, cache, monkeypatch):
    root, url = web
    monkeypatch.setattr("pipeline.models.fetched._tells", lambda _: False)
    (root / "w.bin").write_bytes(b"one")
    path = Path(local_file(f"{url}/w.bin"))
    os.utime(root / "w.bin", (1, 1))
    with path.open("rb") as held:
        (root / "w.bin").write_bytes(b"two")
        os.utime(root / "w.bin", (1, 1))
        assert Path(local_file(f"{url}/w.bin")).read_bytes() == b"two"
        assert held.read() == b"one"
    assert not list(cache.glob("*.part"))


def test_a_cache_that_cannot_be_written_is_told(web, tmp_path, monkeypatch):
    root, url = web
    (root / "w.bin").write_bytes(b"x")
    (tmp_path / "file").touch()
    monkeypatch.setenv("SEGMILL_CACHE", str(tmp_path / "file"))
    with pytest.raises(ModelError, match=r"cannot be kept.*SEGMILL_CACHE"):
        local_file(f"{url}/w.bin")


def test_local_files_are_not_copied(tmp_path, cache):
    (tmp_path / "w.bin").write_bytes(b"x")
    assert local_file(str(tmp_path / "w.bin")) == str(tmp_path / "w.bin")
    assert local_folder(f"file://{tmp_path}", (".bin",)) == str(tmp_path)
    assert not cache.exists()


def test_a_cached_name_tells_url_and_checksum(memory, cache):
    """Two files of one name, and one file of two contents, lie apart."""
    found = set()
    for folder, data in (("a", b"1"), ("b", b"1"), ("a", b"22")):
        memory.pipe_file(f"/{folder}/w.bin", data)
        path = Path(local_file(f"memory://{folder}/w.bin"))
        assert hashlib.sha256(path.read_bytes()).digest() == hashlib.sha256(data).digest()
        found.add(path)
    assert len(found) == 3
