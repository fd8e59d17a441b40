"""The page of a night: the verdict and why, the gate, what changed, how long it took, of what.

sink.write("nights/2026-11-24/index.html", night_page(night, colours=colours_of(space)))
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from pipeline.report import count, percent, points, render

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from pipeline.label_space import LabelSpace
    from pipeline.refresh.record import Condition, Model, Night, Step
    from pipeline.report.changed import Changed

PAGE: Final = "index.html"
VERDICTS: Final = {
    "published": ("Published", "good"),
    "rejected": ("Rejected", "bad"),
    "nothing-new": ("Nothing new", "plain"),
    "failed": ("Failed", "bad"),
    "running": ("Running", "plain"),
}
"""What a status is called, and whether that is good."""
_FOLLOWS: Final = {
    "rejected": "Last night’s labels stay in force.",
    "failed": "Last night’s labels stay in force; the next run goes on from the last whole step.",
    "nothing-new": "No image, no truth and no model changed: the labels stay as they are.",
    "running": "The night isn’t over; this page is written anew after each step.",
}


def colours_of(space: LabelSpace) -> dict[str, str]:
    """Return each class's colour as style sheets take it, by its name."""
    return {c.name: "#{:02x}{:02x}{:02x}".format(*c.colour) for c in space.classes}


def night_page(
    night: Night,
    *,
    colours: Mapping[str, str] | None = None,
    pictures: Sequence[Changed] = (),
    title: str | None = None,
    history: str | None = "../../index.html",
) -> bytes:
    """Return the page as one HTML file that needs nothing else.

    `colours` are the classes' (`colours_of`), `pictures` what changed (`changed_pictures`),
    `history` where the page of all nights lies from here.
    """
    drift = night.drift or {}
    changes, tonight = drift.get("changes") or {}, drift.get("after") or {}
    return render(
        "night_page.html",
        title=title or f"Night {night.id}",
        night=night,
        verdict=_verdict(night),
        tiles=_tiles(night, tonight, changes),
        gate=[_condition(c) for c in night.gate],
        checks=[_condition(c) for c in night.checks],
        images=_images(night),
        composition=_composition(drift, colours or {}),
        changes=_changes(changes, colours or {}),
        ages=_ages(tonight.get("ages") or {}),
        pictures=pictures,
        steps=_steps(night.steps),
        models=[_model(n, m) for n, m in _models(night) if m is not None],
        scores=_scores(night, colours or {}),
        history=history,
        facts=_facts(night),
    )


def _verdict(night: Night) -> dict[str, Any]:
    name, kind = VERDICTS[night.status]
    said = _FOLLOWS.get(night.status, "")
    if night.published is not None:
        p = night.published
        said = (
            f"{count(p.rows)} pseudo-labelled images are version {p.version} of {p.store}, {p.tag}."
        )
    back = night.rolled_back
    taken = None
    if back is not None:
        force = f"those of night {back.to} are" if back.to else "no night’s labels are"
        taken = (
            f"Rolled back on {_when(back.at)}: {force} in force since, as version {back.version}."
        )
        name, kind = f"{name}, rolled back", "bad"
    return {"name": name, "kind": kind, "said": said, "reasons": night.reasons, "taken": taken}


def _tiles(
    night: Night, tonight: Mapping[str, Any], changes: Mapping[str, Any]
) -> list[dict[str, str]]:
    found = []

    def tile(value: str, unit: str, name: str, small: str = "") -> None:
        found.append({"value": value, "unit": unit, "name": name, "small": small})

    scores = night.challenger.scores if night.challenger else {}
    if scores.get("miou") is not None:
        tile(percent(scores["miou"]), "%", "mIoU on held-out truth",
             _interval(scores.get("miou_interval")))  # fmt: skip
    tile(count(night.images.new), "", "new images", f"{count(night.images.changed)} changed")
    if changes.get("churn") is not None:
        tile(percent(changes["churn"]), "%", "churn: pixels with another label",
             f"{count(changes.get('held', 0))} held by hysteresis")  # fmt: skip
    if tonight.get("ignored_share") is not None:
        tile(percent(tonight["ignored_share"]), "%", "of the pixels have no label")
    if night.expected.get("miou") is not None:
        tile(percent(night.expected["miou"]), "%", "mIoU expected of all labels, without truth",
             f"coverage {percent(night.expected.get('coverage'))} %")  # fmt: skip
    if night.ended is not None:
        tile(span((night.ended - night.began).total_seconds()), "", "from start to end",
             f"{len(night.attempts)} attempts" if len(night.attempts) > 1 else "")  # fmt: skip
    return found


