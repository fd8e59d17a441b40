"""The page of a training run: curves, the best epoch's classes, the recipe, what went wrong."""

from __future__ import annotations

from math import isfinite
from typing import TYPE_CHECKING, Any, Final

import yaml
from markupsafe import Markup

from pipeline.report import count, percent, render
from pipeline.report.charts import Look, curves

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pipeline.label_space import LabelSpace

PAGE: Final = "training.html"


def training_page(record: Mapping[str, Any], space: LabelSpace, *, title: str) -> bytes:
    """Return the page as one HTML file that needs nothing else.

    `record` is what model.json says of the training.
    """
    rows: Sequence[dict[str, Any]] = record["epochs"]
    best = next((row for row in rows if row["epoch"] == record["best_epoch"]), None)
    return render(
        "training_page.html",
        title=title,
        record=record,
        epochs=len(rows),
        best=best,
        waited=_wait(rows),
        minutes=f"{record['seconds'] / 60:.1f}",
        charts=_charts(rows, record["best_epoch"]),
        classes=_classes(best, record["class_weights"], space),
        recipe=yaml.safe_dump(_written(record["recipe"]), sort_keys=False, width=78),
        failures=list(record["unreadable_first"].items()),
        facts=_facts(record),
    )


def _charts(rows: Sequence[dict[str, Any]], best: int | None) -> list[dict[str, Any]]:
    marked = {} if best is None else {float(best): "the best"}
    plain = Look("{:.3g}".format, "")
    return [
        _chart("loss", rows, "loss", plain),
        _chart("mIoU on validation, %", rows, "miou", Look(marked=marked)),
        _chart("learning rate", rows, "lr", Look("{:.2g}".format, "")),
        _chart("seconds waited for batches", rows, "wait", plain),
    ]


def _chart(name: str, rows: Sequence[dict[str, Any]], key: str, look: Look) -> dict[str, Any]:
    held = [(row["epoch"], row[key]) for row in rows if row.get(key) is not None]
    points = [(x, y) for x, y in held if isfinite(y)]
    if not points:
        return {"name": name, "svg": Markup('<p class="muted small">nothing yet</p>')}
    x, y = zip(*points, strict=True)
    first, last = (f"{look.text(v)}{look.unit}" for v in (y[0], y[-1]))
    says = f"{name} by epoch: {first} first, {last} last"
    svg = curves(x, {name: y}, x_name="epoch", y_name="", says=says, look=look)
    return {"name": name, "svg": svg}


def _wait(rows: Sequence[dict[str, Any]]) -> str:
    """Return the share of the steps' time spent waiting, in per cent."""
    timed = [row for row in rows if row.get("train_seconds")]
    total = sum(row["train_seconds"] for row in timed)
    return percent(sum(row["wait"] for row in timed) / total if total else None)


def _classes(
    best: dict[str, Any] | None, weights: Mapping[str, float] | None, space: LabelSpace
) -> list[dict[str, Any]]:
    if best is None:
        return []
    out = []
    for number in space.train_ids:
        c = space.by_id[number]
        iou = best["iou"].get(c.name)
        out.append(
            {
                "name": c.name,
                "colour": "#{:02x}{:02x}{:02x}".format(*c.colour),
                "iou": iou,
                "length": round(100 * (iou or 0.0), 1),
                "weight": "" if weights is None else f"{weights[c.name]:.2f}",
            }
        )
    return out


def _written(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return the recipe without what is empty, so that what was chosen stands out."""
    kept = {k: _written(v) if isinstance(v, dict) else v for k, v in recipe.items()}
    return {k: v for k, v in kept.items() if v is not None and v not in ([], {})}


def _facts(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = record["rows"]
    return [
        ("store", f"{record['store']}, version {record['store_version']}"),
        ("learnt from", f"{record['split']}, {count(rows['train'])} images"),
        ("best picked on", f"{record['val_split']}, {count(rows['val'])} images"),
        ("without a mask", count(rows["without_mask"])),
        ("device", f"{record['device']}, {count(record['workers'])} workers"),
        ("code", f"segmill {record['code']}, torch {record['torch']}"),
    ]
