"""Refresh a bucket's labels: find, train, calibrate, gate, label, check, publish in one commit.

    segmill refresh refresh.yaml                 tonight, or on with it where it was stopped
    segmill refresh refresh.yaml --status        the last 30 nights
    segmill refresh refresh.yaml --rollback      last night's labels again
    segmill refresh --example                    a commented configuration

Exit codes: 0 published, nothing new, or another refresh is at work; 1 a step failed, the same
command goes on; 2 the configuration is wrong; 4 the night was rejected, the labels stay as they
were. Nothing new: seconds, and the listing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobs.console import DebugOption, JsonOption, Summary, command, note
from jobs.progress import Progress

if TYPE_CHECKING:
    from pipeline.refresh.config import Config
    from pipeline.refresh.night import Hooks
    from pipeline.refresh.record import Night

APP = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
_SHOWN = 30


@APP.command()
def refresh(
    config: Annotated[
        str | None, typer.Argument(help="The refresh's YAML file; --example prints one.")
    ] = None,
    example: Annotated[
        bool, typer.Option("--example", help="Print a commented configuration.")
    ] = False,
    status: Annotated[
        bool, typer.Option("--status", help="Show the last nights; nothing is done.")
    ] = False,
    rollback: Annotated[
        bool,
        typer.Option("--rollback", help="Bring back the night before the one in force."),
    ] = False,
    to: Annotated[
        str | None, typer.Option(metavar="NIGHT", help="With --rollback: the night to go back to.")
    ] = None,
    night: Annotated[
        str | None,
        typer.Option(metavar="DATE", help="The night's name, as 2026-11-24; default: today, UTC."),
    ] = None,
    again: Annotated[
        bool,
        typer.Option("--again", help="Do a rejected night anew, after a mend."),
    ] = False,
    limit: Annotated[
        int, typer.Option(min=1, max=10_000, help="With --status: how many nights.")
    ] = _SHOWN,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Refresh a bucket's labels, by evidence; or show and undo what was done."""
    with command("refresh", as_json=as_json, debug=debug) as summary:
        from pipeline.errors import UsageError

        if example:
            from pipeline.refresh.config import EXAMPLE

            summary.figures["example"] = EXAMPLE
            if not as_json:
                print(EXAMPLE, end="")
            return
        if config is None:
            raise UsageError("name the refresh's YAML file; --example prints one")
        if to is not None and not rollback:
            raise UsageError("--to is of --rollback")
        from pipeline.refresh.config import read_config

        asked = read_config(config)
        if status:
            _status(summary, asked, limit, as_json=as_json)
        elif rollback:
            _roll_back(summary, asked, to)
        else:
            _run(summary, asked, night, again=again)


def _run(summary: Summary, config: Config, name: str | None, *, again: bool) -> None:
    from pipeline.refresh.cycle import refresh as run
    from pipeline.refresh.lease import LeaseHeld
    from pipeline.refresh.record import now

    asked = name or f"{now():%Y-%m-%d}"
    with Progress("refresh") as progress:
        try:
            night = run(config, asked, _hooks(progress), again=again)
        except LeaseHeld as held:
            summary.figures |= {"night": asked, "status": "skipped", "reason": str(held)}
            summary.lines.append(f"nothing was done: {held}")
            return
    _book(summary, night)
    if night.status == "rejected":
        summary.gate = "; ".join(night.reasons)


def _hooks(progress: Progress) -> Hooks:
    from jobs.gpus import default_gpus
    from pipeline.refresh.night import Hooks

    return Hooks(
        say=note,
        gpus=default_gpus,
        watch=lambda step, report: progress.watch(report),
        listed=lambda step, listed, todo: progress.listed(listed, todo),
    )


def _book(summary: Summary, night: Night) -> None:
    for key, value in night.sums.items():
        setattr(summary, key, value)
    figures: dict[str, Any] = night.model_dump(mode="json", exclude={"drift", "paths", "sums"})
    figures.pop("id")
    summary.figures |= {"night": night.id, **figures}
    summary.paths |= night.paths
    published, images = night.published, night.images
    summary.lines.append(f"night {night.id}: {night.status}")
    summary.lines.append(
        f"{images.listed:,} images: {images.new:,} new, {images.changed:,} changed, "
        f"{images.gone:,} gone"
    )
    if night.caught_up:
        summary.lines.append(f"caught up: {', '.join(night.caught_up[:5])}")
    if published is not None:
        summary.version = published.version
        summary.paths["labels"] = published.store
        summary.lines.append(
            f"published: {published.rows:,} rows, version {published.version}, tag {published.tag}"
        )


def _roll_back(summary: Summary, config: Config, to: str | None) -> None:
    from pipeline.refresh.rollback import rollback

    done = rollback(config, to)
    summary.version = done.version
    summary.figures |= {"status": "rolled-back", "to": done.to}
    summary.paths["labels"] = config.labels
    summary.lines.append(f"the labels of night {done.to} are in force, as version {done.version}")


_COLUMNS = (
    "night",
    "status",
    "images",
    "new",
    "changed",
    "gone",
    "mIoU",
    "model",
    "version",
    "why",
)


def _status(summary: Summary, config: Config, limit: int, *, as_json: bool) -> None:
    from pipeline.refresh.record import Nights
    from pipeline.refresh.state import in_force, open_published

    nights = Nights(config.work)
    found = in_force(open_published(config.labels), nights)
    rows = [_row(night) for night in nights.newest(limit)]
    summary.figures["in_force"] = None if found is None else found.night
    summary.figures["nights"] = [dict(zip(_COLUMNS, row, strict=True)) for row in rows]
    if as_json:
        return
    texts = [["" if v is None else str(v) for v in row] for row in (_COLUMNS, *rows)]
    widths = [max(len(row[c]) for row in texts) for c in range(len(_COLUMNS) - 1)]
    for row in texts:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        print("  ".join([*cells, row[-1]]).rstrip())
    print(f"in force: {'none' if found is None else found.night}")


def _row(night: Night) -> tuple[Any, ...]:
    images, model = night.images, night.challenger
    miou = None if model is None else model.scores.get("miou")
    back = "rolled back" if night.rolled_back else night.status
    return (
        night.id, back, images.listed, images.new, images.changed, images.gone,
        None if miou is None else round(miou, 4), None if model is None else model.digest[:12],
        None if night.published is None else night.published.version, "; ".join(night.reasons),
    )  # fmt: skip