def _condition(c: Condition) -> dict[str, Any]:
    """Return a row of the gate's or the checks' table; differences are in points."""
    relative = c.kind == "relative"
    whole = c.kind == "fail-if" or c.name == "classes that vanished"

    def said(value: float | None) -> str:
        if value is None:
            return "unknown"
        if relative:
            return points(value)
        return (f"{value:.4g}" if whole else percent(value)).replace("-", "−")

    return {
        "name": c.name,
        "code": c.kind == "fail-if",
        "passed": c.passed,
        "figure": said(c.figure),
        "interval": _interval(c.interval, relative=relative),
        "limit": "–" if c.limit is None else said(c.limit),
        "unit": "" if whole else "points" if relative else "%",
        "why": c.why or "",
    }


def _interval(value: Sequence[float] | None, *, relative: bool = False) -> str:
    if value is None or len(value) != 2 or None in value:
        return ""
    low, high = (points(v) if relative else percent(v) for v in value)
    return f"{low} to {high}"


def _images(night: Night) -> list[tuple[str, str]]:
    i = night.images
    told = [
        ("listed", i.listed), ("new", i.new), ("changed", i.changed), ("as before", i.same),
        ("labelled by people, left alone", i.of_truth),
        ("listed again under the same name", i.repeated), ("gone from the bucket", i.gone),
    ]  # fmt: skip
    sums = [(name, night.sums[name]) for name in night.sums]
    return [(name, count(n)) for name, n in told if n or name in ("listed", "new")] + [
        (f"labelling: {name}", count(n)) for name, n in sums
    ]


def _composition(drift: Mapping[str, Any], colours: Mapping[str, str]) -> dict[str, Any] | None:
    """Return the classes' shares tonight and last night, and the figures of both."""
    tonight, last = drift.get("after") or {}, drift.get("before") or {}
    if not tonight.get("classes"):
        return None
    before = last.get("classes") or {}
    rows = []
    for name, now in tonight["classes"].items():
        then = before.get(name) or {}
        rows.append(
            {
                "name": name,
                "colour": colours.get(name, "transparent"),
                "share": now["share"],
                "was": then.get("share"),
                "moved": _less(now["share"], then.get("share")),
                "confidence": now["confidence"],
                "sure": _less(now["confidence"], then.get("confidence")),
            }
        )
    named = (
        ("ignored_share", "pixels without a label, %"),
        ("mean_confidence", "mean confidence, %"),
        ("entropy", "entropy of the class shares, % of its most"),
    )
    figures = []
    for key, name in named:
        now, was = tonight.get(key), last.get(key)
        figures.append({"name": name, "now": now, "was": was, "moved": _less(now, was)})
    most = max((r["share"] or 0.0 for r in rows), default=0.0) or 1.0
    return {"rows": rows, "figures": figures, "most": most, "compared": bool(before)}


