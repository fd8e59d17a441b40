"""A run's figures as metrics for Prometheus, through whatever collects them where the run is.

Ray does (`pipeline/ray_runner.py`), under its own prefix: `ray_segmill_images_total`. A
`MetricsFile` has the same without Ray and without the prefix. The driver alone counts, as it books
shards: what an actor did that died is in no metric twice.
"""

from __future__ import annotations

import logging
import os
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, Protocol

from pipeline.errors import SegmillError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pipeline.runs.report import RunReport


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric's name, what it says, and its tags beside `verb` and `run`."""

    name: str
    kind: Literal["counter", "gauge"]
    says: str
    tags: tuple[str, ...] = ()


LOG = logging.getLogger("segmill")
_FILE_SECONDS: Final = 10.0
COMMON_TAGS: Final = ("verb", "run")
METRICS: Final = (
    Metric("segmill_images", "counter", "Images whose rows were made."),
    Metric("segmill_pixels", "counter", "Pixels of those images."),
    Metric("segmill_failures", "counter", "Inputs that failed.", ("error",)),
    Metric("segmill_seconds", "counter", "Seconds of workers and driver.", ("stage",)),
    Metric("segmill_worker_seconds", "counter", "Seconds of workers, whatever they did."),
    Metric("segmill_todo", "gauge", "Inputs left to do."),
    Metric("segmill_workers", "gauge", "Workers that are there."),
    Metric("segmill_workers_starting", "gauge", "Workers that are starting."),
    Metric("segmill_queue_depth", "gauge", "Shards handed out and not back yet."),
    Metric(
        "segmill_last_shard_timestamp_seconds",
        "gauge",
        "When the last shard came back, or work began.",
    ),
)


class Meter(Protocol):
    """Takes a counter's increase or a gauge's value."""

    def __call__(self, value: float, tags: Mapping[str, str]) -> None:
        """Take it, under these tags."""


class RunMetrics:
    """Keeps the metrics of one run; called with the run's report whenever that changed."""

    def __init__(self, make: Callable[[Metric], Meter] | None, verb: str, run: str) -> None:
        self._make = make
        self._kinds = {metric.name: metric.kind for metric in METRICS}
        self._meters: dict[str, Meter] = {}
        self._tags = {"verb": verb, "run": run}
        self._told: dict[tuple[str, ...], float] = {}

    def __call__(self, report: RunReport) -> None:
        """Tell what the report has grown by, and what is now; nobody, where nothing collects."""
        if self._make is None:
            return
        if not self._meters:  # made as late as this: Ray is up when the first shard is back
            self._meters = {metric.name: self._make(metric) for metric in METRICS}
        self._tell("segmill_images", report.done)
        self._tell("segmill_pixels", report.pixels)
        for error, count in report.failures.items():
            self._tell("segmill_failures", count, error=error)
        for stage, spent in report.seconds.items():
            self._tell("segmill_seconds", spent, stage=stage)
        self._tell("segmill_worker_seconds", report.worker_seconds())
        self._tell("segmill_todo", report.todo - report.done - report.failed)
        self._tell("segmill_workers", report.crew.alive)
        self._tell("segmill_workers_starting", report.crew.starting)
        self._tell("segmill_queue_depth", report.crew.in_flight)
        self._tell("segmill_last_shard_timestamp_seconds", time.time())

    def _tell(self, name: str, value: float, **tags: str) -> None:
        if self._kinds[name] == "counter":
            key = (name, *tags.values())
            before = self._told.get(key, 0.0)
            if value <= before:  # a worker that is gone lived less long than was thought
                return
            value, self._told[key] = value - before, value
        self._meters[name](value, self._tags | tags)


class MetricsFile:
    """The metrics of a run as a text file, as the node exporter of Prometheus collects them.

    Called with the run's report; the file is replaced as a whole, every few seconds at most, and
    once all inputs are done or failed.
    """

    def __init__(self, path: str, verb: str) -> None:
        self._path, self._verb = path, verb
        self._values: dict[str, dict[str, float]] = {metric.name: {} for metric in METRICS}
        self._metrics: RunMetrics | None = None
        self._written: float | None = None

    def __call__(self, report: RunReport) -> None:
        """Take over the report.

        Raises:
            SegmillError: the first time, the file cannot be written. Later that ends no run.
        """
        self._metrics = self._metrics or RunMetrics(self._meter, self._verb, report.run)
        self._metrics(report)
        now, ended = time.monotonic(), report.done + report.failed >= report.todo
        if self._written is None:
            self._begin()
        elif ended or now - self._written >= _FILE_SECONDS:
            try:
                self._write()
            except OSError as error:
                LOG.warning("%s: the metrics cannot be written: %s", self._path, error)
        else:
            return
        self._written = now

    def _begin(self) -> None:
        try:
            self._write()
        except (OSError, ValueError) as error:  # a NUL in its name is a ValueError
            why = getattr(error, "strerror", None) or error
            raise SegmillError(
                f"--metrics {self._path!r}: it cannot be written ({why}); name a file in a "
                "directory that is there"
            ) from None

    def _write(self) -> None:
        part = f"{self._path}.{os.getpid()}.part"
        try:
            with open(part, "w", encoding="utf-8") as file:
                file.write(self.text())
            os.replace(part, self._path)
        except OSError:
            with suppress(OSError):
                os.remove(part)
            raise

    def _meter(self, metric: Metric) -> Meter:
        held = self._values[metric.name]

        def meter(value: float, tags: Mapping[str, str]) -> None:
            key = ",".join(f'{name}="{_escaped(tags[name])}"' for name in sorted(tags))
            held[key] = value + (held.get(key, 0.0) if metric.kind == "counter" else 0.0)

        return meter

    def text(self) -> str:
        """Return the metrics in Prometheus' text format, version 0.0.4."""
        lines = []
        for metric in METRICS:
            name = metric.name + ("_total" if metric.kind == "counter" else "")
            lines += [f"# HELP {name} {metric.says}", f"# TYPE {name} {metric.kind}"]
            held = self._values[metric.name].items()
            lines += [f"{name}{{{key}}} {value!r}" for key, value in sorted(held)]
        return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
