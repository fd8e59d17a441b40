"""Ray's job API as the verbs use it: no call hangs, no secret is kept, exit codes are the driver's.

Ray's own client has no timeouts: against a head that is gone it waits for ever.
"""

from __future__ import annotations

import asyncio
import json
import os
import queue
import re
import shlex
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import urlsplit

import psutil

from jobs.console import EXIT_FAILED, note
from pipeline.errors import SegmillError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

T = TypeVar("T")

DEFAULT_ADDRESS: Final = "http://127.0.0.1:8265"
_ADDRESSES: Final = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
CALL_SECONDS: Final = 30.0
UPLOAD_SECONDS: Final = 300.0
_POLL_SECONDS: Final = 1.0
_LAST_LINES_SECONDS: Final = 15.0
_NO_BRAKES: Final = 128
STOPPED: Final = 130
_GATEWAY: Final = re.compile(r"status code 50[234]\b")
"""What stands before a head answers so while it is away."""
ENDED: Final = frozenset({"SUCCEEDED", "FAILED", "STOPPED"})


class ClusterSilent(SegmillError, ConnectionError):
    """The cluster's job server does not answer."""


class NoSuchJob(SegmillError, LookupError):
    """The cluster knows no job of that name; one that began anew has forgotten all of them."""


class JobRuns(SegmillError):
    """A job of that name has not ended yet."""


def within(seconds: float, what: str, call: Callable[[], T]) -> T:
    """Return what `call` returns.

    Raises:
        ClusterSilent: it took longer; it goes on in a thread that nobody waits for.
    """
    box: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(1)

    def run() -> None:
        try:
            box.put((call(), None))
        except BaseException as error:
            box.put((None, error))

    threading.Thread(target=run, daemon=True).start()
    try:
        value, error = box.get(timeout=seconds)
    except queue.Empty:
        raise ClusterSilent(f"{what}: no answer in {seconds:g} s") from None
    if error is not None:
        raise error
    return value  # type: ignore[return-value]


def server_address(address: str | None) -> str:
    """Return the URL of the job server: as given, else as Ray's variables say, else this machine's.

    Raises:
        UsageError: it is the address of something else.

    >>> server_address("10.0.0.7:8265")
    'http://10.0.0.7:8265'
    """
    found = address or next(filter(None, map(os.environ.get, _ADDRESSES)), None) or DEFAULT_ADDRESS
    if found in {"auto", "local"}:
        found = DEFAULT_ADDRESS
    url = found if "://" in found else f"http://{found}"
    if urlsplit(url).scheme not in {"http", "https"}:
        raise UsageError(
            f"--address {found}: jobs go to the dashboard, as http://HEAD:8265, and not to Ray "
            "itself; `ray dashboard ray_cluster.yaml` makes it http://localhost:8265"
        )
    return url.rstrip("/")


def set_authentication() -> str:
    """Say to Ray whether to send a token, and return that mode: "token" or "disabled".

    As RAY_AUTH_MODE says; without it a token is sent where the user has one.
    """
    if "RAY_AUTH_MODE" not in os.environ:
        path = os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token"
        held = os.environ.get("RAY_AUTH_TOKEN") or Path(path).is_file()
        os.environ["RAY_AUTH_MODE"] = "token" if held else "disabled"
    return os.environ["RAY_AUTH_MODE"].lower()


@dataclass(frozen=True, slots=True)
class Ended:
    """How a job ended."""

    code: int
    says: str
    again: bool = False
    """Whether the same command again may fare better."""
    summary: str | None = None
    """The JSON summary that the verb printed, where it was asked for one."""


@contextmanager
def _no_other_address() -> Iterator[None]:
    """Hide the variables that Ray heeds instead of the address that it is given."""
    kept = {name: os.environ.pop(name, None) for name in _ADDRESSES}
    try:
        yield
    finally:
        os.environ.update({name: value for name, value in kept.items() if value is not None})


