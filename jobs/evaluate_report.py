"""What `evaluate` says of its scores: how they were made, the table, and what lacks."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Final

from jobs.console import note

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from rich.console import Console

    from pipeline.scoring import Scores
    from pipeline.store import Store

_TOLD = 5


def made_by(
    scores: Scores,
    stores: Mapping[str, Store],
    arguments: Mapping[str, str | list[str] | None],
) -> dict[str, str]:
    """Return how the report was made, for its readers."""
    from pipeline.release import release

    words = ["segmill", "evaluate"]
    for name, value in arguments.items():
        for each in value if isinstance(value, list) else [value]:
            words += [] if each is None else [f"--{name}", each]
    facts = {"command": shlex.join(words)}
    for name, store in stores.items():
        facts[name] = f"{store.url}, version {store.version}"
    facts["made by"] = _models(stores["predictions"])
    if "baseline" in stores:
        facts["baseline made by"] = _models(stores["baseline"])
    return {
        **facts,
        "label space": f"{scores.space.name}, {len(scores.class_names)} classes scored",
        "paired": f"{scores.by_path:,} images by path, {scores.by_id:,} by id; "
        f"{scores.unpredicted:,} without a prediction, {scores.unused:,} predictions left over",
        "segmill": release(),
    }


def _models(store: Store) -> str:
    """Return the models that made a store's labels."""
    found: set[tuple[str, str]] = set()
    columns = ["provenance.model", "provenance.model_digest"]
    for batch in store.scan(columns, batch_rows=65536):
        found.update(zip(*(c.to_pylist() for c in batch.columns), strict=True))
    named = sorted(f"{model or '?'} ({(digest or '?')[:12]})" for model, digest in found)
    more = f" and {len(named) - 3} more" if len(named) > 3 else ""
    return ", ".join(named[:3]) + more or "unknown"


def why_nothing(scores: Scores) -> str:
    """Return why no image was scored."""
    return (
        f"no image was scored: {scores.unpredicted:,} have no prediction, "
        f"{scores.unlabelled:,} no mask in the truth, {scores.failed:,} failed"
    )


def tell_what_lacks(scores: Scores, baseline: bool) -> None:
    """Say what failed, and what could not be compared."""
    for failure in (*scores.failures[:_TOLD], *scores.incomparable_failures[:_TOLD]):
        note(f"{failure.image_id}: {failure.message}")
    lacking = scores.done - scores.compared
    if baseline and lacking:
        note(
            f"{lacking:,} of {scores.done:,} scored images are left out of the comparison: the "
            f"baseline has no mask of {lacking - scores.incomparable:,}, a broken one of "
            f"{scores.incomparable:,}"
        )


def print_table(scores: Scores) -> None:
    """Print the classes' figures, the headline, the baseline's verdict and the gates for people."""
    from rich.console import Console
    from rich.text import Text

    from pipeline.report import percent

    console, tally = Console(), scores.tally
    if scores.agreement:
        _print_churn(scores, console)
        return
    share = (tally.truth / max(1, tally.pixels)).tolist()
    figures = zip(
        tally.iou.tolist(), tally.recall.tolist(), tally.precision.tolist(), share, strict=True
    )
    headings = ("IoU %", "accuracy %", "precision %", "of pixels %")
    _print_classes(console, headings, zip(scores.class_names, figures, strict=True))
    said = (
        f"pixel accuracy {percent(tally.pixel_accuracy)} %   "
        f"mean accuracy {percent(tally.mean_accuracy)} %   fwIoU {percent(tally.fwiou)} %"
    )
    console.print(Text(said, style="bold"), soft_wrap=True)
    _print_verdict(scores, console)


_STYLES: Final = {"good": "bold green", "bad": "bold red", "": "bold"}


def _print_verdict(scores: Scores, console: Console) -> None:
    """Print what the page begins with, mIoU and what a baseline and gates say of it, by lines."""
    from rich.text import Text

    from pipeline.report.score_sections import Words, gates, verdict

    figures = scores.figures()
    for part in verdict(figures, Words.of(figures)):
        console.print(Text(part["text"], style=_STYLES[part["kind"]]), soft_wrap=True)
    for gate in gates(figures):
        said = "failed" if gate["fails"] else "passed"
        why = gate["why"] or f"{gate['value']} against {gate['limit']}"
        console.print(Text(f"  {said}: {gate['gate']} ({why})"), soft_wrap=True)
    if note := (figures.get("intervals") or {}).get("note"):
        console.print(Text(str(note)), soft_wrap=True)


def _print_churn(scores: Scores, console: Console) -> None:
    """Print what changed between two label sets."""
    from rich.text import Text

    measured = scores.measured
    pixels = sum(c["kept"] + c["lost"] for c in measured["churn"].values())
    rows = [
        (name, (c["churn"], *(c[k] / max(1, pixels) for k in ("kept", "gained", "lost"))))
        for name, c in measured["churn"].items()
        if c["churn"] is not None
    ]
    _print_classes(console, ("churn %", "kept %", "gained %", "lost %"), rows)
    said = f"{measured['images_changed']:,} images changed, {measured['images_same']:,} the same"
    console.print(Text(said, style="bold"), soft_wrap=True)
    _print_verdict(scores, console)


def _print_classes(
    console: Console,
    headings: Sequence[str],
    rows: Iterable[tuple[str, Sequence[float]]],
) -> None:
    from rich.box import SIMPLE
    from rich.table import Table
    from rich.text import Text

    from pipeline.report import percent

    table = Table(box=SIMPLE, pad_edge=False)
    for heading in ("class", *headings):
        table.add_column(heading, justify="left" if heading == "class" else "right")
    for name, row in rows:
        table.add_row(Text(name), *(percent(value) for value in row))
    console.print(table)
