"""Look after the jobs of a Ray cluster: list them, read their logs, stop them.

segmill jobs list
segmill jobs logs -f segmill-label-4f2a91c07d
segmill jobs stop segmill-label-4f2a91c07d
"""

from __future__ import annotations

import shlex
import time
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from jobs.console import DebugOption, JsonOption, command, note
from pipeline.errors import SegmillError

if TYPE_CHECKING:
    from jobs.ray_jobs import Jobs

APP = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)
AddressOption = Annotated[
    str | None,
    typer.Option(
        help="The cluster's dashboard; default: RAY_API_SERVER_ADDRESS, RAY_ADDRESS, or "
        "http://127.0.0.1:8265."
    ),
]
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="The job's name: jobs list.")]
_SHOWN_WORDS: Final = 60
_BETWEEN_SECONDS: Final = 0.5

_END_SUPERVISOR: Final = """\
import sys, ray
from ray.dashboard.modules.job.common import JOB_ACTOR_NAME_TEMPLATE as name
from ray.dashboard.modules.job.common import SUPERVISOR_ACTOR_RAY_NAMESPACE as space
ray.init(log_to_driver=False)
ray.kill(ray.get_actor(name.format(job_id=sys.argv[1]), namespace=space))
"""
"""Ends the actor that starts and watches a job's driver; a job itself, as there is no such call."""


@APP.callback()
def jobs() -> None:
    """Look after the jobs of a Ray cluster."""


@APP.command("list")
def list_(
    address: AddressOption = None,
    limit: Annotated[int, typer.Option(min=1, metavar="N", help="Only the last N.")] = 30,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """List a cluster's jobs, the newest last."""
    with command("jobs list", as_json=as_json, debug=debug) as summary:
        found = [_row(job) for job in _connect(address).all()[-limit:]]
        summary.figures["jobs"] = found
        summary.lines += [_line(row) for row in found] or ["no job was submitted to this cluster"]


@APP.command()
def logs(
    name: NameArgument,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until the job ends, with its exit code.")
    ] = False,
    address: AddressOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Show what a job has said."""
    with command("jobs logs", as_json=as_json, debug=debug) as summary:
        from jobs.ray_jobs import printer
        from jobs.submit import PATIENCE_SECONDS

        there = _connect(address)
        there.details(name)
        echo = printer(as_json=as_json)
        if not follow:
            for line in there.logs(name).splitlines():
                echo(line)
            summary.figures |= _row(there.details(name))
            return
        ended = there.follow(name, PATIENCE_SECONDS, echo)
        if as_json and ended.summary:
            print(ended.summary, flush=True)
        if ended.code:
            note(f"segmill jobs: {name} {ended.says}")
        raise SystemExit(ended.code)


@APP.command()
def stop(
    name: NameArgument,
    timeout: Annotated[
        float,
        typer.Option(min=0, metavar="SECONDS", help="Time to end by itself, before it is forced."),
    ] = 30.0,
    address: AddressOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """End a job, by force where it does not end by itself; what it did stays done."""
    with command("jobs stop", as_json=as_json, debug=debug) as summary:
        there = _connect(address)
        how = end_job(there, name, timeout)
        row = _row(there.details(name))
        summary.figures |= {**row, "how": how}
        summary.lines.append(f"{name}: {how}")


def _connect(address: str | None) -> Jobs:
    from jobs.ray_jobs import Jobs, server_address

    return Jobs(server_address(address))


def end_job(there: Jobs, name: str, seconds: float) -> str:
    """End a job and return what it took, in a few words.

    A job whose driver has no place yet hears no call to stop, and Ray's own `job stop` waits for it
    without end. Its supervisor is ended instead, from a job on the head that takes nothing.

    Raises:
        NoSuchJob: the cluster knows none of that name.
        SegmillError: it has not ended for all that.
    """
    from jobs.ray_jobs import ENDED, ClusterSilent

    status = str(there.details(name).status.value)
    if status in ENDED:
        return f"had ended before: {status}"
    with suppress(ClusterSilent):  # the call alone may hang: what follows asks again
        there.stop(name)
    status = _settled(there, name, seconds)
    if status in ENDED:
        return "stopped" if status == "STOPPED" else f"ended by itself: {status}"
    note(f"{name} is {status} after {seconds:g} s; its supervisor is ended")
    there.submit(
        entrypoint=f"{there.python()} -c {shlex.quote(_END_SUPERVISOR)} {shlex.quote(name)}",
        submission_id=f"end-{name}-{time.time_ns() // 1_000_000}",
    )
    ended = _settled(there, name, max(seconds, 60.0))
    if ended not in ENDED:
        raise SegmillError(
            f"{name} is still {ended}; it ends when Ray gives its driver up (15 min for one that "
            "has no place) or with the cluster"
        )
    return f"was {status}, ended by force: Ray calls it {ended}"


def _settled(there: Jobs, name: str, seconds: float) -> str:
    """Return a job's status once it has ended, or when the time is up."""
    from jobs.ray_jobs import ENDED

    deadline = time.monotonic() + seconds
    while True:
        status = str(there.details(name).status.value)
        if status in ENDED or time.monotonic() > deadline:
            return status
        time.sleep(_BETWEEN_SECONDS)


def _row(job: Any) -> dict[str, Any]:
    """Return a job as plain data; times in seconds."""
    began, end = job.start_time, job.end_time or time.time() * 1000
    at = datetime.fromtimestamp((began or 0) / 1000, UTC)
    return {
        "submission_id": job.submission_id,
        "status": job.status.value,
        "exit_code": job.driver_exit_code,
        "started": f"{at:%Y-%m-%dT%H:%M:%SZ}",
        "lasted": round((end - began) / 1000, 1) if began else None,
        "command": job.entrypoint,
    }


def _line(row: dict[str, Any]) -> str:
    code = "" if row["exit_code"] is None else f" ({row['exit_code']})"
    said = row["command"].partition(" -m jobs ")[2] or row["command"]
    said = said if len(said) <= _SHOWN_WORDS else f"{said[: _SHOWN_WORDS - 1]}…"
    return (
        f"{row['submission_id']:34} {row['status'] + code:14} {row['started']} "
        f"{row['lasted'] or 0:8,.0f} s  {said}"
    )