class Jobs:
    """The jobs of one cluster."""

    def __init__(self, address: str) -> None:
        """Connect.

        Raises:
            ClusterSilent: nothing answers there.
            UsageError: it answers, and refuses.
        """
        self.address = address
        self._here: bool | None = None
        set_authentication()
        _hush()
        from ray.job_submission import JobSubmissionClient

        with _no_other_address():
            self._client = self._call(lambda: JobSubmissionClient(address))

    def _call(self, call: Callable[[], T], seconds: float = CALL_SECONDS) -> T:
        """Return what Ray answers, its errors as ours."""
        from ray.exceptions import AuthenticationError

        try:
            return within(seconds, self.address, call)
        except AuthenticationError as error:
            raise UsageError(f"{self.address}: {_refusal(str(error))}") from None
        except ConnectionError as error:
            text = str(error) if isinstance(error, ClusterSilent) else "nothing answers"
            raise ClusterSilent(
                f"{text.removeprefix(self.address + ': ')} at {self.address}; is the cluster up, "
                "and the tunnel to it (`ray dashboard ray_cluster.yaml`)?"
            ) from None
        except OSError as error:  # requests' own errors
            raise ClusterSilent(f"{self.address}: {_first_line(error)}") from None
        except RuntimeError as error:
            text = str(error)
            if "does not exist" in text or "status code 404" in text:
                raise NoSuchJob(f"{self.address}: {_last_line(text)}") from None
            if "already exists" in text:
                raise JobRuns(f"{self.address}: {_last_line(text)}") from None
            if "No available agent" in text:
                raise ClusterSilent(
                    f"{self.address}: the head starts no jobs; its agent is not up yet, or has no "
                    "port (dashboard_agent.log on the head)"
                ) from None
            silent = _GATEWAY.search(text) is not None
            raise (ClusterSilent if silent else SegmillError)(
                f"{self.address}: {_last_line(text)}"
            ) from None

    def submit(self, **how: Any) -> str:
        """Submit a job and return its name; JobRuns where the name is taken."""
        return self._call(lambda: str(self._client.submit_job(**how)), UPLOAD_SECONDS)

    def all(self) -> list[Any]:
        """Return Ray's details of all jobs that were submitted, the oldest first."""
        found = self._call(self._client.list_jobs)
        return sorted((j for j in found if j.submission_id), key=lambda j: j.start_time or 0)

    def details(self, name: str) -> Any:
        """Return Ray's details of a job; NoSuchJob where there is none."""
        return self._call(lambda: self._client.get_job_info(name))

    def logs(self, name: str) -> str:
        """Return what a job has said so far."""
        return self._call(lambda: str(self._client.get_job_logs(name)), UPLOAD_SECONDS)

    def here(self) -> bool:
        """Tell whether all nodes of the cluster are this machine; a tunnel's far end is not."""
        if self._here is None:
            own = {a.address for found in psutil.net_if_addrs().values() for a in found}
            nodes = self._node_addresses()
            self._here = bool(nodes) and nodes <= own
        return self._here

    def python(self) -> str:
        """Return the interpreter that a job's command line names."""
        return shlex.quote(sys.executable) if self.here() else "python"

    def _node_addresses(self) -> set[str]:
        """Return the addresses of the nodes that live; none where the cluster does not say."""
        from ray.util.state import list_nodes

        try:
            found = within(CALL_SECONDS, self.address, lambda: list_nodes(self.address, timeout=20))
        except Exception:  # an extra of the dashboard, not of the job server
            return set()
        return {node.node_ip for node in found if node.state == "ALIVE"}

    def stop(self, name: str, seconds: float = CALL_SECONDS) -> bool:
        """Ask a job to end; return whether there was something to ask."""
        return self._call(lambda: bool(self._client.stop_job(name)), seconds)

    def follow(self, name: str, patience: float, echo: Callable[[str], None]) -> Ended:
        """Pass a job's lines on until it ends; a silent cluster is waited for so many seconds.

        Raises:
            ClusterSilent: it did not answer for longer.
        """
        tail = _Tail(self._client, name, echo)
        tail.start()
        heard = time.monotonic()
        while True:
            try:
                details = self.details(name)
                heard = time.monotonic()
            except ClusterSilent:
                if time.monotonic() - heard > patience:
                    raise
            except NoSuchJob:
                return Ended(EXIT_FAILED, "the cluster began anew and has forgotten it", True)
            else:
                if details.status in ENDED:
                    break
            time.sleep(_POLL_SECONDS)
        tail.join(_LAST_LINES_SECONDS)
        return ended(details, tail.summary)


