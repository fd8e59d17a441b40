"""List the networks that there are, and what each costs.

    segmill models
    segmill models unet --size 512x1024

All of them take 50 s on one core; a part of a name narrows the list. Networks are built without
memory for their numbers and nothing is downloaded, so the figures are those of untrained ones.
"""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobs.console import DebugOption, JsonOption, command
from pipeline.errors import UnknownName, UsageError

if TYPE_CHECKING:
    from pipeline.models.catalog import Cost, Entry

APP = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

_ROW = "{:46} {:>10} {:>10} {:>9} {:>6}  {}"


@APP.command()
def models(
    part: Annotated[str, typer.Argument(help="A part of the names to list; default: all.")] = "",
    size: Annotated[
        str, typer.Option(metavar="HxW", help="The image's size that multiply-adds are for.")
    ] = "360x480",
    classes: Annotated[int, typer.Option(min=1, help="How many classes to tell apart.")] = 11,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """List the networks that there are, with parameters, multiply-adds, stride and source.

    Sizes are brought to what a network takes. Stride is the image's size over the logits'. Rows of
    transformers are of its default configurations; a `-` cannot be counted without running it.
    """
    with command("models", as_json=as_json, debug=debug) as summary:
        asked = _size(size)
        from pipeline.models.catalog import cost, entries

        every = list(entries())
        chosen = [entry for entry in every if part.lower() in entry.uri.lower()]
        if not chosen:
            raise UnknownName("model", part, [entry.name for entry in every])
        if not as_json:
            print(_ROW.format("model", "parameters", "mult-adds", "size", "stride", "source"))
        rows = []
        for entry in chosen:
            found = cost(entry, asked, classes)
            rows.append(_plain(entry, found))
            if not as_json:
                print(_line(entry, found), flush=True)
        summary.inputs = summary.done = len(rows)
        summary.figures = {"classes": classes, "models": rows}


def _size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)x(\d+)", text.lower())
    if found is None or min(int(found[1]), int(found[2])) < 32:
        raise UsageError(f"--size is HEIGHTxWIDTH of 32 and more, like 360x480, not {text!r}")
    return int(found[1]), int(found[2])


def _plain(entry: Entry, found: Cost) -> dict[str, Any]:
    """Return a row for machines; size is height and width."""
    return {"uri": entry.uri, **asdict(entry), **asdict(found)}


def _line(entry: Entry, found: Cost) -> str:
    size = "x".join(map(str, found.size))
    macs = "-" if found.multiply_adds is None else f"{found.multiply_adds / 1e9:.2f} G"
    millions = f"{found.parameters / 1e6:.2f} M"
    where = entry.source if entry.kind == "zoo" else f"{entry.source}; {entry.library}"
    return _ROW.format(entry.uri, millions, macs, size, found.stride or "-", where)
