"""Run a verb on a Ray cluster, as a job of it; the exit code is the verb's own.

    segmill submit --address http://localhost:8265 --gpus 4 \\
        label s3://photos/2026 s3://labels/night --model run:s3://models/a

The code goes along. The same command again, on this cluster or on the next, goes on where a lost
job was: what is in the store is skipped.
"""

from __future__ import annotations

import os
import shlex
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from jobs.console import DebugOption, JsonOption, command, note
from pipeline.errors import SegmillError, UsageError

if TYPE_CHECKING:
    from jobs.packing import Parsed
    from jobs.ray_jobs import Ended, Jobs

APP = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
PATIENCE_SECONDS: Final = 60.0
RETURN_SECONDS: Final = 600.0
"""How long a cluster that is gone is waited for, where retries are allowed."""
_FIRST_PAUSE: Final = 5.0
_LONGEST_PAUSE: Final = 120.0
_MOST_NAMES: Final = 1000


@APP.command(context_settings={"ignore_unknown_options": True})
def submit(
    verb: Annotated[
        list[str],
        typer.Argument(metavar="VERB ...", help="The verb and its own arguments and options."),
    ],
    address: Annotated[
        str | None,
        typer.Option(
            help="The cluster's dashboard; default: RAY_API_SERVER_ADDRESS, RAY_ADDRESS, or "
            "http://127.0.0.1:8265, where `ray dashboard` makes its tunnel."
        ),
    ] = None,
    wait: Annotated[
        bool,
        typer.Option(
            "--wait/--no-wait", help="Show the log and leave with the verb's exit code, or go."
        ),
    ] = True,
    gpus: Annotated[
        float | None,
        typer.Option(min=0, metavar="N", help="GPUs for the verb's workers; the driver has none."),
    ] = None,
    env: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE", help="A variable for driver and workers; KEY: as it is here."
        ),
    ] = None,
    include: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATH", help="A small file or folder to send along: a recipe, a configuration."
        ),
    ] = None,
    installed: Annotated[
        str | None,
        typer.Option(
            metavar="VERSION|any",
            help="Send no code: the segmill that the nodes have, of this version.",
        ),
    ] = None,
    retries: Annotated[
        int,
        typer.Option(min=0, metavar="N", help="Submit so often again when the job fails or dies."),
    ] = 0,
    submission_id: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The job's name; default: the same for the same command"),
    ] = None,
    driver_cpus: Annotated[
        float,
        typer.Option(
            min=0,
            metavar="N",
            help="CPUs to hold for the driver; with 0 it runs on the head, with more on any node.",
        ),
    ] = 0.0,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Run a verb on a Ray cluster; options of submit may stand before or after the verb."""
    with command("submit", as_json=as_json, debug=debug) as summary:
        from jobs.packing import gpu_options, job_name, parse_verb, variables
        from jobs.ray_jobs import Jobs, server_address

        parsed = parse_verb(verb)
        if retries and not wait:
            raise UsageError("--retries needs --wait: somebody must see that the job failed")
        extra = gpu_options(parsed, gpus)
        extra += ["--json"] * as_json + ["--debug"] * debug
        order = Order(
            parsed,
            tuple(extra),
            submission_id or job_name(parsed),
            variables(env or []),
            tuple(include or []),
            installed,
            driver_cpus,
        )
        jobs = Jobs(server_address(address))
        if not wait:
            name = order.submit(jobs)
            summary.figures |= {"submission_id": name, "address": jobs.address}
            summary.lines += [f"submitted: {name}", f"segmill jobs logs -f {name}"]
            return
        ended = _through(order, jobs, retries, as_json=as_json)
        if ended.code:
            note(f"segmill submit: {verb[0]} {ended.says}")
        if as_json:
            print(ended.summary or _no_summary(summary, ended), flush=True)
        raise SystemExit(ended.code)


def _no_summary(summary: Any, ended: Ended) -> str:
    """Return a summary for a verb that came to none."""
    summary.error = ended.says
    return str(summary.to_json(0.0))


@dataclass(frozen=True, slots=True)
class Order:
    """A command, and all that a cluster needs to run it."""

    parsed: Parsed
    extra: tuple[str, ...]
    name: str
    env: dict[str, str] = field(default_factory=dict)
    include: tuple[str, ...] = ()
    installed: str | None = None
    driver_cpus: float = 0.0

    def submit(self, jobs: Jobs) -> str:
        """Submit it and return the job's name.

        Raises:
            JobRuns: the same command, or another of that name, runs already.
            UsageError: the cluster can't see the files that it names.
        """
        from jobs.packing import check_places, pack

        here = jobs.here()
        if not here:
            for warning in check_places(self.parsed, self.include, address=jobs.address):
                note(f"note: {warning}")
        name = free_name(jobs, self.name)
        how: dict[str, Any] = {
            "entrypoint": self.entrypoint(jobs.python(), here=here),
            "submission_id": name,
            "metadata": {"segmill": self.parsed.verb},
        }
        if self.driver_cpus:
            how["entrypoint_num_cpus"] = self.driver_cpus
        env: dict[str, Any] = {"env_vars": self.env} if self.env else {}
        if self.installed is not None:
            return jobs.submit(**how, runtime_env=env)
        with tempfile.TemporaryDirectory(prefix="segmill-") as folder:
            pack(Path(folder), self.include)
            return jobs.submit(**how, runtime_env={**env, "working_dir": folder})

    def entrypoint(self, python: str, *, here: bool) -> str:
        """Return the shell's command line.

        On this machine's own cluster it runs where the user is, so that relative paths hold.
        """
        words = [self.parsed.verb, *self.parsed.args, *self.extra]
        line = f"exec {python} -P -m jobs {shlex.join(words)}"
        if here:
            line = f"cd {shlex.quote(os.getcwd())} && {line}"
        if self.installed in {None, "any"}:
            return line
        wanted = shlex.quote(str(self.installed))
        check = f'found=$({python} -P -m jobs --version); test "$found" = {wanted} ||'
        return f'{check} {{ echo "the nodes have segmill $found, not {wanted}"; exit 2; }}; {line}'


def free_name(jobs: Jobs, name: str) -> str:
    """Return the name for a job, with a number behind it where earlier tries had it.

    Raises:
        JobRuns: one of them has not ended.
    """
    from jobs.ray_jobs import ENDED, JobRuns

    taken = {job.submission_id: job.status for job in jobs.all()}
    tries = [name, *(f"{name}-{n}" for n in range(2, _MOST_NAMES))]
    running = next((t for t in tries if t in taken and taken[t] not in ENDED), None)
    if running:
        raise JobRuns(
            f"{running} runs already; `segmill jobs logs -f {running}` follows it, "
            f"`segmill jobs stop {running}` ends it"
        )
    return next(t for t in tries if t not in taken)


def _through(order: Order, jobs: Jobs, retries: int, *, as_json: bool) -> Ended:
    """Submit and follow, again where that may help; return how the last try ended."""
    from jobs.ray_jobs import ClusterSilent, printer, reconnected

    echo = printer(as_json=as_json)
    pause = _FIRST_PAUSE
    for left in range(retries, -1, -1):
        name = order.submit(jobs)
        note(f"submitted: {name}")
        try:
            ended = jobs.follow(name, RETURN_SECONDS if left else PATIENCE_SECONDS, echo)
        except KeyboardInterrupt:
            note(f"the job goes on: `segmill jobs logs -f {name}`, `segmill jobs stop {name}`")
            raise SystemExit(130) from None
        except ClusterSilent as error:
            raise SegmillError(
                f"{error} {name} may go on there; if the cluster is lost, the same command on "
                "another one goes on where it was"
            ) from None
        if not (left and ended.again):
            break
        note(f"{name} {ended.says}; submitted again in {pause:g} s, {left} more at most")
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)
        jobs = reconnected(jobs.address, RETURN_SECONDS)
    return ended