def ended(details: Any, summary: str | None = None) -> Ended:
    """Return how a job ended, by Ray's details of it; the driver's own exit code where it has one.

    Ray gives none for a job that was stopped, nor where the driver's node was lost.
    """
    code = details.driver_exit_code
    if details.status == "SUCCEEDED":
        return Ended(0, "done", summary=summary)
    if details.status == "STOPPED":
        return Ended(STOPPED, "stopped", summary=summary)
    if code is None:
        why = _last_line(details.message or "") or "no reason given"
        return Ended(EXIT_FAILED, f"failed: {why}", True, summary)
    if code < 0 or code > _NO_BRAKES:
        signal = -code if code < 0 else code - _NO_BRAKES
        says = f"the driver was killed by signal {signal}" + (
            " (out of memory?)" if signal == 9 else ""
        )
        return Ended(_NO_BRAKES + signal, says, signal != 2, summary)
    return Ended(code, f"exit code {code}", code == EXIT_FAILED, summary)


class _Tail(threading.Thread):
    """Passes on a job's log, line by line; takes it up again where a connection broke."""

    def __init__(self, client: Any, name: str, echo: Callable[[str], None]) -> None:
        super().__init__(daemon=True)
        self._client, self._name, self._echo = client, name, echo
        self._seen = 0
        self._rest = ""
        self.summary: str | None = None

    def run(self) -> None:
        while True:
            try:
                asyncio.run(self._read())
                break
            except Exception:  # whatever broke, follow() sees how the job fares
                time.sleep(_POLL_SECONDS)
        if self._rest:
            self._line(self._rest)

    async def _read(self) -> None:
        at = 0
        async for text in self._client.tail_job_logs(self._name):
            new = text[max(0, self._seen - at) :]  # it begins at the beginning each time
            at += len(text)
            self._seen = max(self._seen, at)
            *lines, self._rest = (self._rest + new).split("\n")
            for line in lines:
                self._line(line)

    def _line(self, line: str) -> None:
        if line.startswith('{"verb"') and _is_json(line):
            self.summary = line
        self._echo(line)


def printer(*, as_json: bool) -> Callable[[str], None]:
    """Return what shows a job's lines; with `as_json` stdout is kept for the summary."""

    def show(line: str) -> None:
        if as_json and line.startswith('{"verb"'):
            return
        print(line, file=sys.stderr if as_json else sys.stdout, flush=True)

    return show


def reconnected(address: str, seconds: float) -> Jobs:
    """Return the jobs of a cluster that is expected back.

    Raises:
        ClusterSilent: it did not come back in time.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            return Jobs(address)
        except ClusterSilent:
            if time.monotonic() > deadline:
                raise
            note(f"{address}: waiting for the cluster")
            time.sleep(10 * _POLL_SECONDS)


def _hush() -> None:
    """Keep what Ray's client says of itself (uploads, defaults) off the terminal."""
    import logging

    import ray  # noqa: F401  # it sets its logger up

    for handler in logging.getLogger("ray").handlers:
        handler.setLevel(logging.WARNING)


def _refusal(text: str) -> str:
    missing = "Missing" in text or "required" in text
    what = "wants a token" if missing else "knows another token"
    return (
        f"the cluster {what}; put the cluster's into ~/.ray/auth_token or RAY_AUTH_TOKEN and set "
        "RAY_AUTH_MODE=token"
    )


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:500] if lines else ""


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True
