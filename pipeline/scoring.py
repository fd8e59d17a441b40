"""Score predictions against truth: two stores in, one confusion matrix and each image's scores out.

    scores = score(Store.open("truth"), Store.open("pred"), runner=LocalRunner())
    print(scores.tally.miou)

Rows of the same image are paired (`pipeline.metrics.pairing`) and cut into chunks of names. A
worker reads a chunk's mask cells from both stores and hands back one matrix and a row an image.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa

from pipeline.errors import InputError, RemapError, UsageError
from pipeline.label_space import LabelSpace, find_remap
from pipeline.label_space import label_space as built_in
from pipeline.metrics.confusion import UNDEFINED, ConfusionMatrix, Index, Tally, class_index
from pipeline.metrics.pair_scores import (
    IMAGE_SCHEMA,
    ChunkScore,
    ImageScore,
    PairChunk,
    ScorePlan,
    failure_of,
    pair_chunks,
)
from pipeline.metrics.pairing import pair_rows
from pipeline.record import ClassPixels
from pipeline.tables.rows import list_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import pyarrow.compute as pc

    from pipeline.label_space import Loss
    from pipeline.metrics.pairing import Pairing
    from pipeline.runner import Outcome, Runner
    from pipeline.runs.failures import Failure
    from pipeline.store import Store
    from pipeline.tables.rows import Listing

_MOST_PAIRS: Final = 1024
_MOST_BYTES: Final = 32 << 20
# Opening a store's files for a chunk takes some ten milliseconds, as scoring twenty small pairs.
_FEWEST_PAIRS: Final = 128
_FEWEST_BYTES: Final = 1 << 20
_FAILURES_KEPT: Final = 1000
_BINS: Final = 20


@dataclass(frozen=True, slots=True)
class Scores:
    """What `score` returns: one matrix over all images, the extremes, and the sums."""

    space: LabelSpace
    matrix: ConfusionMatrix
    inputs: int
    """Rows of truth."""
    done: int
    unpredicted: int
    """Rows of truth without a prediction."""
    unlabelled: int
    """Rows of truth without a mask."""
    failed: int
    unused: int
    """Predictions without a row of truth."""
    by_path: int
    by_id: int
    failures: tuple[Failure, ...]
    """The first thousand."""
    worst: tuple[ImageScore, ...]
    best: tuple[ImageScore, ...]
    histogram: tuple[int, ...]
    """Images by their own mIoU, in 20 bins from 0 to 1."""
    truth_loss: Loss | None
    """What the remap of truth lost; None where none was needed."""
    predicted_loss: Loss | None

    @property
    def skipped(self) -> int:
        """Rows of truth that there was nothing to score for."""
        return self.unpredicted + self.unlabelled

    @property
    def tally(self) -> Tally:
        """The pixels of each class over all images: what every score comes from."""
        return self.matrix.tally()

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the scored classes, in the matrix's order."""
        return tuple(self.space.by_id[i].name for i in self.space.train_ids)

    def figures(self) -> dict[str, Any]:
        """Return the scores for a JSON summary; None stands for a share of nothing."""
        tally = self.tally
        names = ("miou", "pixel_accuracy", "mean_accuracy", "fwiou", "coverage")
        columns = ("iou", "recall", "precision", "truth", "predicted", "intersection")
        arrays = [getattr(tally, c).tolist() for c in columns]
        return {
            **{name: _known(getattr(tally, name)) for name in names},
            "label_space": self.space.name,
            "pixels": tally.pixels,
            "void_pixels": self.matrix.void,
            "unpredicted": self.unpredicted,
            "unlabelled": self.unlabelled,
            "unused_predictions": self.unused,
            "paired_by_path": self.by_path,
            "paired_by_id": self.by_id,
            "remap_loss": {
                which: None if loss is None else loss.to_dict()
                for which, loss in (("truth", self.truth_loss), ("pred", self.predicted_loss))
            },
            "classes": {
                name: {c: _known(v) for c, v in zip(columns, values, strict=True)}
                for name, values in zip(self.class_names, zip(*arrays, strict=True), strict=True)
            },
        }


