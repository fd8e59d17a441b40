"""The work of scoring on one chunk of pairs: read the stores' mask cells, count, hand back sums.

What is wrong with a pair becomes a failure, before anything of it is counted. Names come in; sums
and one row an image go out.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from pipeline.errors import InputError
from pipeline.metrics.block import Counted, image_keys, image_rows
from pipeline.metrics.confused import Confused
from pipeline.metrics.confusion import ConfusionMatrix, Counts
from pipeline.metrics.measure import LabelPair
from pipeline.metrics.sides import Compared, Labels
from pipeline.runs.failures import Failure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    import pyarrow as pa

    from pipeline.label_space import LabelSpace
    from pipeline.metrics.block import FlatPairs
    from pipeline.metrics.measure import Gathering, Measure
    from pipeline.metrics.pairing import Pair
    from pipeline.metrics.sides import Cell, Side
    from pipeline.metrics.tally_measure import TallyGathering, TallyMeasure

_MOST_ENTRIES: Final = 1 << 18  # counted pairs held: noise has as many as pixels
_MOST_CELLS: Final = 1 << 20  # images times classes of a block: 24 MiB of tallies


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


@dataclass(slots=True)
class ChunkScore:
    """What a worker hands back for a chunk; also the sum of several."""

    matrix: ConfusionMatrix
    gatherings: list[Gathering] = field(default_factory=list)
    """Of the plan's measures, in their order."""
    tallied: list[TallyGathering] = field(default_factory=list)
    images: list[pa.RecordBatch] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    """Which of the chunk's pairs the images' rows are of."""
    failures: list[Failure] = field(default_factory=list)
    unlabelled: int = 0
    incomparable: list[Failure] = field(default_factory=list)
    """Images whose baseline is broken: left out of the comparison with it, scored all the same."""
    compared: int = 0
    confused: Confused = field(default_factory=Confused)
    ids: dict[tuple[str, str], Counts] = field(default_factory=dict)
    """Ids and their pixels [2, k], for each side (truth, pred) and label space: what remaps lose
    follows."""


@dataclass(frozen=True, slots=True)
class ScorePlan:
    """A picklable factory: makes the worker that scores chunks."""

    truth: Side
    pred: Side
    space: LabelSpace
    baseline: Side | None = None
    measures: tuple[Measure, ...] = ()
    tally_measures: tuple[TallyMeasure, ...] = ()

    @property
    def sides(self) -> tuple[Side, ...]:
        """All label sets that are read."""
        return tuple(s for s in (self.truth, self.pred, self.baseline) if s is not None)

    def __call__(self) -> Callable[[PairChunk], ChunkScore]:
        """Make the worker; those of one process share what they read of the stores."""
        return _ScoreWorker(self)

    def start(self) -> ChunkScore:
        """Return the sum of nothing."""
        return ChunkScore(
            ConfusionMatrix.empty(len(self.space.train_ids)),
            [m.start(self.space) for m in self.measures],
            [m.start(self.space) for m in self.tally_measures],
        )


@dataclass(frozen=True, slots=True)
class _ScoreWorker:
    plan: ScorePlan

    def __call__(self, chunk: PairChunk) -> ChunkScore:
        plan, pairs = self.plan, chunk.pairs
        truths = plan.truth.cells(p.truth for p in pairs)
        predicted = plan.pred.cells(p.predicted for p in pairs)
        earlier = plan.baseline and plan.baseline.cells(p.baseline for p in pairs if p.baseline)
        failures: dict[int, Failure] = {}
        while True:
            part = _Part(plan, pairs, plan.start(), failures)
            for number, pair in enumerate(pairs):
                if number not in failures:
                    baseline = earlier[pair.baseline] if earlier and pair.baseline else None
                    part.add(number, truths[pair.truth], predicted[pair.predicted], baseline)
            if part.whole:
                return part.result()


