from __future__ import annotations

import functools
import http.server
import re
import threading
import zipfile
from contextlib import suppress
from importlib.util import find_spec

import pytest

from pipeline.errors import LayoutError, MissingFile
from pipeline.files import open_tree, read_url
from pipeline.trees.union import open_source
from tests.connectors.trees import contents
from tests.jobs.calls import call
from tests.pipeline.sources import zip_bytes

if not find_spec("aiohttp"):
    pytest.skip("aiohttp is not installed", allow_module_level=True)


class Server(http.server.SimpleHTTPRequestHandler):
    """Serves files, by ranges if `ranges`; counts the bytes that it sends."""

    ranges = True
    sent = 0

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._send(body=False)

    def do_GET(self) -> None:
        self._send(body=True)

    def _send(self, *, body: bool) -> None:
        try:
            with open(self.translate_path(self.path), "rb") as file:
                data = file.read()
        except OSError:
            self.send_error(404)
            return
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        status, extra = 200, {"Accept-Ranges": "bytes" if self.ranges else "none"}
        if wanted and self.ranges:
            size = len(data)
            start = int(wanted[1]) if wanted[1] else size - int(wanted[2])
            stop = min(size, int(wanted[2]) + 1) if wanted[1] and wanted[2] else size
            data, status = data[start:stop], 206
            extra["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
        self.send_response(status)
        for key, value in extra.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            with suppress(BrokenPipeError, ConnectionResetError):  # it has seen enough
                self.wfile.write(data)
                type(self).sent += len(data)


@pytest.fixture(params=[True, False], ids=["by ranges", "whole files only"])
def served(request, tmp_path):
    """Serve a directory; give its URL, the directory and the handler that counts."""
    kind = type("Handler", (Server,), {"ranges": request.param})
    handler = functools.partial(kind, directory=str(tmp_path))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", tmp_path, kind
    server.shutdown()
    server.server_close()


def test_a_zip_on_a_web_server_is_read_by_ranges_or_refused(served):
    url, root, server = served
    files = {f"{i}.jpg": bytes([i]) * 1000 for i in range(20)}
    ballast = {"0/ballast.bin": bytes(20_000_000)}
    (root / "d.zip").write_bytes(zip_bytes(ballast | files, zipfile.ZIP_STORED))
    if not server.ranges:
        with pytest.raises(LayoutError, match=r"d\.zip: .*ranges.*download"):
            open_tree(f"{url}/d.zip").names()
        return
    tree = open_tree(f"{url}/d.zip")
    assert {name: tree.read(name) for name in files} == files
    assert read_url(tree.url_of("3.jpg")) == files["3.jpg"]
    assert server.sent < 12_000_000
    with pytest.raises(MissingFile):
        tree.read("nope.jpg")


def test_a_dataset_in_zips_on_a_web_server_converts(served, tmp_path_factory, capsys):
    from pipeline.streetscenes import write_dataset

    url, root, server = served
    if not server.ranges:
        pytest.skip("by ranges only")
    made = tmp_path_factory.mktemp("d")
    write_dataset(str(made), 6, height=48, width=64, seed=0)
    files = contents(made)
    masks = {n: data for n, data in files.items() if "annot/" in n}
    (root / "masks.zip").write_bytes(zip_bytes(masks))
    (root / "rest.zip").write_bytes(zip_bytes({n: files[n] for n in files.keys() - masks.keys()}))
    args = ("--from", "camvid-11", "--to", "camvid-11", "--runner", "local")
    src = f"{url}/rest.zip,{url}/masks.zip"
    summary, _ = call(capsys, "convert", src, made.parent / "far", *args)
    assert summary["done"] == 6
    call(capsys, "convert", made, made.parent / "near", *args)
    assert contents(made.parent / "far") == contents(made.parent / "near")
    assert open_source(src).url == src


def test_what_is_not_there_says_so(served):
    url, _, _ = served
    with pytest.raises(LayoutError, match="nope"):
        open_tree(f"{url}/nope.zip")
    with pytest.raises(MissingFile, match="nope"):
        read_url(f"{url}/nope.jpg")
