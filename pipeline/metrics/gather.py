"""The sum over all chunks of a scoring: added in the order of truth, however chunks end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from pipeline.errors import InputError
from pipeline.metrics.pair_scores import failure_of

if TYPE_CHECKING:
    from collections.abc import Callable

    import pyarrow as pa
    from numpy.typing import NDArray

    from pipeline.metrics.pair_scores import ChunkScore, PairChunk, ScorePlan
    from pipeline.metrics.pairing import Pair
    from pipeline.runner import Outcome

FAILURES_KEPT: Final = 1000
_BINS: Final = 20


@dataclass(frozen=True, slots=True)
class ImageScore:
    """The scores of one image, and the rows that were compared."""

    pair: Pair
    pixels: int
    void: int
    correct: int
    pixel_accuracy: float
    """Share of the scored pixels that are right."""
    miou: float
    coverage: float
    classes: int
    worst_class: str

    def row(self) -> dict[str, Any]:
        """Return the row of `IMAGE_SCHEMA`."""
        image_id, dataset = self.pair.truth[:2]
        known = {"image_id": image_id, "dataset": dataset, "split": self.pair.split}
        return known | {n: getattr(self, n) for n in _FIGURES}


_FIGURES: Final = tuple(n for n in ImageScore.__slots__ if n != "pair")


class Gather:
    """Adds up chunks; hands images on in the order of truth."""

    def __init__(
        self, plan: ScorePlan, extremes: int, on_images: Callable[[pa.RecordBatch], None] | None
    ) -> None:
        self._plan, self._extremes, self._on_images = plan, extremes, on_images
        self._sums = plan.start()
        self._done = self._failed = self._incomparable = self._next = 0
        self._histogram = np.zeros(_BINS, np.int64)
        self._best: list[ImageScore] = []
        self._worst: list[ImageScore] = []
        self._waiting: dict[int, tuple[PairChunk, ChunkScore]] = {}

    def take(self, outcome: Outcome[PairChunk, ChunkScore]) -> None:
        """Add one chunk."""
        chunk, result = outcome.chunk, outcome.result
        if isinstance(outcome.error, InputError):
            result = self._plan.start()
            result.failures = [failure_of(p, p.truth.image_id, outcome.error) for p in chunk.pairs]
        elif outcome.error is not None:
            raise outcome.error
        assert result is not None
        self._waiting[chunk.first] = chunk, result
        while self._next in self._waiting:
            chunk, ready = self._waiting.pop(self._next)
            self._next += len(chunk.pairs)
            self._add(chunk, ready)

    def _add(self, chunk: PairChunk, part: ChunkScore) -> None:
        sums = self._sums
        sums.matrix += part.matrix
        sums.confused.merge(part.confused)
        for mine, theirs in zip(sums.gatherings, part.gatherings, strict=True):
            mine.merge(theirs)
        for held, more in zip(sums.tallied, part.tallied, strict=True):
            held.merge(more)
        sums.unlabelled += part.unlabelled
        sums.compared += part.compared
        self._done += len(part.numbers)
        self._failed += len(part.failures)
        self._incomparable += len(part.incomparable)
        sums.failures += part.failures[: FAILURES_KEPT - len(sums.failures)]
        sums.incomparable += part.incomparable[: FAILURES_KEPT - len(sums.incomparable)]
        for key, (ids, pixels) in part.ids.items():
            np.add.at(sums.ids.setdefault(key, np.zeros(1 << 16, np.int64)), ids, pixels)
        pairs = iter([chunk.pairs[n] for n in part.numbers])
        for batch in part.images:
            self._rank(batch, [next(pairs) for _ in range(batch.num_rows)])
            if self._on_images is not None:
                self._on_images(batch)

    def _rank(self, batch: pa.RecordBatch, pairs: list[Pair]) -> None:
        miou = batch["miou"].to_numpy()
        known = np.flatnonzero(~np.isnan(miou))
        self._histogram += np.histogram(miou[known], bins=_BINS, range=(0.0, 1.0))[0]
        order = known[np.argsort(miou[known], kind="stable")]

        def images(rows: NDArray[np.intp]) -> list[ImageScore]:
            part = batch.select(_FIGURES).take(rows).to_pylist()
            return [ImageScore(pairs[k], **row) for k, row in zip(rows.tolist(), part, strict=True)]

        worst = [*self._worst, *images(order[: self._extremes])]
        best = [*self._best, *images(order[max(0, len(order) - self._extremes) :])]
        self._worst = sorted(worst, key=_rank_of)[: self._extremes]
        self._best = sorted(best, key=_rank_of, reverse=True)[: self._extremes]

    @property
    def done(self) -> int:
        """Images that were scored."""
        return self._done

    @property
    def failed(self) -> int:
        """Pairs that could not be."""
        return self._failed

    @property
    def incomparable(self) -> int:
        """Images whose baseline is broken."""
        return self._incomparable

    @property
    def sums(self) -> ChunkScore:
        """What the chunks come to together, but their images' rows; ids as pixels [65536]."""
        return self._sums

    @property
    def histogram(self) -> tuple[int, ...]:
        """Images by their own mIoU, in 20 bins from 0 to 1."""
        return tuple(self._histogram.tolist())

    @property
    def worst(self) -> tuple[ImageScore, ...]:
        """The images of least mIoU."""
        return tuple(self._worst)

    @property
    def best(self) -> tuple[ImageScore, ...]:
        """The images of most mIoU that are not among the worst."""
        shown = {image.pair for image in self._worst}
        return tuple(image for image in self._best if image.pair not in shown)

    def figures(self) -> dict[str, Any]:
        """Return the figures of all measures by name."""
        plan, sums = self._plan, self._sums
        found: dict[str, Any] = {}
        for measure, gathering in zip(plan.measures, sums.gatherings, strict=True):
            found[measure.name] = gathering.figures()
        for tally, held in zip(plan.tally_measures, sums.tallied, strict=True):
            found[tally.name] = held.figures()
        return found


def _rank_of(image: ImageScore) -> tuple[float, Any]:
    return image.miou, image.pair.truth
