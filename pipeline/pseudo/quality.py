"""How good labels may be where there is no truth: expected precision and IoU, from confidence.

A pixel predicted as class c with calibrated confidence q is right with probability q; with 1 - q it
belongs to another class, to class k as often as held-out truth was k where the prediction was c and
wrong. So, over the pixels of an image or a bucket,

    expected IoU of c = sum of q over pixels predicted as c
                        / (pixels predicted as c + expected pixels of c among the others)

Pixels that no class of truth covers (void) are in: nobody can tell them without truth. The estimate
knows what the held-out images knew: labels of another kind of scene may be far worse than it says.
Only a random sample, labelled by people, tells without such an assumption (`audit`).
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from pipeline.errors import InputError, UsageError
from pipeline.in_order import Chunk, in_order
from pipeline.metrics.histogram import joint_histogram
from pipeline.metrics.shares import by_name, known, mean, ratio
from pipeline.pseudo.held_out import LEVELS, at_or_above, one_space
from pipeline.pseudo.rows import COLUMNS, failure, labelled
from pipeline.tables.rows import RowKey, list_rows, rows_of
from pipeline.training.data import Channels

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import pyarrow as pa

    from pipeline.in_order import Mapper
    from pipeline.label_space import LabelMap
    from pipeline.metrics.confusion import Counts, Floats
    from pipeline.pseudo.calibrate import Calibration
    from pipeline.runs.failures import Failure
    from pipeline.store import Store
    from pipeline.tables.rows import Listing

_FAILURES_KEPT: Final = 1000
_MOST_RARITY: Final = 10.0
_BLOCK: Final = 4096


@dataclass(frozen=True, slots=True, eq=False)
class Expected:
    """Expected sums over pixels, by class [C]; they add up over images."""

    predicted: Floats
    """Pixels predicted as the class."""
    right: Floats
    """Of those, the expected right ones."""
    elsewhere: Floats
    """Expected pixels of the class among those predicted as others."""

    @classmethod
    def of(cls, levels: Counts, maps: Floats, wrong: Floats) -> Expected:
        """Return the sums of pixels by predicted class and confidence [C, 256].

        `maps` [C, 256] and `wrong` [C, C] are a `Calibration`'s.
        """
        predicted = levels.sum(axis=1).astype(np.float64)
        right = (levels * maps).sum(axis=1)
        return cls(predicted, right, (predicted - right) @ wrong)

    def __add__(self, other: Expected) -> Expected:
        """Return the sums over the pixels of both."""
        return Expected(
            self.predicted + other.predicted,
            self.right + other.right,
            self.elsewhere + other.elsewhere,
        )

    @property
    def precision(self) -> Floats:
        """Expected precision of each class [C]; nan where nothing is predicted."""
        return ratio(self.right, self.predicted)

    @property
    def iou(self) -> Floats:
        """Expected IoU of each class [C]; nan where it is neither predicted nor expected."""
        return ratio(self.right, self.predicted + self.elsewhere)

    @property
    def accuracy(self) -> float:
        """Expected share of right pixels; nan without any."""
        return float(ratio(self.right.sum(), self.predicted.sum()))

    @property
    def miou(self) -> float:
        """Mean expected IoU over the classes that are predicted; nan without any."""
        return mean(np.where(self.predicted > 0, self.iou, np.nan))


@dataclass(frozen=True, slots=True)
class ImageQuality:
    """What may be expected of one image's labels; None for a share of nothing."""

    image_id: str
    dataset: str
    split: str
    path: str
    pixels: int
    accuracy: float | None
    miou: float | None
    coverage: float
    """The share of the pixels that the view keeps."""
    rarest: str
    """The rarest class that is predicted, by held-out truth."""
    worth: float
    """Expected wrong pixels, rare classes counted up to ten times, as a share of all pixels."""
    missed: tuple[str, ...]
    """Classes that image-level labels name and no pixel is predicted as."""


