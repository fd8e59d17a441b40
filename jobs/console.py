"""What every verb shares: the summary, the exit codes, progress, and the options with one meaning.

    with command("ingest", as_json=json, debug=debug, max_errors=max_errors) as summary:
        summary.inputs += 1

Results go to stdout, progress and errors to stderr. The summary's sum (inputs = done + skipped +
failed) is asserted when the block ends.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobs.budget import budget
from pipeline.errors import SegmillError, SumMismatch, TooManyErrors, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from jobs.progress import Progress
    from pipeline.runs.report import RunReport

EXIT_FAILED, EXIT_USAGE, EXIT_ERRORS, EXIT_GATE = 1, 2, 3, 4

_FACTS_TOLD = 5

JsonOption = Annotated[
    bool,
    typer.Option(
        "--json", help="Print one JSON summary as the last line of stdout, also of a failure."
    ),
]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]
MaxErrorsOption = Annotated[
    str,
    typer.Option(
        metavar="N|P%",
        help="Bad inputs to tolerate, a count or a share of all; past it the exit code is 3.",
    ),
]
SourceArgument = Annotated[
    str,
    typer.Argument(
        help="The dataset's root, a .zip or .tar of it, a URL, or several: a.zip,b.zip."
    ),
]
StoreArgument = Annotated[str, typer.Argument(help="The label store.")]
VersionOption = Annotated[
    str | None, typer.Option(help="A version or a tag of the store; default: the newest.")
]
WhereOption = Annotated[
    str | None,
    typer.Option(help="Which rows: an SQL condition on the columns, as \"split = 'val'\"."),
]
ViewOption = Annotated[
    str | None,
    typer.Option(
        "--view",
        metavar="FILE|P|NAME=P,…",
        help="Which soft labels count: thresholds.json of pseudo-label, or least confidences; "
        ":border=N behind it ignores N pixels along borders.",
    ),
]
SplitsOption = Annotated[
    list[str] | None, typer.Option("--split", help="Splits to read; default: all.")
]
StrictOption = Annotated[
    bool, typer.Option("--strict", help="Exit with code 4 when anything is lost.")
]
RunnerOption = Annotated[
    str,
    typer.Option(
        help="auto, local (this process) or ray; auto takes Ray for a cluster, a GPU or much work."
    ),
]
AddressOption = Annotated[
    str | None, typer.Option(help="A Ray cluster's address; without it Ray starts on this machine.")
]
MetricsOption = Annotated[
    str | None,
    typer.Option(
        "--metrics",
        metavar="FILE",
        help="Keep the run's metrics in FILE, as Prometheus' node exporter reads them.",
    ),
]
WorkersOption = Annotated[
    int | None, typer.Option(min=1, help="Worker threads or actors; default: one a CPU core.")
]


@dataclass(slots=True)
class Summary:
    """What a verb did: the sum of its inputs, where its results lie, and its own figures."""

    verb: str
    inputs: int = 0
    done: int = 0
    skipped: int = 0
    failed: int = 0
    version: int | None = None
    paths: dict[str, str] = field(default_factory=dict)
    figures: dict[str, Any] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    """What else to tell people."""
    gate: str | None = None
    """Why a gate said no; the exit code is then 4."""
    so_far: RunReport | None = None
    """What a run has come to, for when the verb is stopped or fails."""
    error: str | None = None
    """What ended the verb; the exit code is then 1, 2 or 130, and the sum is what was known."""

    def check_sum(self) -> None:
        """Raise SumMismatch unless inputs = done + skipped + failed."""
        if self.inputs != self.done + self.skipped + self.failed:
            raise SumMismatch(
                f"{self.verb}: {self.inputs} inputs, but {self.done} done + {self.skipped} skipped "
                f"+ {self.failed} failed; please report this"
            )

    def book(self, report: RunReport) -> None:
        """Take over the sum and the figures of a run."""
        self.inputs, self.done = report.inputs, report.done
        self.skipped, self.failed = report.skipped, report.failed
        self.version = report.version
        self.figures |= {"run": report.run, "resumed": report.resumed, "adopted": report.adopted}
        self.figures["repeated"] = report.repeated
        if report.repeated:
            note(f"{report.repeated} inputs are listed again (same image); the first one counts")
        self.figures |= {"failures": report.to_dict()["failures"], **report.figures()}
        self.lines += budget(report)

    def to_json(self, seconds: float) -> str:
        """Return the one-line JSON summary."""
        return json.dumps(
            {
                "verb": self.verb,
                "inputs": self.inputs,
                "done": self.done,
                "skipped": self.skipped,
                "failed": self.failed,
                "seconds": round(seconds, 3),
                "version": self.version,
                "paths": self.paths,
                **self.figures,
                **({"gate": self.gate} if self.gate else {}),
                **({"error": self.error} if self.error else {}),
            },
            default=str,
        )


def tolerated(max_errors: str, inputs: int) -> int:
    """Return how many failures `--max-errors` allows among the inputs.

    >>> tolerated("5", 1000), tolerated("1%", 1000)
    (5, 10)
    """
    try:
        if max_errors.endswith("%"):
            share = float(max_errors[:-1])
            if not 0 <= share <= 100:
                raise ValueError
            return int(inputs * share / 100)
        count = int(max_errors)
        if count < 0:
            raise ValueError
    except ValueError:
        raise UsageError(
            f"--max-errors takes a count or a share like 1%, not {max_errors!r}"
        ) from None
    return count


@contextmanager
def command(
    verb: str, *, as_json: bool = False, debug: bool = False, max_errors: str = "0"
) -> Iterator[Summary]:
    """Run a verb's body; then print its summary and exit with the design's codes."""
    summary, start = Summary(verb), time.perf_counter()
    try:
        tolerated(max_errors, 0)
        yield summary
        summary.check_sum()
    except (Exception, KeyboardInterrupt) as error:
        if debug:
            traceback.print_exc()
        code, summary.error = _explain(error)
        if summary.so_far is not None:
            ran = summary.so_far
            summary.figures["so_far"] = ran.to_dict()
            note(f"{verb}: {ran.done:,} done and {ran.failed:,} failed of {ran.todo:,}")
        print(f"segmill {verb}: {summary.error}", file=sys.stderr)
        if as_json:
            print(summary.to_json(time.perf_counter() - start), flush=True)
        raise SystemExit(code) from None
    seconds = time.perf_counter() - start
    if as_json:
        print(summary.to_json(seconds), flush=True)
    else:
        _print(summary, seconds)
    if summary.gate:
        print(f"segmill {verb}: gate: {summary.gate}", file=sys.stderr)
        raise SystemExit(EXIT_GATE)
    allowed = tolerated(max_errors, summary.inputs)
    if summary.failed > allowed:
        print(
            f"segmill {verb}: {summary.failed} inputs failed, --max-errors allows {allowed}",
            file=sys.stderr,
        )
        raise SystemExit(EXIT_ERRORS)


def _explain(error: BaseException) -> tuple[int, str]:
    """Return the exit code, and one line about the error."""
    if isinstance(error, KeyboardInterrupt):
        return 130, "stopped; run the same command again to go on"
    text = " ".join(str(error).split()) or type(error).__name__
    if not isinstance(error, (SegmillError, OSError)):
        text = f"unexpected {type(error).__name__}: {text}; --debug shows where, please report it"
    if isinstance(error, TooManyErrors):
        return EXIT_ERRORS, text
    return EXIT_USAGE if isinstance(error, UsageError) else EXIT_FAILED, text


def _print(summary: Summary, seconds: float) -> None:
    """Print the summary for people."""
    if summary.inputs:
        print(
            f"{summary.verb}: {summary.inputs} inputs = {summary.done} done + {summary.skipped} "
            f"skipped + {summary.failed} failed, {seconds:.1f} s"
        )
    for line in summary.lines:
        print(f"  {line}")
    for name, path in summary.paths.items():
        print(f"  {name}: {path}")


def watching(
    progress: Progress, metrics: str | None, summary: Summary
) -> Callable[[RunReport], None]:
    """Return what a run tells its report to: the progress, and the file of `--metrics`.

    Raises:
        UsageError: the file's directory is not there, or not to be written to.
    """
    from pipeline.runs.metrics import MetricsFile

    folder = os.path.dirname(os.path.abspath(metrics or "."))
    if not os.access(folder, os.W_OK) and metrics is not None:
        raise UsageError(f"--metrics {metrics}: {folder} is no directory that can be written to")
    file = None if metrics is None else MetricsFile(metrics, summary.verb)

    def watch(report: RunReport) -> None:
        summary.so_far = report
        progress.watch(report)
        if file is not None:
            file(report)

    return watch


def note(text: str) -> None:
    """Tell the user something on stderr."""
    print(text, file=sys.stderr, flush=True)


def tell_facts(summary: Summary, replaced: Sequence[str]) -> None:
    """Book and tell which facts of datasets in a store gave way to others of the same name."""
    summary.figures["facts_replaced"] = len(replaced)
    if replaced:
        names = ", ".join(replaced[:_FACTS_TOLD]) + ("..." if len(replaced) > _FACTS_TOLD else "")
        note(
            f"warning: the store had other facts of {names}; the new ones count, "
            f"older versions keep the old ones (`segmill store history`)"
        )
