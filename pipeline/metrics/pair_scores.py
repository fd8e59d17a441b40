"""The work of scoring on one chunk of pairs: read both stores' mask cells, count, hand back sums.

What is wrong with a pair becomes a failure. Names come in; sums and one row an image go out.
"""

from __future__ import annotations

import math
from copy import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa

from pipeline.errors import InputError, LabelOutOfRange, SizeMismatch
from pipeline.masks import decode
from pipeline.metrics.confusion import (
    UNDEFINED,
    ConfusionMatrix,
    Index,
    Pairs,
    Tally,
    count_pairs,
)
from pipeline.runs.failures import Failure
from pipeline.tables.rows import rows_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from pipeline.label_space import LabelSpace
    from pipeline.metrics.pairing import Pair
    from pipeline.store import Store
    from pipeline.tables.rows import RowKey

IMAGE_SCHEMA: Final = pa.schema(
    [
        ("image_id", pa.string()),
        ("dataset", pa.string()),
        ("split", pa.string()),
        ("pixels", pa.int64()),
        ("void", pa.int64()),
        ("correct", pa.int64()),
        ("pixel_accuracy", pa.float64()),
        ("miou", pa.float64()),
        ("coverage", pa.float64()),
        ("classes", pa.int32()),
        ("worst_class", pa.string()),
    ]
)
"""A row of `per_image.parquet`; `miou` is the mean over the classes in this image's truth or
prediction, `worst_class` the one with the most wrong pixels."""


@dataclass(frozen=True, slots=True)
class ImageScore:
    """The scores of one image, and the rows that were compared."""

    pair: Pair
    pixels: int
    void: int
    correct: int
    miou: float
    coverage: float
    classes: int
    worst_class: str

    @property
    def pixel_accuracy(self) -> float:
        """Share of the scored pixels that are right."""
        return self.correct / self.pixels if self.pixels else math.nan

    def row(self) -> dict[str, Any]:
        """Return the row of `IMAGE_SCHEMA`."""
        image_id, dataset, _ = self.pair.truth
        known = {"image_id": image_id, "dataset": dataset, "split": self.pair.split}
        return known | {f.name: getattr(self, f.name) for f in IMAGE_SCHEMA if f.name not in known}


@dataclass(frozen=True, slots=True)
class PairChunk:
    """Pairs that one worker scores, and the place of the first of them in the order of truth."""

    first: int
    pairs: tuple[Pair, ...]

    def halves(self) -> list[PairChunk]:
        """Return two smaller chunks, or this one when it holds a single pair."""
        middle = len(self.pairs) // 2
        if not middle:
            return [self]
        return [
            PairChunk(self.first, self.pairs[:middle]),
            PairChunk(self.first + middle, self.pairs[middle:]),
        ]


def pair_chunks(pairs: Iterable[Pair], size: int) -> Iterator[PairChunk]:
    """Cut pairs into chunks."""
    first, held = 0, []
    for pair in pairs:
        held.append(pair)
        if len(held) == size:
            yield PairChunk(first, tuple(held))
            first, held = first + size, []
    if held:
        yield PairChunk(first, tuple(held))


@dataclass(frozen=True, slots=True)
class ChunkScore:
    """What a worker hands back for a chunk."""

    matrix: ConfusionMatrix
    images: tuple[ImageScore, ...]
    failures: tuple[Failure, ...]
    unlabelled: int
    ids: dict[tuple[str, str], Any] = field(default_factory=dict)
    """Pixels by id, for each side (truth, pred) and label space: what remaps lose follows."""


@dataclass(frozen=True, slots=True)
class ScorePlan:
    """A picklable factory: makes the worker that scores chunks."""

    truth: Store
    pred: Store
    space: LabelSpace
    rows: dict[str, Index]
    columns: dict[str, Index]

    def __call__(self) -> Callable[[PairChunk], ChunkScore]:
        """Make the worker; it opens the stores anew, so that threads share no reader."""
        return _ScoreWorker(copy(self.truth), copy(self.pred), self)


@dataclass(frozen=True, slots=True)
class _Cell:
    """A mask cell as it lies in a store."""

    mask: bytes | None
    space: str
    path: str


def _cells(store: Store, keys: Iterable[RowKey]) -> Iterator[tuple[RowKey, _Cell]]:
    for key, row in rows_of(store, keys, ["mask.bytes", "label_space", "image.path"]):
        mask, space, path = row
        yield key, _Cell(mask, space or "", path or key.image_id)