def _less(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one - other


def _changes(changes: Mapping[str, Any], colours: Mapping[str, str]) -> dict[str, Any] | None:
    """Return churn by class and the most frequent moves."""
    if not changes.get("images"):
        return None
    rows = []
    for name, c in changes["classes"].items():
        whole = c["kept"] + c["gained"] + c["lost"]
        if whole:
            parts = {key: c[key] / whole for key in ("kept", "gained", "lost")}
            colour = colours.get(name, "transparent")
            rows.append({"name": name, "colour": colour, "churn": c["churn"], **parts})
    total = sum(c["kept"] + c["lost"] for c in changes["classes"].values()) or 1
    moved = [m | {"share": m["pixels"] / total} for m in changes.get("moves", [])[:10]]
    most = max((m["share"] for m in moved), default=0.0) or 1.0
    keys = ("images", "images_changed", "flips", "gained", "lost", "held")
    sums = {k: count(changes.get(k, 0)) for k in keys}
    return {"rows": rows, "moves": moved, "most": most, "sums": sums} | {
        "churn": changes["churn"], "distance": changes.get("distance"),
    }  # fmt: skip


def _ages(ages: Mapping[str, int]) -> list[dict[str, Any]]:
    """Return images by the nights since their labels last changed."""
    total = sum(ages.values())
    names = {"0": "tonight", "1": "last night"}
    return [
        {"name": names.get(age, f"{age} nights ago"), "images": count(n), "share": n / total}
        for age, n in ages.items()
    ]


def _steps(steps: Sequence[Step]) -> list[dict[str, Any]]:
    longest = max((s.seconds or 0.0 for s in steps), default=0.0) or 1.0
    return [
        {
            "name": s.name,
            "began": _when(s.began),
            "took": "not ended" if s.seconds is None else span(s.seconds),
            "share": (s.seconds or 0.0) / longest,
            "figures": ", ".join(f"{k} {_plain(v)}" for k, v in s.figures.items()),
        }
        for s in steps
    ]


def _plain(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "unknown"}[value]
    if isinstance(value, int):
        return count(value)
    if isinstance(value, float):
        return f"{value:.4g}"
    text = str(value)
    return text if len(text) <= 80 else f"{text[:79]}…"


def _models(night: Night) -> list[tuple[str, Model | None]]:
    if night.kept:
        return [("champion, kept", night.champion or night.challenger)]
    return [("challenger: this night’s", night.challenger), ("champion before", night.champion)]


def _model(role: str, model: Model) -> dict[str, Any]:
    facts = [
        ("model", model.uri),
        ("came to be", model.night),
        ("digest", model.digest[:16]),
        ("label digest", model.label_digest[:16]),
    ]
    if model.parent:
        facts.append(("fine-tuned from", model.parent[:16]))
    if model.recipe:
        facts.append(("recipe", model.recipe))
    facts += [(f"learned from: {k}", _plain(v)) for k, v in model.trained_on.items()]
    if model.scores.get("miou") is not None:
        held = f", {_interval(model.scores.get('miou_interval'))}".rstrip(", ")
        facts.append(
            ("held-out mIoU, %", f"{percent(model.scores['miou'])}{held}"
             f" on {count(model.scores.get('images') or 0)} images")
        )  # fmt: skip
    return {"role": role, "facts": facts}


def _scores(night: Night, colours: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return the IoU of each class of the night's model beside the champion's."""
    mine = (night.challenger.scores.get("classes") if night.challenger else None) or {}
    champion = night.champion if night.champion and not night.kept else None
    theirs = (champion.scores.get("classes") if champion else None) or {}
    return [
        {
            "name": name,
            "colour": colours.get(name, "transparent"),
            "iou": iou,
            "was": theirs.get(name),
            "moved": _less(iou, theirs.get(name)),
        }
        for name, iou in mine.items()
    ]


def _facts(night: Night) -> list[tuple[str, str]]:
    found = [("began", _when(night.began))]
    if night.ended is not None:
        found.append(("ended", _when(night.ended)))
    if night.config:
        found.append(("configuration", night.config[:16]))
    if night.caught_up:
        found.append(("does the work of missed nights", ", ".join(night.caught_up)))
    for attempt in night.attempts:
        said = attempt.outcome or ("killed, or still running" if not attempt.ended else "ended")
        found.append(("attempt", f"{_when(attempt.began)} on {attempt.host}: {said}"))
    if night.published is not None:
        p = night.published
        before = "nothing" if p.base_version is None else f"version {p.base_version}"
        rows = (f"{count(n)} {of}" for n, of in (
            (p.rows, "rows"), (p.added, "added"), (p.removed, "removed"), (p.truth_rows, "of truth")
        ))  # fmt: skip
        found.append(("published", f"version {p.version} on {before}: {', '.join(rows)}"))
    if night.webhook:
        found.append(("told", night.webhook))
    return [*found, *((f"file: {name}", path) for name, path in night.paths.items())]


def _when(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M:%S} UTC"


def span(seconds: float) -> str:
    """Return a time span for people.

    >>> span(0.42), span(71), span(7260)
    ('0.4 s', '1 min 11 s', '2 h 1 min')
    """
    if seconds < 60:
        return f"{seconds:.3g} s" if seconds >= 10 else f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