def _known(value: float) -> float | None:
    return None if isinstance(value, float) and math.isnan(value) else value


def score(
    truth: Store,
    pred: Store,
    *,
    runner: Runner,
    label_space: str | None = None,
    where: pc.Expression | str | None = None,
    pred_where: pc.Expression | str | None = None,
    extremes: int = 12,
    on_images: Callable[[pa.RecordBatch], None] | None = None,
) -> Scores:
    """Score the predictions of one store against the truth of another.

    `label_space` names the classes that are scored; without it the two stores' own, or the coarser
    one where they differ. `where` filters truth, `pred_where` predictions (as `Store.scan`).
    `on_images` gets the images' rows (`IMAGE_SCHEMA`) in the order of truth, a batch at a time.
    Bad pairs are data: counted, and described in `failures`.

    Raises:
        UsageError: an image has two predictions, or rows use several label spaces and none was
            named.
        RemapError: no remap leads to the label space.
        SegmillError: no row of truth has a prediction.
    """
    pairing = pair_rows(list_rows(truth, where), list_rows(pred, pred_where))
    sides = (_used_spaces(truth, pairing.truth), _used_spaces(pred, pairing.predicted))
    space = _target(label_space, *sides)
    if not space.train_ids:
        raise UsageError(f"label space {space.name!r} has no class to score; all of it is void")
    plan = ScorePlan(truth, pred, space, *(_positions(side, space) for side in sides))
    gather = _Gather(space, extremes, on_images)
    size = chunk_size(pairing.pairs, truth, pred)
    for outcome in runner.map(plan, pair_chunks(pairing, size), split=PairChunk.halves):
        gather.take(outcome)
    return gather.scores(pairing, sides)


