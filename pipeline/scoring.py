"""Score predictions against truth: two stores in, one confusion matrix and each image's scores out.

    scores = score(Store.open("truth"), Store.open("pred"), runner=LocalRunner())
    print(scores.tally.miou)

Rows of the same image are paired (`pipeline.metrics.pairing`) and cut into chunks of names. A
worker reads a chunk's mask cells from the stores and hands back small sums and a row an image.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from pipeline.errors import RemapError, UsageError
from pipeline.label_space import LabelSpace, find_remap
from pipeline.label_space import label_space as built_in
from pipeline.metrics.agreement import Agreement
from pipeline.metrics.confused import Confused
from pipeline.metrics.confusion import UNDEFINED, ConfusionMatrix, Index, Tally, class_index
from pipeline.metrics.dice_kappa import dice, further_figures
from pipeline.metrics.fitting import fitting
from pipeline.metrics.gather import Gather, ImageScore
from pipeline.metrics.pair_scores import PairChunk, ScorePlan, pair_chunks
from pipeline.metrics.pairing import pair_rows
from pipeline.metrics.shares import by_name, known
from pipeline.metrics.sides import Side
from pipeline.record import ClassPixels
from pipeline.tables.rows import list_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    import pyarrow as pa
    import pyarrow.compute as pc

    from pipeline.label_space import Loss
    from pipeline.metrics.measure import Measure
    from pipeline.metrics.pairing import Pairing
    from pipeline.metrics.tally_measure import TallyMeasure
    from pipeline.runner import Runner
    from pipeline.runs.failures import Failure
    from pipeline.store import Store
    from pipeline.tables.rows import Listing

_MOST_PAIRS: Final = 1024
_MOST_BYTES: Final = 32 << 20
# Opening a store's files for a chunk takes some ten milliseconds, as scoring twenty small pairs.
_FEWEST_PAIRS: Final = 128
_FEWEST_BYTES: Final = 1 << 20


_SCORES: Final = ("miou", "pixel_accuracy", "mean_accuracy", "fwiou", "coverage")
_COLUMNS: Final = ("iou", "recall", "precision", "truth", "predicted", "intersection")
_SHARED: Final = ("iou", "truth", "predicted", "intersection")
"""Figures of a class that treat both sides alike."""


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
    compared: int = 0
    """Images that were compared with the baseline."""
    incomparable: int = 0
    """Images whose baseline has a mask, but a broken one."""
    incomparable_failures: tuple[Failure, ...] = ()
    """The first thousand of those; they are scored against truth all the same."""
    measured: Mapping[str, Any] = field(default_factory=dict)
    """The figures of the measures that were asked for, by name."""
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Why optional measures could not be taken, by name."""
    confused: Confused = field(default_factory=Confused)
    """Of each pair of classes the images in which the one was most often taken for the other."""
    agreement: bool = False
    """Whether truth is but another label set, so that agreement is all that there is to say."""

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
        return self.space.class_names

    def figures(self) -> dict[str, Any]:
        """Return the scores for a JSON summary; None stands for a share of nothing.

        Of labels against labels, those that call one of the two right are left out.
        """
        names = ("miou",) if self.agreement else _SCORES
        tally = self.tally
        columns = {c: getattr(tally, c) for c in (_SHARED if self.agreement else _COLUMNS)}
        further = {}
        if not self.agreement:
            columns["dice"], further = dice(tally), further_figures(tally)
        return {
            "compares": "labels with labels" if self.agreement else "labels with truth",
            **{name: known(getattr(tally, name)) for name in names},
            **further,
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
            "classes": by_name(self.class_names, **columns),
            **self.measured,
            **({"left_out": dict(self.left_out)} if self.left_out else {}),
        }


