"""Truth beside predictions, made by hand, and what every measure of objects must hold to."""

from __future__ import annotations

import pickle
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
from hypothesis import strategies as st

from pipeline import masks
from pipeline.metrics.confusion import class_index
from pipeline.metrics.measure import LabelPair
from pipeline.record import Instance

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from pipeline.label_space import LabelSpace
    from pipeline.metrics.measure import Measure


def instance(
    shape: NDArray[Any], category: int, number: int = 1, score: float | None = None, **more: Any
) -> Instance:
    """Return an object of a binary map [H, W]; its score as a store keeps it, in 32 bits."""
    score = None if score is None else float(np.float32(score))
    rle = masks.rle_encode(shape.astype(np.uint8))
    area = more.pop("area", float(np.count_nonzero(shape)))
    return Instance(number, category, None, area, rle=rle, score=score, **more)


def row(instances: Iterable[Instance] | None, **columns: Any) -> dict[str, Any]:
    """Return a row's columns in Arrow's Python form."""
    held = None if instances is None else [asdict(i) for i in instances]
    return {"instances": held, **columns}


def pair_of(
    truth: NDArray[Any],
    predicted: NDArray[Any],
    space: LabelSpace,
    truth_objects: Iterable[Instance] | None,
    predicted_objects: Iterable[Instance] | None,
    image_id: str = "image",
) -> LabelPair:
    """Return a pair whose two sides are in the space that is scored."""
    index = class_index(space.train_ids, void=(*space.ids, space.ignore_index))
    mine = row(truth_objects, label_space=space.name)
    theirs = row(predicted_objects, label_space=space.name)
    return LabelPair(image_id, truth, predicted, index, index, space, mine, theirs)


def figures_of(measure: Measure, pairs: Iterable[LabelPair], space: LabelSpace) -> dict[str, Any]:
    """Return the figures of pairs that one worker counts, in their order."""
    gathering = measure.start(space)
    for pair in pairs:
        gathering.update(pair)
    return gathering.figures()


def in_parts(
    measure: Measure, pairs: Sequence[LabelPair], parts: Sequence[int], order: Sequence[int]
) -> dict[str, Any]:
    """Return the figures of pairs that are dealt to workers, whose sums are merged in an order."""
    space = pairs[0].space
    workers = [measure.start(space) for _ in order]
    for pair, part in zip(pairs, parts, strict=True):
        workers[part].update(pair)
    sums = measure.start(space)
    for place in order:
        sums.merge(pickle.loads(pickle.dumps(workers[place])))
    return sums.figures()


def dealings(pairs: int) -> st.SearchStrategy[tuple[list[int], list[int]]]:
    """Draw which of three workers counts each pair, and the order in which they are merged."""
    parts = st.lists(st.integers(0, 2), min_size=pairs, max_size=pairs)
    return st.tuples(parts, st.permutations(range(3)))


def blob(shape: tuple[int, int], rng: np.random.Generator, size: int) -> NDArray[np.bool_]:
    """Return an ellipse of about this many pixels' diameter, somewhere."""
    y, x = np.ogrid[: shape[0], : shape[1]]
    top, left = rng.integers(0, shape[0]), rng.integers(0, shape[1])
    high, wide = size * rng.uniform(0.6, 1.4, 2) / 2
    found: NDArray[np.bool_] = ((y - top) / high) ** 2 + ((x - left) / wide) ** 2 < 1
    return found


def moved(shape: NDArray[np.bool_], rng: np.random.Generator, by: int) -> NDArray[np.bool_]:
    """Return a shape, shifted by up to so many pixels."""
    down, right = rng.integers(-by, by + 1, 2)
    return np.roll(shape, (int(down), int(right)), (0, 1))
