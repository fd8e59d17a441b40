"""An audit's answer: labels that people gave for the sample, against those that it was drawn from.

listed = audit.read_csv(text, "audit.csv")
print(audited(Store.open("by_people"), Store.open("night"), listed).estimate.figures())
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline import masks
from pipeline.errors import InputError, SizeMismatch
from pipeline.metrics.pairing import pair_rows
from pipeline.pseudo.audit import Estimate, estimate
from pipeline.pseudo.held_out import one_space
from pipeline.pseudo.rows import failure
from pipeline.tables.rows import list_rows, rows_of
from pipeline.training.data import Channels

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pipeline.label_space import LabelMap
    from pipeline.metrics.confusion import Counts
    from pipeline.metrics.pairing import Pair
    from pipeline.runs.failures import Failure
    from pipeline.store import Store

_COLUMNS = ("image.path", "label_space", "mask.bytes")


@dataclass(frozen=True, slots=True)
class Audited:
    """The estimate, and what of the sample it could not use: inputs = images + skipped + failed."""

    estimate: Estimate
    inputs: int
    """Images that were drawn."""
    skipped: int
    """Drawn, and not labelled by people yet."""
    failures: tuple[Failure, ...]


def audited(truth: Store, pred: Store, listed: Mapping[str, tuple[str, int]]) -> Audited:
    """Compare the labelled images of an audit's list (`audit.read_csv`), and estimate.

    The sample is small: it is read here, an image at a time. Rows of truth that were not drawn are
    left out, as no random draw chose them.

    Raises:
        UsageError: a stratum has no labelled image, or predictions use several label spaces.
        SegmillError: no image of the truth has a prediction.
    """
    pairing = pair_rows(list_rows(truth), list_rows(pred))
    channels = Channels(one_space(pred, pairing.predicted.label_spaces()))
    tallies, strata, failures = [], [], []
    for pair in pairing:
        [(_, (path, space, cell))] = rows_of(pred, [pair.predicted], _COLUMNS)
        if path not in listed:
            continue
        try:
            tallies.append(_tally(truth, pair, (path, space, cell), channels, pred))
            strata.append(listed[path][0])
        except InputError as error:
            failures.append(failure(pair.truth, pair.split, path, error, "audit"))
    names = [channels.space.by_id[i].name for i in channels.space.train_ids]
    counts = np.stack(tallies) if tallies else np.zeros((0, 3, len(names)), np.int64)
    found = estimate(counts, strata, dict(listed.values()), names)
    skipped = len(listed) - len(tallies) - len(failures)
    return Audited(found, len(listed), skipped, tuple(failures))


def _tally(
    truth: Store, pair: Pair, row: tuple[str, str, bytes | None], channels: Channels, pred: Store
) -> Counts:
    """Return intersection, truth and predicted pixels [3, C] of one image, void truth left out."""
    [(_, (_, true_space, true_cell))] = rows_of(truth, [pair.truth], _COLUMNS)
    path, space, cell = row
    if cell is None or true_cell is None:
        raise InputError(path, "a mask is missing", "label the image, by people and by the model")
    true: LabelMap = channels.lut(truth.space(true_space))[masks.decode(true_cell, path)]
    said: LabelMap = channels.lut(pred.space(space))[masks.decode(cell, path)]
    if true.shape != said.shape:
        cause = f"the prediction is {said.shape}, the truth {true.shape}"
        raise SizeMismatch(path, cause, "label the image at its own size")
    known = true != channels.void
    kinds = (true[known & (true == said)], true[known], said[known & (said != channels.void)])
    return np.stack([np.bincount(k, minlength=channels.count) for k in kinds]).astype(np.int64)