def score(
    truth: Store,
    pred: Store,
    *,
    runner: Runner,
    label_space: str | None = None,
    where: pc.Expression | str | None = None,
    pred_where: pc.Expression | str | None = None,
    baseline: Store | None = None,
    baseline_where: pc.Expression | str | None = None,
    agreement: bool = False,
    measures: Sequence[Measure] = (),
    optional: Collection[str] = (),
    tally_measures: Sequence[TallyMeasure] = (),
    extremes: int = 12,
    on_space: Callable[[LabelSpace, Sequence[Measure]], None] | None = None,
    on_images: Callable[[pa.RecordBatch], None] | None = None,
) -> Scores:
    """Score the predictions of one store against the truth of another.

    `label_space` names the classes that are scored; without it the two stores' own, or the coarser
    one where they differ. `where` filters truth, `pred_where` predictions, `baseline_where` the
    baseline (as `Store.scan`).

    `measures` are dearer kinds of score, counted on each pair of label maps; `tally_measures`
    follow from the images' tallies. Among those, paired ones compare the prediction with that of
    `baseline`, over the images that it has labels for. With `agreement`, truth is no truth but an
    earlier label set; its agreement with the prediction and what changed are counted instead.
    Measures named in `optional` are left out where they do not apply; `Scores.left_out` says why.

    `on_space` gets the label space that is scored and the measures that are taken before the work
    begins; `on_images` the images'
    rows (`image_schema` with the measures' columns) in the order of truth, a batch at a time. Bad
    pairs are data: counted, and described in `failures`; a pair is counted by all measures or by
    none.

    Raises:
        UsageError: an image has two predictions, or rows use several label spaces and none was
            named.
        RemapError: no remap leads to the label space.
        SegmillError: no row of truth has a prediction, or one of the baseline.
    """
    pairing = pair_rows(list_rows(truth, where), list_rows(pred, pred_where))
    spaces = (_used_spaces(truth, pairing.truth), _used_spaces(pred, pairing.predicted))
    space = _target(label_space, *spaces)
    if not space.train_ids:
        raise UsageError(f"label space {space.name!r} has no class to score; all of it is void")
    measures, left_out = fitting(measures, optional, space, truth, pred)
    if on_space is not None:
        on_space(space, measures)
    tally_measures = (*tally_measures, *((Agreement(),) if agreement else ()))
    asked = (*(m.truth_columns for m in measures), *(m.columns for m in tally_measures))
    plan = ScorePlan(
        Side("truth", truth, _positions(spaces[0], space), _columns(asked)),
        Side(
            "prediction",
            pred,
            _positions(spaces[1], space),
            _columns(m.predicted_columns for m in measures),
        ),
        space,
        measures=measures,
        tally_measures=tuple(tally_measures),
    )
    if baseline is not None:
        earlier = pair_rows(pairing.truth, list_rows(baseline, baseline_where), "baseline")
        index = _positions(_used_spaces(baseline, earlier.predicted), space)
        plan = replace(plan, baseline=Side("baseline", baseline, index))
        pairing = replace(pairing, baseline=earlier)
    gather = Gather(plan, extremes, on_images)
    size = chunk_size(pairing.pairs, *(s.store for s in plan.sides))
    for outcome in runner.map(plan, pair_chunks(pairing, size), split=PairChunk.halves):
        gather.take(outcome)
    found = _scores(gather, pairing, space, spaces, agreement)
    return replace(found, left_out=left_out)


def _columns(asked: Iterable[Sequence[str]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for names in asked for name in names))


def _scores(
    gather: Gather,
    pairing: Pairing,
    space: LabelSpace,
    spaces: tuple[dict[str, LabelSpace], dict[str, LabelSpace]],
    agreement: bool,
) -> Scores:
    sums, measured = gather.sums, gather.figures()
    if agreement:
        measured |= measured.pop(Agreement.name)
    return Scores(
        space=space,
        matrix=sums.matrix,
        inputs=pairing.truth.rows,
        done=gather.done,
        unpredicted=pairing.unpredicted,
        unlabelled=sums.unlabelled,
        failed=gather.failed,
        unused=pairing.unused,
        by_path=pairing.by_path,
        by_id=pairing.by_id,
        failures=tuple(sums.failures),
        worst=gather.worst,
        best=gather.best,
        histogram=gather.histogram,
        truth_loss=_loss(gather, "truth", spaces[0], space),
        predicted_loss=_loss(gather, "pred", spaces[1], space),
        compared=sums.compared,
        incomparable=gather.incomparable,
        incomparable_failures=tuple(sums.incomparable),
        measured=measured,
        confused=sums.confused,
        agreement=agreement,
    )


def _loss(
    gather: Gather, side: str, spaces: dict[str, LabelSpace], target: LabelSpace
) -> Loss | None:
    """Return what the remaps of one side lost of its classes; void was never theirs to lose."""
    total: Loss | None = None
    for (which, name), counts in sorted(gather.sums.ids.items(), key=lambda item: item[0]):
        if which == side:
            held = [ClassPixels(i, int(counts[i])) for i in spaces[name].train_ids]
            loss = find_remap(spaces[name], target).loss(c for c in held if c.pixels)
            total = loss if total is None else total + loss
    return total


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
