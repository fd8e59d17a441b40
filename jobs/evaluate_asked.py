"""What an evaluation is of, and what it measures: the stores, kinds of score, and gates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pipeline.label_space import LabelSpace
    from pipeline.metrics.gates import Gate
    from pipeline.metrics.measure import Measure
    from pipeline.metrics.tally_measure import TallyMeasure
    from pipeline.scoring import Scores
    from pipeline.store import Store


@dataclass(frozen=True, slots=True)
class Stores:
    """The snapshots that are compared."""

    truth: Store
    """In agreement mode the earlier label set."""
    pred: Store
    baseline: Store | None
    agreement: bool

    @classmethod
    def open(
        cls,
        truth: tuple[str | None, str | None],
        pred: tuple[str | None, str | None],
        baseline: tuple[str | None, str | None],
        view: str | None = None,
    ) -> Stores:
        """Open the stores of (URL, version), the predictions as a view shows them.

        Raises:
            UsageError: there is neither truth nor a baseline, or a version of what is not named.
        """
        from pipeline.errors import UsageError
        from pipeline.pseudo.view import View
        from pipeline.pseudo.viewed_store import open_viewed
        from pipeline.store import Store

        def opened(url: str | None, version: str | None) -> Store | None:
            return None if url is None else Store.open(url, version)

        for name, (url, version) in (("truth", truth), ("baseline", baseline)):
            if url is None and version is not None:
                raise UsageError(f"--{name}-version is of --{name}, which is not given")
        right, earlier = opened(*truth), opened(*baseline)
        assert pred[0] is not None
        scored = open_viewed(pred[0], pred[1], View.parse(view) if view else None)
        if right is not None:
            return cls(right, scored, earlier, False)
        if earlier is None:
            raise UsageError(
                "name --truth to score against, or --baseline to say how far labels agree"
            )
        return cls(earlier, scored, None, True)

    def named(self) -> dict[str, Store]:
        """Return the stores by what the report calls them."""
        first = "baseline" if self.agreement else "truth"
        stores = {first: self.truth, "predictions": self.pred}
        return stores if self.baseline is None else {**stores, "baseline": self.baseline}


@dataclass(frozen=True, slots=True)
class Asked:
    """What is to be measured beside the confusion of classes."""

    measures: tuple[Measure, ...]
    tallies: tuple[TallyMeasure, ...]
    gates: tuple[Gate, ...]
    optional: frozenset[str] = frozenset()
    """Measures that nobody named, only `all`: left out where they do not apply."""

    @classmethod
    def of(
        cls,
        names: Sequence[str],
        slices: Sequence[str],
        conditions: Sequence[str],
        stores: Stores,
        by: str | None = None,
    ) -> Asked:
        """Make the measures; those that a gate asks for are measured unasked.

        Raises:
            UsageError: a name, a slice or a condition is none.
        """
        from pipeline.errors import UsageError
        from pipeline.metrics import MEASURES, measures

        gates: tuple[Gate, ...] = ()
        if conditions:
            from pipeline.metrics.gates import parse

            gates = tuple(parse(text) for text in conditions)
        if stores.agreement and slices:
            raise UsageError("--slice is of scores against --truth, which is not given")
        wanted = {section for gate in gates for section in gate.sections}
        _check_mode(gates, stores.agreement)
        for section, there in (("baseline", stores.baseline), ("slices", slices)):
            if section in wanted and not there:
                option = section.removesuffix("s")
                raise UsageError(f"--fail-if asks for {section}, but --{option} is not given")
        named = {*names, *(wanted & MEASURES.keys())}
        return cls(
            measures(named),
            () if stores.agreement else _tallies(slices, stores, by),
            gates,
            frozenset(MEASURES.keys() - named if "all" in named else ()),
        )

    def check_classes(self, space: LabelSpace) -> None:
        """Refuse gates on classes that are not scored, before the work.

        Raises:
            UsageError: a gate names one.
        """
        if self.gates:
            from pipeline.metrics.gates import parse

            names = list(space.class_names)
            for gate in self.gates:
                parse(gate.text, names)

    def check(self, scores: Scores) -> list[dict[str, Any]]:
        """Return what each gate says of the scores."""
        from pipeline.metrics.gates import check

        sums = {k: getattr(scores, k) for k in ("inputs", "done", "skipped", "failed")}
        return check(self.gates, {**sums, **scores.figures()})


def _check_mode(gates: Sequence[Gate], agreement: bool) -> None:
    """Refuse gates on figures that the report will not hold, with or without truth.

    Raises:
        UsageError: a gate asks for one.
    """
    from pipeline.errors import UsageError
    from pipeline.metrics.gates import OF_AGREEMENT, OF_TRUTH

    asked = {path[0] for gate in gates for path in gate.paths}
    if agreement and (strange := sorted(asked & OF_TRUTH)):
        raise UsageError(f"--fail-if asks for {strange[0]}, which is of scores against --truth")
    if not agreement and (strange := sorted(asked & OF_AGREEMENT)):
        raise UsageError(
            f"--fail-if asks for {strange[0]}, which is of labels against labels, without --truth"
        )


def gates_said(gates: Sequence[Mapping[str, Any]]) -> str | None:
    """Return the gates that say no, on one line; None if all are passed."""
    said = [
        f"{g['gate']} ({g.get('why') or '{} against {}'.format(g['value'], g['limit'])})"
        for g in gates
        if g["fails"]
    ]
    return "; ".join(said) or None


def _tallies(slices: Sequence[str], stores: Stores, by: str | None) -> tuple[TallyMeasure, ...]:
    from pipeline.metrics.bootstrap import intervals

    found: list[TallyMeasure] = [intervals(by=by)]
    if stores.baseline is not None:
        from pipeline.metrics.compare import baseline

        found.append(baseline(by=by))
    if slices:
        from pipeline.metrics.slices import slices as sliced

        found.append(sliced(slices, stores.truth, by))
    return tuple(found)
