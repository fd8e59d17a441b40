"""Whether a night's labels differ too much from other ones: limits on drift, reasons in words.

    conditions = compare(last, tonight, changes, Limits())
    reasons = [c.why for c in conditions if not c.passed]

Images that both nights label tell what the model did; all images tell that the bucket did it too,
so their limit is wider. Each night may stay within its limits and many nights together leave them:
the limits on a night itself, and `compare` with a night of weeks ago (without changes), tell that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from functools import partial
from typing import TYPE_CHECKING, Final

import numpy as np

from pipeline.errors import UsageError
from pipeline.metrics.shares import known
from pipeline.refresh.drift import total_variation
from pipeline.refresh.record import Condition

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from pipeline.metrics.confusion import Floats
    from pipeline.refresh.drift import Changes, Composition

_TOLD: Final = 3


SHRUNK: Final = 10
"""A class has vanished where fewer than one in so many of its pixels are left."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The most that may change from one night to the next; None leaves a check out.

    Raises:
        UsageError: a limit is out of its range.
    """

    class_shares: float | None = 0.10
    """Distance of the class shares (total variation, 0..1), on images that both nights label."""
    bucket: float | None = 0.25
    """The same on all images: new ones may show other things."""
    vanished: float | None = 0.002
    """A class of at least this share of the pixels may not shrink to a tenth; same images."""
    confidence: float | None = 0.10
    """Fall of the mean confidence."""
    ignored: float | None = 0.15
    """Rise of the share of pixels without a label."""
    most_ignored: float | None = 0.90
    """That share itself: however slowly it rose."""
    entropy: float | None = 0.15
    """Fall of the normalised entropy of the class shares (0: one class, 1: all alike)."""
    least_entropy: float | None = 0.05
    """That entropy itself: however slowly it fell."""
    churn: float | None = 0.30
    """Share of the pixels whose label changed, on images that both nights label."""
    least_images: int = 20
    """Fewer images than this are not judged."""

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if each.name != "least_images" and value is not None and not 0 <= value <= 1:
                raise UsageError(f"drift: {each.name} is a share from 0 to 1, not {value}")


def compare(
    last: Composition | None,
    tonight: Composition,
    changes: Changes | None = None,
    limits: Limits | None = None,
) -> list[Condition]:
    """Return one condition a limit, passed or not, each with its figure and the reason in words.

    Without `last`, or where it holds no label, there is nothing to compare: what is left are the
    limits on tonight itself. The same goes for `changes`. Conditions on too few images pass, and
    say so.

    Raises:
        UsageError: the two are of different classes.
    """
    limits = limits or Limits()
    found = list(_of_itself(tonight, limits))
    if last is not None and last.pixels.any():
        if last.names != tonight.names:
            raise UsageError("drift: the nights are in different classes and cannot be compared")
        few = min(last.images, tonight.images) < limits.least_images
        found += _unjudged(_of_all(last, tonight, limits), few)
    if changes is not None and changes.images:
        found += _unjudged(_of_changes(changes, limits), changes.images < limits.least_images)
    return found


def _unjudged(conditions: Iterable[Condition], few: bool) -> list[Condition]:
    told = "too few images to judge"
    return [c.model_copy(update={"passed": True, "why": told}) if few else c for c in conditions]


def _of_itself(tonight: Composition, limits: Limits) -> Iterator[Condition]:
    few = tonight.images < limits.least_images
    ignored, evenness = (tonight.headline()[n] for n in ("ignored_share", "entropy"))
    if limits.most_ignored is not None and not few:
        yield _condition(
            "ignored share, at all", _or_nan(ignored), limits.most_ignored,
            lambda: f"{_percent(ignored)} of the pixels have no label; "
            f"{_percent(limits.most_ignored)} is the most",
        )  # fmt: skip
    if limits.least_entropy is not None and not few and len(tonight.names) > 1:
        yield _condition(
            "entropy, at all", _or_nan(evenness), limits.least_entropy,
            lambda: f"hardly more than one class is left: entropy {evenness or 0:.3f} of 1, at "
            f"least {limits.least_entropy:g}",
            least=True,
        )  # fmt: skip


def _of_all(last: Composition, tonight: Composition, limits: Limits) -> Iterator[Condition]:
    before, after = last.headline(), tonight.headline()
    if limits.bucket is not None:
        yield _condition(
            "class shares, all images", total_variation(last.shares, tonight.shares),
            limits.bucket,
            lambda: "the class shares of all images moved too far: "
            + _moved(last.names, last.shares, tonight.shares),
        )  # fmt: skip
    rises = (
        ("mean confidence", "confidence", "mean_confidence", -1, "the mean confidence fell"),
        ("ignored share", "ignored", "ignored_share", 1, "pixels without a label rose"),
        ("entropy", "entropy", "entropy", -1, "fewer classes make up the labels: entropy fell"),
    )
    for name, limit, key, sign, said in rises:
        one, other, most = before[key], after[key], getattr(limits, limit)
        if most is None or (key == "entropy" and len(last.names) < 2):
            continue
        yield _condition(
            name, sign * (_or_nan(other) - _or_nan(one)), most,
            partial(_change, said, one, other, most),
        )  # fmt: skip


def _change(said: str, before: float | None, after: float | None, limit: float) -> str:
    return f"{said} from {_percent(before)} to {_percent(after)}; {_percent(limit)} is allowed"


def _of_changes(changes: Changes, limits: Limits) -> Iterator[Condition]:
    before, after = changes.before, changes.after
    if limits.class_shares is not None:
        yield _condition(
            "class shares, same images", total_variation(before, after), limits.class_shares,
            lambda: "on the same images the class shares moved too far: "
            + _moved(changes.names, before, after),
        )  # fmt: skip
    if limits.vanished is not None:
        yield _vanished(changes, limits.vanished)
    if limits.churn is not None:
        yield _condition(
            "churn", changes.churn, limits.churn,
            lambda: f"{_percent(changes.churn)} of the pixels have another label than last night; "
            f"{_percent(limits.churn)} is allowed{_top_moves(changes)}",
        )  # fmt: skip


def _vanished(changes: Changes, floor: float) -> Condition:
    # Of all pixels: where all labels are gone the shares among labels say nothing.
    total = max(1, int(changes.moved.sum()))
    before, after = (changes.moved.sum(axis=a)[:-1] / total for a in (1, 0))
    gone = np.flatnonzero((before >= floor) & (before > 0) & (after * SHRUNK < before))
    named = ", ".join(
        f"{changes.names[c]} ({_percent(before[c])} to {_percent(after[c])})" for c in gone
    )
    return Condition(
        name="classes that vanished",
        kind="drift",
        figure=float(len(gone)),
        limit=0.0,
        passed=not len(gone),
        why=f"on the same images hardly a pixel is left of {named}" if named else None,
    )


def _condition(
    name: str, figure: float, limit: float, why: Callable[[], str], *, least: bool = False
) -> Condition:
    """Return a condition that fails beyond its limit; a figure that is not known fails it."""
    unknown = math.isnan(figure)
    passed = figure >= limit if least else figure <= limit
    said = f"{name}: unknown, as there is no labelled pixel" if unknown else why()
    return Condition(
        name=name,
        kind="drift",
        figure=known(figure),
        limit=limit,
        passed=passed,
        why=None if passed else said,
    )


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value


def _percent(share: float | None) -> str:
    return "nothing" if share is None else f"{100 * share:.3g} %"


def _moved(names: Sequence[str], before: Floats, after: Floats) -> str:
    """Name the classes that moved most."""
    order = np.argsort(-np.abs(after - before), kind="stable")[:_TOLD]
    return ", ".join(f"{names[c]} {_percent(before[c])} to {_percent(after[c])}" for c in order)


def _top_moves(changes: Changes) -> str:
    total = max(1, int(changes.moved.sum()))
    told = [
        f"{m['from']} to {m['to']} {_percent(m['pixels'] / total)}" for m in changes.moves()[:_TOLD]
    ]
    return f": {', '.join(told)}" if told else ""