@dataclass(slots=True)
class _Part:
    """The sums over a chunk, in the making."""

    plan: ScorePlan
    pairs: Sequence[Pair]
    sums: ChunkScore
    failures: dict[int, Failure]
    whole: bool = True
    """False once a measure refused a pair, which it or another may have counted in part: the chunk
    is then counted again without the pairs that failed."""
    block: _Block = field(default_factory=lambda: _Block())
    ids: dict[tuple[str, str], Counts] = field(default_factory=dict)

    def add(self, number: int, truth: Cell, predicted: Cell, baseline: Cell | None) -> None:
        """Score one pair; what is wrong with it becomes a failure."""
        if truth.empty:
            self.sums.unlabelled += 1
            return
        try:
            mine = Labels.of(self.plan.truth, truth)
            theirs = Labels.of(self.plan.pred, predicted)
            compared = Compared.of(mine, theirs)
            figures = self._measure(number, mine, theirs)
        except InputError as error:
            self.failures[number] = failure_of(self.pairs[number], truth.path, error)
            return
        self._count_ids(truth, predicted, compared)
        self.block.add(number, compared, truth.row, figures)
        if baseline is not None:
            self._compare_with(baseline, number, mine, theirs)
        cells = len(self.block.numbers) * len(self.plan.space.train_ids)
        if self.block.entries >= _MOST_ENTRIES or cells >= _MOST_CELLS:
            self._flush()

    def _measure(self, number: int, truth: Labels, predicted: Labels) -> dict[str, Any]:
        """Feed the pair to the measures; return its figures for the image's row.

        Raises:
            InputError: a measure cannot count it.
        """
        if not self.plan.measures:
            return {}
        pair = LabelPair(
            self.pairs[number].truth.image_id,
            truth.map,
            predicted.map,
            truth.side.index[truth.cell.space],
            predicted.side.index[predicted.cell.space],
            self.plan.space,
            truth.cell.row,
            predicted.cell.row,
        )
        figures: dict[str, Any] = {}
        try:
            for gathering in self.sums.gatherings:
                figures |= gathering.update(pair)
        except InputError:
            self.whole = False
            raise
        return figures

    def _compare_with(self, baseline: Cell, number: int, truth: Labels, predicted: Labels) -> None:
        """Count what changed since the baseline, if that has a sound mask."""
        assert self.plan.baseline is not None
        if baseline.empty:
            return
        try:
            earlier = Labels.of(self.plan.baseline, baseline)
            both = Compared.of(truth, earlier), Compared.of(earlier, predicted)
        except InputError as error:
            pair = self.pairs[number]
            self.sums.incomparable.append(failure_of(pair, baseline.path, error))
            return
        self.block.compare(*both)

    def _count_ids(self, truth: Cell, predicted: Cell, compared: Compared) -> None:
        """Count pixels by id where a remap may lose some."""
        target = self.plan.space.name
        sides = (("truth", truth.space, compared.first), ("pred", predicted.space, compared.second))
        for side, space, ids in sides:
            if space != target:
                held = self.ids.setdefault((side, space), np.zeros(1 << 16, np.int64))
                np.add.at(held, ids, compared.counts)

    def _flush(self) -> None:
        """Score the block that is held, and begin the next."""
        if self.block.numbers:
            self.block.score(self.plan, self.pairs, self.sums)
        self.block = _Block()

    def result(self) -> ChunkScore:
        """Return the sums."""
        self._flush()
        self.sums.failures = [self.failures[n] for n in sorted(self.failures)]
        for key, held in self.ids.items():
            ids = np.flatnonzero(held)
            self.sums.ids[key] = np.stack([ids, held[ids]])
        return self.sums


@dataclass(slots=True)
class _Block:
    """Counted images whose scores are to be computed together."""

    numbers: list[int] = field(default_factory=list)
    scored: Counted = field(default_factory=Counted)
    rows: list[Mapping[str, Any]] = field(default_factory=list)
    figures: list[dict[str, Any]] = field(default_factory=list)
    compared: list[int] = field(default_factory=list)
    """Places in this block of the images that the baseline has labels for."""
    baseline: Counted = field(default_factory=Counted)
    changed: Counted = field(default_factory=Counted)

    @property
    def entries(self) -> int:
        """How many counted pairs the block holds."""
        return self.scored.entries + self.baseline.entries + self.changed.entries

    def add(
        self, number: int, pairs: Compared, row: Mapping[str, Any], figures: dict[str, Any]
    ) -> None:
        """Add an image."""
        self.numbers.append(number)
        self.scored.add(pairs.row, pairs.column, pairs.counts)
        self.rows.append(row)
        self.figures.append(figures)

    def compare(self, baseline: Compared, changed: Compared) -> None:
        """Add the baseline of the image that was added last."""
        self.compared.append(len(self.numbers) - 1)
        self.baseline.add(baseline.row, baseline.column, baseline.counts)
        self.changed.add(changed.row, changed.column, changed.counts)

    def score(self, plan: ScorePlan, pairs: Sequence[Pair], sums: ChunkScore) -> None:
        """Add the block's scores to the sums."""
        classes = len(plan.space.train_ids)
        mine, flat = [pairs[n] for n in self.numbers], self.scored.flat()
        tallies = flat.tallies(classes)
        further = [c for m in plan.measures for c in m.image_columns]
        sums.matrix.add(flat.row, flat.column, flat.counts)
        sums.confused.update(mine, flat.image, flat.row, flat.column, flat.counts)
        sums.images.append(
            image_rows(mine, tallies, flat.totals(), plan.space, further, self.figures)
        )
        sums.numbers += self.numbers
        sums.compared += len(self.compared)
        if plan.tally_measures:
            self._tally(plan, mine, flat, tallies, sums)

    def _tally(
        self,
        plan: ScorePlan,
        pairs: Sequence[Pair],
        flat: FlatPairs,
        tallies: Counts,
        sums: ChunkScore,
    ) -> None:
        """Feed the tally measures."""
        classes, keys = len(plan.space.train_ids), image_keys(pairs)
        for measure, gathering in zip(plan.tally_measures, sums.tallied, strict=True):
            columns = {c: [row[c] for row in self.rows] for c in measure.columns}
            if not measure.paired:
                gathering.update(tallies, keys, columns)
            elif plan.baseline is None:  # truth itself is what is compared with
                gathering.update(tallies, keys, columns, changes=flat.changes(classes))
            elif self.compared:
                gathering.update(
                    tallies[self.compared],
                    keys[self.compared],
                    {name: [held[k] for k in self.compared] for name, held in columns.items()},
                    baseline=self.baseline.flat().tallies(classes),
                    changes=self.changed.flat().changes(classes),
                )


def failure_of(pair: Pair, path: str, error: InputError) -> Failure:
    """Return what the error says about the pair."""
    text = " ".join(str(error).split())
    kind = type(error).__name__
    image_id, dataset = pair.truth[:2]
    return Failure(path, image_id, dataset, pair.split, "score", kind, text)