@dataclass(frozen=True, slots=True)
class _ScoreWorker:
    truth: Store
    pred: Store
    plan: ScorePlan

    def __call__(self, chunk: PairChunk) -> ChunkScore:
        classes = len(self.plan.space.train_ids)
        part = _Part(self.plan, ConfusionMatrix.empty(classes))
        truths = dict(_cells(self.truth, (p.truth for p in chunk.pairs)))
        wanted: dict[RowKey, list[Pair]] = {}
        for pair in chunk.pairs:
            wanted.setdefault(pair.predicted, []).append(pair)
        for key, cell in _cells(self.pred, list(wanted)):
            for pair in wanted.pop(key, ()):
                part.add(pair, truths[pair.truth], cell)
        return part.result(chunk)


@dataclass(slots=True)
class _Part:
    """The sums over a chunk, in the making."""

    plan: ScorePlan
    matrix: ConfusionMatrix
    images: dict[Pair, ImageScore] = field(default_factory=dict)
    failures: dict[Pair, Failure] = field(default_factory=dict)
    unlabelled: int = 0
    ids: dict[tuple[str, str], Any] = field(default_factory=dict)

    def add(self, pair: Pair, truth: _Cell, predicted: _Cell) -> None:
        """Score one pair; what is wrong with it becomes a failure."""
        if truth.mask is None:
            self.unlabelled += 1
            return
        try:
            pairs = _compare(truth, predicted)
            rows = _checked(self.plan.rows[truth.space], pairs.truth, truth, "truth")
            columns = _checked(
                self.plan.columns[predicted.space], pairs.predicted, predicted, "prediction"
            )
        except InputError as error:
            self.failures[pair] = failure_of(pair, truth.path, error)
            return
        self.matrix.update(pairs, rows, columns)
        self._count_ids(truth.space, predicted.space, pairs)
        self.images[pair] = _image_score(pair, pairs, rows, columns, self.plan.space)

    def _count_ids(self, truth: str, predicted: str, pairs: Pairs) -> None:
        """Count pixels by id where a remap may lose some."""
        target = self.plan.space.name
        for side, space, ids in (
            ("truth", truth, pairs.truth),
            ("pred", predicted, pairs.predicted),
        ):
            if space != target:
                held = self.ids.setdefault((side, space), np.zeros(1 << 16, np.int64))
                np.add.at(held, ids, pairs.counts)

    def result(self, chunk: PairChunk) -> ChunkScore:
        """Return the sums, images in the chunk's order."""
        return ChunkScore(
            self.matrix,
            tuple(self.images[p] for p in chunk.pairs if p in self.images),
            tuple(self.failures[p] for p in chunk.pairs if p in self.failures),
            self.unlabelled,
            self.ids,
        )


def _compare(truth: _Cell, predicted: _Cell) -> Pairs:
    if predicted.mask is None:
        mend = (
            "mIoU is of masks: label it with a semantic or panoptic model; objects alone are for "
            "COCO's tools, by `segmill export --format coco-instances`"
        )
        raise InputError(predicted.path, "the prediction has no mask", mend)
    mine = decode(truth.mask or b"", f"{truth.path} (truth)")
    theirs = decode(predicted.mask, f"{predicted.path} (prediction)")
    if mine.shape != theirs.shape:
        raise SizeMismatch(
            predicted.path,
            f"the prediction is {theirs.shape[1]}x{theirs.shape[0]} pixels, the truth "
            f"{mine.shape[1]}x{mine.shape[0]}",
            "label the image at its own size",
        )
    return count_pairs(mine, theirs)


def _checked(index: Index, ids: Index, cell: _Cell, which: str) -> Index:
    """Return the index, if it defines every id."""
    strange = np.unique(ids[index[ids] == UNDEFINED])
    if strange.size:
        raise LabelOutOfRange(
            cell.path,
            f"the {which} holds ids that label space {cell.space!r} does not define: "
            f"{', '.join(map(str, strange[:10].tolist()))}",
            "write the mask again in its label space",
        )
    return index


def failure_of(pair: Pair, path: str, error: InputError) -> Failure:
    """Return what the error says about the pair."""
    text = " ".join(str(error).split())
    kind = type(error).__name__
    image_id, dataset, _ = pair.truth
    return Failure(path, image_id, dataset, pair.split, "score", kind, text)


def _image_score(
    pair: Pair, pairs: Pairs, rows: Index, columns: Index, space: LabelSpace
) -> ImageScore:
    tally = Tally.of(pairs, rows, columns, len(space.train_ids))
    union = tally.union
    wrong = union - tally.intersection
    worst = space.by_id[space.train_ids[int(np.argmax(wrong))]].name if wrong.any() else ""
    return ImageScore(
        pair=pair,
        pixels=tally.pixels,
        void=int(pairs.counts.sum()) - tally.pixels,
        correct=tally.correct,
        miou=tally.miou,
        coverage=tally.coverage,
        classes=int((union > 0).sum()),
        worst_class=worst,
    )
