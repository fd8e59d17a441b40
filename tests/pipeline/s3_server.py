"""A real S3 server, moto in a process of its own, behind a proxy that counts, waits and breaks.

The proxy is a process, too: delta-rs holds the interpreter's lock during some requests, and a proxy
in a thread could not answer them. It is steered by requests to /-/.
"""

from __future__ import annotations

import http.client
import http.server
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = 10
"""Keys that the server lists at once; a real one lists a thousand."""
_SLOW_DOWN = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>slow</Message></Error>"
_NEVER = 600
_HOP = {"connection", "content-length", "transfer-encoding", "date", "server"}


@dataclass
class Fault:
    """What becomes of requests like `GET /bucket/key`: every `every`-th that matches breaks.

    `status` 0 cuts the connection in the middle of the body, -1 never answers.
    """

    match: str
    status: int
    every: int = 1
    most: int = 1_000_000
    seen: int = 0
    hits: int = 0

    def strikes(self, request: str) -> bool:
        if not re.search(self.match, request) or self.hits >= self.most:
            return False
        self.seen += 1
        if self.seen % self.every:
            return False
        self.hits += 1
        return True


@dataclass
class State:
    """What the proxy does to requests, and what it saw."""

    latency: float = 0.0
    faults: list[Fault] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    body_bytes: int = 0
    at_once: int = 0
    most_at_once: int = 0


class _Proxying:
    """The proxy's own side: the server that it forwards to, and its state."""

    def __init__(self, upstream: int) -> None:
        self.upstream, self.state, self.lock = upstream, State(), threading.Lock()

    def enter(self, request: str) -> Fault | None:
        with self.lock:
            state = self.state
            state.requests.append(request)
            state.at_once += 1
            state.most_at_once = max(state.most_at_once, state.at_once)
            return next((fault for fault in state.faults if fault.strikes(request)), None)

    def leave(self) -> None:
        with self.lock:
            self.state.at_once -= 1

    def steer(self, body: bytes) -> bytes:
        """Take up a new state, if one is given, and tell the old one."""
        with self.lock:
            told = json.dumps(asdict(self.state)).encode()
            if body:
                new = json.loads(body)
                faults = [Fault(**fault) for fault in new["faults"]]
                self.state = State(new["latency"], faults, at_once=self.state.at_once)
            return told


@dataclass
class Proxy:
    """The proxy as a test sees it."""

    port: int
    upstream: int

    @property
    def environment(self) -> dict[str, str]:
        """The variables that lead every S3 client to this server."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def state(self) -> State:
        return self._steer(b"")

    def reset(self, *faults: Fault, latency: float = 0.0) -> State:
        """Forget all requests, and do this to those that come; return the state before."""
        new = {"latency": latency, "faults": [asdict(fault) for fault in faults]}
        return self._steer(json.dumps(new).encode())

    def count(self, match: str) -> int:
        return sum(re.search(match, request) is not None for request in self.state().requests)

    def _steer(self, body: bytes) -> State:
        there = http.client.HTTPConnection("127.0.0.1", self.port)
        there.request("POST", "/-/", body)
        told = json.loads(there.getresponse().read())
        there.close()
        return State(**told | {"faults": [Fault(**f) for f in told["faults"]]})


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: _Proxying
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _body(self) -> bytes:
        if "chunked" not in (self.headers.get("Transfer-Encoding") or ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _forward(self) -> None:
        body = self._body()
        if self.path == "/-/":
            self._answer(200, {}, self.proxy.steer(body))
            return
        fault = self.proxy.enter(f"{self.command} {self.path}")
        try:
            time.sleep(self.proxy.state.latency)
            if fault is not None and fault.status < 0:
                time.sleep(_NEVER)
                self.close_connection = True
                return
            if fault is not None and fault.status:
                self._answer(fault.status, {"Content-Type": "application/xml"}, _SLOW_DOWN)
                return
            there = http.client.HTTPConnection("127.0.0.1", self.proxy.upstream)
            sent = {k: v for k, v in self.headers.items() if k.lower() != "transfer-encoding"}
            there.request(self.command, self.path, body, sent)
            found = there.getresponse()
            data = found.read()
            there.close()
            headers = {k: v for k, v in found.getheaders() if k.lower() not in _HOP}
            length = found.getheader("Content-Length")
            self.proxy.state.body_bytes += len(data)
            self._answer(found.status, headers, data, length, cut=fault is not None)
        finally:
            self.proxy.leave()

    def _answer(
        self,
        status: int,
        headers: dict[str, str],
        data: bytes,
        length: str | None = None,
        *,
        cut: bool = False,
    ) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        head = self.command == "HEAD"
        self.send_header("Content-Length", (length or "0") if head else str(len(data)))
        self.end_headers()
        if cut:
            self.wfile.write(data[: len(data) // 2])
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
        elif not head:
            self.wfile.write(data)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _forward  # noqa: N815


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@contextmanager
def s3_server() -> Iterator[Proxy]:
    """Run the server and the proxy; give the proxy."""
    upstream, port = _free_port(), _free_port()
    moto = ["from moto.server import main; main()", "-H", "127.0.0.1", "-p", str(upstream)]
    front = ["from tests.pipeline.s3_server import main; main()", str(upstream), str(port)]
    started = []
    try:
        for command in (moto, front):
            process = subprocess.Popen(
                [sys.executable, "-c", *command],
                env={**os.environ, "MOTO_S3_DEFAULT_MAX_KEYS": str(PAGE)},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            started.append(process)
        for process, listening in zip(started, (upstream, port), strict=True):
            _wait_for(listening, process)
        yield Proxy(port, upstream)
    finally:
        for process in started:
            process.terminate()
            process.wait()


def main() -> None:
    """Run the proxy, in a process of its own."""
    upstream, port = map(int, sys.argv[1:])
    handler = type("Handler", (_Handler,), {"proxy": _Proxying(upstream)})
    http.server.ThreadingHTTPServer(("127.0.0.1", port), handler).serve_forever()


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        if process.poll() is not None:
            break
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise RuntimeError(f"{process.args} does not start")
