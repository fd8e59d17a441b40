"""The gate: what held-out truth says of the challenger, alone and against the champion."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.metrics.bootstrap import intervals
from pipeline.metrics.compare import baseline
from pipeline.metrics.gates import check, parse
from pipeline.refresh.record import Condition
from pipeline.scoring import score

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pipeline.metrics.tally_measure import TallyMeasure
    from pipeline.refresh.config import Gate
    from pipeline.runner import Runner
    from pipeline.store import Store


def measure(
    truth: Store,
    where: str,
    challenger: Store,
    champion: Store | None,
    runner: Runner,
    group: str | None,
) -> dict[str, Any]:
    """Return the figures of both on the same held-out images, as `segmill evaluate` has them.

    Raises:
        SegmillError: as `score`; no held-out image has a prediction.
    """
    measures: list[TallyMeasure] = [intervals(by=group)]
    if champion is not None:
        measures.append(baseline(by=group))
    scores = score(
        truth, challenger, runner=runner, where=where, baseline=champion, tally_measures=measures
    )
    sums = {name: getattr(scores, name) for name in ("inputs", "done", "skipped", "failed")}
    return {**sums, **scores.figures()}


def judge(gate: Gate, figures: Mapping[str, Any]) -> list[Condition]:
    """Return what each condition says of the figures; those against the champion where it is."""
    compared = figures.get("baseline")
    found = [*_absolute(gate, figures)]
    if compared:
        found += _relative(gate, compared)
    said = [c for c in gate.fail_if if compared or "baseline" not in parse(c).sections]
    return [*found, *_conditions(said, figures)]


def told(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Return a model's scores for the records."""
    classes = {name: of["iou"] for name, of in figures["classes"].items()}
    interval = (figures.get("intervals") or {}).get("miou")
    return {
        "miou": figures["miou"],
        "miou_interval": interval,
        "pixel_accuracy": figures["pixel_accuracy"],
        "classes": classes,
        "images": figures["done"],
    }


def _absolute(gate: Gate, figures: Mapping[str, Any]) -> Iterator[Condition]:
    held = figures.get("intervals") or {}
    if gate.least.miou is not None:
        yield _at_least("mIoU", figures["miou"], held.get("miou"), gate.least.miou)
    for name, least in gate.least.classes.items():
        of = figures["classes"].get(name)
        if of is None:
            known = ", ".join(figures["classes"])
            why = f"no class is called {name!r}; known: {known}"
            yield Condition(name=f"IoU of {name}", kind="absolute", limit=least, passed=False,
                            why=why)  # fmt: skip
            continue
        interval = ((held.get("classes") or {}).get(name) or {}).get("iou")
        yield _at_least(f"IoU of {name}", of["iou"], interval, least)


def _at_least(name: str, figure: float | None, interval: Any, least: float) -> Condition:
    return Condition(
        name=name,
        kind="absolute",
        figure=figure,
        interval=_interval(interval),
        limit=least,
        passed=figure is not None and figure >= least,
        why=None if figure is not None else "could not be measured",
    )


def _relative(gate: Gate, compared: Mapping[str, Any]) -> Iterator[Condition]:
    """Return the conditions on differences: the challenger less the champion, paired by image."""
    if gate.worse.miou is not None:
        found = compared.get("miou") or {}
        difference, interval = found.get("difference"), _interval(found.get("interval"))
        # Without an interval (few images) the difference itself must not fall short.
        low = interval[0] if interval else difference
        yield Condition(
            name="mIoU, against the champion",
            kind="relative",
            figure=difference,
            interval=interval,
            limit=-gate.worse.miou,
            passed=low is not None and low >= -gate.worse.miou,
            why="could not be measured" if low is None else _sure(low, -gate.worse.miou),
        )
    if gate.worse.classes is None:
        return
    for name, of in (compared.get("classes") or {}).items():
        difference, interval = of["difference"], _interval(of["interval"])
        if difference is None:
            continue  # in no held-out image, and predicted by neither
        surely = interval is None or interval[1] < 0
        yield Condition(
            name=f"IoU of {name}, against the champion",
            kind="relative",
            figure=difference,
            interval=interval,
            limit=-gate.worse.classes,
            passed=not (surely and difference < -gate.worse.classes),
        )


def _sure(low: float, limit: float) -> str | None:
    if low >= limit:
        return None
    return f"the interval's lower end is {low:+.4f}: it cannot be ruled out that it is worse"


def _conditions(texts: Sequence[str], figures: Mapping[str, Any]) -> Iterator[Condition]:
    for found in check([parse(text) for text in texts], figures):
        yield Condition(
            name=found["gate"],
            kind="fail-if",
            figure=found["value"],
            limit=found["limit"],
            passed=not found["fails"],
            why=found.get("why"),
        )


def _interval(value: Any) -> tuple[float, float] | None:
    """Return an interval of figures; None where one of its ends is not known."""
    if not isinstance(value, list | tuple) or len(value) != 2:
        return None
    low, high = value
    return None if low is None or high is None else (float(low), float(high))


def reasons(conditions: Sequence[Condition]) -> list[str]:
    """Return why conditions say no, one line each."""
    return [_reason(c) for c in conditions if not c.passed]


def _reason(c: Condition) -> str:
    if c.kind == "drift" and c.why:
        return c.why if c.why.startswith(c.name.partition(":")[0]) else f"{c.name}: {c.why}"
    figure = "unknown" if c.figure is None else f"{c.figure:.4f}"
    limit = "" if c.limit is None else f", limit {c.limit:.4f}"
    return f"{c.name}: {figure}{limit}" + (f" ({c.why})" if c.why else "")
