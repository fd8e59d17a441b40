"""What a run would do, how long it would take and what it would cost; nothing is written.

How fast the labeller is, the store's finished runs of the same digest tell. Without one, some
images are labelled in this process and thrown away.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa

from pipeline.runs.keys import spread
from pipeline.runs.ledger import Ledger
from pipeline.runs.names import finished_run, latest_runs
from pipeline.runs.orphans import Orphans
from pipeline.runs.planning import Planner
from pipeline.samples import joined, of_batch
from pipeline.spent import working_seconds

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.files import Tree
    from pipeline.record import Sample
    from pipeline.run import Labeller, Run
    from pipeline.runs.planning import Listing
    from pipeline.store import Store

TRIAL_IMAGES: Final = 17
"""Images of a trial; the first warms up, and is not timed."""
_TRIAL_SECONDS: Final = 20.0
_RUNS_ASKED: Final = 20
_RUNS_TAKEN: Final = 3
_LEAST_DONE: Final = 32


@dataclass(frozen=True, slots=True)
class Rate:
    """Images that one worker labels and writes in a second, and how that is known."""

    images_per_second: float
    source: str
    """`history`, or `trial` for images labelled in this process, without their writing."""
    images: int
    of: tuple[str, ...]
    """The runs, or the images, that it was measured on."""


@dataclass(frozen=True, slots=True)
class Outlook:
    """What a run would do. listed = done_already + to_do + changed + adopted + repeated."""

    listed: int
    done_already: int
    to_do: int
    """Images that the store has no row of."""
    changed: int
    """Images that it has a row of, by another fingerprint or labeller: it would be replaced."""
    adopted: int
    """Labels that a run which died has written, and that would only be committed."""
    repeated: int
    """Inputs that the listing names again."""
    trial: tuple[Sample, ...] = ()

    @property
    def work(self) -> int:
        """Images that would be labelled."""
        return self.to_do + self.changed

    def figures(
        self, rate: Rate | None, *, workers: int, gpus: float, price: float | None
    ) -> dict[str, Any]:
        """Return the figures of a JSON summary; times in seconds and hours, `price` a GPU hour.

        `rate` is None where there is nothing to do, or no image of the trial could be labelled.
        """
        told: dict[str, Any] = {k: v for k, v in asdict(self).items() if k != "trial"}
        told |= {"dry_run": True, "workers": workers, "gpus_per_worker": gpus}
        if rate is None and self.work:
            return told | {"rate": None}
        seconds = self.work / rate.images_per_second if rate is not None else 0.0
        told["rate"] = None if rate is None else asdict(rate)
        told["expected_seconds"] = round(seconds / workers, 1)
        told["worker_hours"] = round(seconds / 3600, 4)
        told["gpu_hours"] = round(gpus * seconds / 3600, 4)
        if price is not None:
            told |= {"price_per_gpu_hour": price, "cost": round(price * told["gpu_hours"], 2)}
        return told


def foresee(
    store: Store | None,
    run: Run | None,
    listing: Listing,
    shard_rows: int,
    on_listed: Callable[[int, int], None] = lambda listed, todo: None,
) -> Outlook:
    """Ask of a listing what a run would do; `run` is the one that it would take up."""
    ledger = None if store is None else Ledger.of(store)
    orphans = Orphans([]) if store is None or run is None else Orphans.of(store, run)
    taster = _Taster()
    planner = Planner(ledger, orphans, taster, shard_rows)
    planner.read(listing, on_listed)
    adopted = sum(o.fragment.rows for o in planner.adopted)
    return Outlook(
        listed=planner.listed,
        done_already=planner.listed - planner.repeated - planner.todo - adopted,
        to_do=planner.todo - planner.changed,
        changed=planner.changed,
        adopted=adopted,
        repeated=planner.repeated,
        trial=tuple(taster.samples()),
    )


class _Taster:
    """Stands for a plan: of what is to be done it keeps a few, the same ones each time."""

    def __init__(self) -> None:
        self._kept: pa.RecordBatch | None = None

    def add(self, samples: pa.RecordBatch) -> None:
        held = samples if self._kept is None else joined([self._kept, samples])
        order = np.argsort(spread(held["path"], "trial"), kind="stable")[:TRIAL_IMAGES]
        self._kept = held.take(pa.array(order))

    def flush(self) -> None:
        """There is nothing to write."""

    def samples(self) -> list[Sample]:
        return [] if self._kept is None else of_batch(self._kept)


def past_rate(tree: Tree, verb: str, digest: str, gpus: float) -> Rate | None:
    """Return what the latest finished runs of a labeller tell; None when they tell too little.

    Only runs whose workers had as much of a GPU count.
    """
    images, seconds, told = 0, 0.0, []
    ours = [name for name in latest_runs(tree) if name.startswith(f"{verb}-")]
    for name in ours[:_RUNS_ASKED]:
        held = finished_run(tree, name)
        spent = working_seconds(held.get("stages", {}))
        fits = held.get("model_digest") == digest and held.get("gpus_per_worker", 0.0) == gpus
        if fits and spent:
            images += held["done"] + held["failed"]
            seconds += spent
            told.append(name)
        if len(told) == _RUNS_TAKEN:
            break
    if images < _LEAST_DONE:
        return None
    return Rate(round(images / seconds, 4), "history", images, tuple(told))


def trial_rate(make_labeller: Callable[[], Labeller], samples: tuple[Sample, ...]) -> Rate | None:
    """Label some images in this process and throw the labels away; None when there are none.

    The first image warms up, and counts only where it is the only one. An image that fails counts:
    it takes its time in a run, too.
    """
    if not samples:
        return None
    labeller = make_labeller()
    start = time.perf_counter()
    for _ in labeller(samples[:1]):
        pass
    timed = samples[1:]
    if timed:
        start = time.perf_counter()
    labelled = [] if timed else [samples[0].path]
    for sample, _ in labeller(timed) if timed else ():
        labelled.append(sample.path)
        if time.perf_counter() - start > _TRIAL_SECONDS:
            break
    spent = max(time.perf_counter() - start, 1e-9)
    return Rate(round(len(labelled) / spent, 4), "trial", len(labelled), tuple(labelled))