def image_schema() -> pa.Schema:
    """Return the columns of `quality.parquet`: the fields of `ImageQuality`."""
    import pyarrow as pa

    text, real = pa.string(), pa.float64()
    kinds = {"pixels": pa.int64(), "missed": pa.list_(text)}
    reals = ("accuracy", "miou", "coverage", "worth")
    return pa.schema(
        [(n, kinds.get(n, real if n in reals else text)) for n in ImageQuality.__slots__]
    )


@dataclass(slots=True, eq=False)
class Quality:
    """What may be expected of a store's labels; sums over its rows."""

    names: tuple[str, ...]
    levels: Counts
    """Pixels by predicted class and confidence, int64 [C, 256]."""
    expected: Expected
    images: int = 0
    failed: int = 0
    pixels: int = 0
    unlabelled: int = 0
    """Pixels that the labels give no class."""
    flagged: int = 0
    """Images in which a class that image-level labels name is never predicted."""
    failures: list[Failure] = field(default_factory=list)

    @classmethod
    def empty(cls, calibration: Calibration) -> Quality:
        """Return sums over no rows."""
        names = tuple(rule.name for rule in calibration.rules)
        nothing = np.zeros(len(names))
        levels = np.zeros((len(names), LEVELS), np.int64)
        return cls(names, levels, Expected(nothing, nothing, nothing))

    def merge(self, other: Quality) -> None:
        """Add the sums over other rows."""
        self.levels += other.levels
        self.expected = self.expected + other.expected
        for name in ("images", "failed", "pixels", "unlabelled", "flagged"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.failures += other.failures[: _FAILURES_KEPT - len(self.failures)]

    def kept(self, calibration: Calibration) -> Expected:
        """Return the expected sums over the pixels that the calibration's view keeps."""
        keep = np.array([rule.keep for rule in calibration.rules])
        levels = np.where(np.arange(LEVELS) >= keep[:, None], self.levels, 0)
        return Expected.of(levels, calibration.maps, calibration.wrong)

    def figures(self, calibration: Calibration) -> dict[str, Any]:
        """Return the figures for JSON: of all pixels, and of those that the view keeps.

        What is kept is told with its coverage and the recall that may be expected of each class.
        """
        kept, every = self.kept(calibration), self.expected
        mass = every.right + every.elsewhere
        return {
            "images": self.images,
            "flagged_images": self.flagged,
            "accuracy": known(every.accuracy),
            "miou": known(every.miou),
            "coverage": float(kept.predicted.sum() / self.pixels) if self.pixels else None,
            "kept_accuracy": known(kept.accuracy),
            "classes": by_name(
                self.names,
                iou=every.iou,
                precision=every.precision,
                pixels=self.levels.sum(axis=1),
                kept_share=ratio(kept.predicted, every.predicted),
                kept_precision=kept.precision,
                kept_recall=ratio(kept.right, mass),
            ),
        }

    def risk_coverage(self, calibration: Calibration) -> list[tuple[float, float]]:
        """Return (coverage, expected risk) of thresholds on calibrated confidence, surest first."""
        held = self.levels > 0
        values, place = np.unique(np.round(calibration.maps[held], 3), return_inverse=True)
        pixels = np.bincount(place, self.levels[held], len(values))
        n, wrong = at_or_above(pixels), at_or_above(pixels * (1 - values))
        whole = max(1, self.pixels)
        pairs = zip(n[::-1].tolist(), wrong[::-1].tolist(), strict=True)
        return [(kept / whole, bad / kept) for kept, bad in pairs]


def rarity(shares: Floats) -> Floats:
    """Return how much a class's pixel counts, [C] in 1..10: (1 / (C share)) ** 0.5, by its share.

    >>> rarity(np.array([0.9, 0.09, 0.01])).round(2).tolist()
    [1.0, 1.92, 5.77]
    """
    found: Floats = np.sqrt(1 / np.maximum(len(shares) * shares, 1e-12))
    return np.clip(found, 1.0, _MOST_RARITY)


# --- over a store ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Part:
    """What a worker hands back: sums, and its images in order."""

    sums: Quality
    images: tuple[ImageQuality, ...]


def assess(
    pred: Store, calibration: Calibration, runner: Mapper, where: str | None = None
) -> Iterator[Part]:
    """Yield what may be expected of a store's rows, a chunk at a time, in the order of their ids.

    Bad rows are counted and described in the sums' `failures`.

    Raises:
        UsageError: the rows are in other classes than the calibration.
    """
    listing = list_rows(pred, where)
    if listing.rows and one_space(pred, listing.label_spaces()) != calibration.space:
        raise UsageError(
            f"{pred.url}: the rows are not in label space {calibration.space.name!r}, which the "
            "calibration is of"
        )

    def lost(chunk: Chunk[RowKey], error: InputError) -> Part:
        sums = Quality.empty(calibration)
        for key in chunk.items:
            sums.failed += 1
            sums.failures.append(failure(key, "", key.image_id, error, "assess"))
        return Part(sums, ())

    return in_order(runner, _Plan(pred, calibration), _keys(listing), lost)


def _keys(listing: Listing) -> Iterator[RowKey]:
    for start in range(0, listing.rows, _BLOCK):
        yield from listing.named(list(range(start, min(start + _BLOCK, listing.rows))))


@dataclass(frozen=True, slots=True)
class _Plan:
    pred: Store
    calibration: Calibration

    def __call__(self) -> Callable[[Chunk[RowKey]], Part]:
        return _Worker(copy(self.pred), self.calibration)


class _Worker:
    def __init__(self, pred: Store, calibration: Calibration) -> None:
        self._pred, self._calibration = pred, calibration
        space = calibration.space
        self._lut = Channels(space).lut(space)
        self._names = {i: space.by_id[i].name for i in space.train_ids}
        self._rarity = rarity(calibration.shares)
        self._keep = np.array([rule.keep for rule in calibration.rules])[:, None]

    def __call__(self, chunk: Chunk[RowKey]) -> Part:
        sums, images = Quality.empty(self._calibration), []
        columns = (*COLUMNS, "image_labels")
        found = dict(rows_of(self._pred, chunk.items, columns))
        for key in chunk.items:
            row = dict(zip(columns, found[key], strict=True))
            path = row["image.path"] or key.image_id
            try:
                images.append(self._image(key, row, path, sums))
            except InputError as error:
                sums.failed += 1
                sums.failures.append(failure(key, row["split"] or "", path, error, "assess"))
        return Part(sums, tuple(images))

    def _image(self, key: RowKey, row: dict[str, Any], path: str, sums: Quality) -> ImageQuality:
        maps = labelled(row, path)
        predicted: LabelMap = self._lut[maps.ids]
        sure: LabelMap = maps.confidence.astype(predicted.dtype, copy=False)
        levels = joint_histogram(predicted, sure, (len(sums.names), LEVELS))
        expected = Expected.of(levels, self._calibration.maps, self._calibration.wrong)
        pixels = int(predicted.size)
        there = levels.sum(axis=1) > 0
        missed = self._missed(row["image_labels"], there)
        sums.levels += levels
        sums.expected = sums.expected + expected
        sums.images += 1
        sums.pixels += pixels
        sums.unlabelled += pixels - int(levels.sum())
        sums.flagged += bool(missed)
        wrong = expected.predicted - expected.right
        kept = int(levels[np.arange(LEVELS) >= self._keep].sum())
        rarest = int(np.argmax(np.where(there, self._rarity, 0))) if there.any() else -1
        return ImageQuality(
            image_id=key.image_id,
            dataset=key.dataset,
            split=row["split"] or "",
            path=path,
            pixels=pixels,
            accuracy=known(expected.accuracy),
            miou=known(expected.miou),
            coverage=kept / pixels,
            rarest=sums.names[rarest] if rarest >= 0 else "",
            worth=float((wrong * self._rarity).sum()) / pixels,
            missed=missed,
        )

    def _missed(self, present: list[int] | None, there: Any) -> tuple[str, ...]:
        if not present:
            return ()
        ids = self._calibration.space.train_ids
        predicted = {i for i, held in zip(ids, there.tolist(), strict=True) if held}
        return tuple(self._names[i] for i in present if i in self._names and i not in predicted)