def chunk_size(pairs: int, *stores: Store) -> int:
    """Return how many pairs a chunk holds: enough to be worth reading, few enough to hold."""
    rows, size = 1, 1
    for store in stores:
        for fragment in store.fragments():
            rows, size = rows + fragment.rows, size + fragment.size
    each = max(1, size // rows)
    fewest = min(_FEWEST_PAIRS, max(8, _FEWEST_BYTES // each))
    return max(fewest, min(_MOST_PAIRS, _MOST_BYTES // each, pairs // 8))


# --- label spaces ---------------------------------------------------------------------------------


def _used_spaces(store: Store, listing: Listing) -> dict[str, LabelSpace]:
    return {name: store.space(name) for name in listing.label_spaces()}


def _target(
    name: str | None, truth: dict[str, LabelSpace], pred: dict[str, LabelSpace]
) -> LabelSpace:
    """Return the label space to score in."""
    if name is not None:
        return truth.get(name) or pred.get(name) or built_in(name)
    if len(truth) > 1 or len(pred) > 1:
        raise UsageError(
            f"rows use several label spaces (truth: {', '.join(truth)}; predictions: "
            f"{', '.join(pred)}); name the one to score in with --label-space"
        )
    mine, theirs = *truth.values(), *pred.values()
    # Remaps lead from fine to coarse: the coarser of the two is the one that both can be told in.
    ranked = sorted((mine, theirs), key=lambda s: len(s.train_ids))
    for space in ranked:
        try:
            find_remap(mine, space), find_remap(theirs, space)
        except RemapError:
            continue
        return space
    find_remap(theirs, mine)
    return mine


def _positions(spaces: dict[str, LabelSpace], target: LabelSpace) -> dict[str, Index]:
    """Return, for each label space that rows use, the scored class of each of its ids."""
    classes = class_index(target.train_ids, void=(*target.ids, target.ignore_index))
    found = {}
    for name, space in spaces.items():
        ids = np.flatnonzero(space.allowed())
        index = np.full(1 << 16, UNDEFINED, np.int64)
        index[ids] = classes[find_remap(space, target).lut[ids]]
        found[name] = index
    return found


# --- the sum over all chunks ----------------------------------------------------------------------


class _Gather:
    """Adds up chunks as they end; hands images on in the order of truth, however chunks end."""

    def __init__(
        self,
        space: LabelSpace,
        extremes: int,
        on_images: Callable[[pa.RecordBatch], None] | None,
    ) -> None:
        self._space, self._extremes, self._on_images = space, extremes, on_images
        self._matrix = ConfusionMatrix.empty(len(space.train_ids))
        self._done = self._unlabelled = self._failed = self._next = 0
        self._histogram = np.zeros(_BINS, np.int64)
        self._failures: list[Failure] = []
        self._best: list[ImageScore] = []
        self._worst: list[ImageScore] = []
        self._ids: dict[tuple[str, str], Any] = {}
        self._waiting: dict[int, tuple[int, ChunkScore]] = {}

    def take(self, outcome: Outcome[PairChunk, ChunkScore]) -> None:
        """Add one chunk."""
        chunk, result = outcome.chunk, outcome.result
        if isinstance(outcome.error, InputError):
            failures = tuple(failure_of(p, p.truth.image_id, outcome.error) for p in chunk.pairs)
            empty = ConfusionMatrix.empty(len(self._space.train_ids))
            result = ChunkScore(empty, (), failures, 0)
        elif outcome.error is not None:
            raise outcome.error
        assert result is not None
        self._waiting[chunk.first] = (len(chunk.pairs), result)
        while self._next in self._waiting:
            count, ready = self._waiting.pop(self._next)
            self._next += count
            self._add(ready)

    def _add(self, part: ChunkScore) -> None:
        self._matrix += part.matrix
        self._done += len(part.images)
        self._unlabelled += part.unlabelled
        self._failed += len(part.failures)
        room = _FAILURES_KEPT - len(self._failures)
        self._failures += part.failures[:room]
        for key, counts in part.ids.items():
            self._ids[key] = self._ids.get(key, 0) + counts
        self._rank(part.images)
        if self._on_images is not None and part.images:
            rows = [image.row() for image in part.images]
            self._on_images(pa.RecordBatch.from_pylist(rows, schema=IMAGE_SCHEMA))

    def _rank(self, images: Sequence[ImageScore]) -> None:
        scored = [image for image in images if not math.isnan(image.miou)]
        values = [image.miou for image in scored]
        self._histogram += np.histogram(values, bins=_BINS, range=(0.0, 1.0))[0]
        key = lambda image: (image.miou, image.pair.truth)  # noqa: E731 - one line, used twice
        self._worst = heapq.nsmallest(self._extremes, [*self._worst, *scored], key=key)
        self._best = heapq.nlargest(self._extremes, [*self._best, *scored], key=key)

    def scores(
        self, pairing: Pairing, sides: tuple[dict[str, LabelSpace], dict[str, LabelSpace]]
    ) -> Scores:
        """Return the sums."""
        shown = {image.pair for image in self._worst}
        return Scores(
            space=self._space,
            matrix=self._matrix,
            inputs=pairing.truth.rows,
            done=self._done,
            unpredicted=pairing.unpredicted,
            unlabelled=self._unlabelled,
            failed=self._failed,
            unused=pairing.unused,
            by_path=pairing.by_path,
            by_id=pairing.by_id,
            failures=tuple(self._failures),
            worst=tuple(self._worst),
            best=tuple(image for image in self._best if image.pair not in shown),
            histogram=tuple(self._histogram.tolist()),
            truth_loss=self._loss("truth", sides[0]),
            predicted_loss=self._loss("pred", sides[1]),
        )

    def _loss(self, side: str, spaces: dict[str, LabelSpace]) -> Loss | None:
        """Return what the remaps of one side lost of its classes; void was never theirs to lose."""
        total: Loss | None = None
        for (which, name), counts in sorted(self._ids.items(), key=lambda item: item[0]):
            if which == side:
                held = [ClassPixels(i, int(counts[i])) for i in spaces[name].train_ids]
                loss = find_remap(spaces[name], self._space).loss(c for c in held if c.pixels)
                total = loss if total is None else total + loss
        return total
