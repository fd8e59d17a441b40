"""Look after a label store.

segmill store info stores/voc
segmill store restore stores/voc 3
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobs.console import (
    AddressOption,
    DebugOption,
    JsonOption,
    MaxErrorsOption,
    RunnerOption,
    StoreArgument,
    Summary,
    VersionOption,
    WhereOption,
    WorkersOption,
    command,
)
from jobs.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.validation import Images

APP = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    help="Look after a label store.",
)
SECONDS_A_MERGED_ROW = 0.004
_NAME_WIDTH = 10
_LOG_WIDTH = 160
"""Columns where nothing says how many there are: in 80 a table loses headings."""


def _show(as_json: bool, title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a table for people; with --json the summary says it all."""
    if as_json:
        return
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    cells = [[f"{v:,}" if isinstance(v, int) else str(v) for v in row] for row in rows]
    table = Table(title=title, title_justify="left", box=SIMPLE, pad_edge=False)
    for at, column in enumerate(columns):
        width = max((len(row[at]) for row in cells), default=1)
        number = bool(rows) and (isinstance(rows[0][at], int) or cells[0][at].endswith("%"))
        # On a narrow terminal names and headings may break, numbers may not.
        table.add_column(
            column.replace("_", " "),
            justify="right" if number else "left",
            min_width=width if number else min(width, _NAME_WIDTH),
            overflow="fold",
        )
    for row in cells:
        table.add_row(*map(escape, row))
    known = sys.stdout.isatty() or "COLUMNS" in os.environ
    Console(width=None if known else _LOG_WIDTH).print(table)


@APP.command()
def info(
    store: StoreArgument,
    version: VersionOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Say what the store is: version, rows, fragments, label spaces, tags."""
    with command("store info", as_json=as_json, debug=debug) as summary:
        from pipeline.store import Store

        held = Store.open(store, version)
        fragments = held.fragments()
        summary.version, summary.paths["store"] = held.version, held.url
        summary.figures |= {
            "rows": sum(f.rows for f in fragments),
            "fragments": len(fragments),
            "bytes": sum(f.size for f in fragments),
            "label_spaces": sorted(held.label_spaces),
            "tags": held.tags(),
            "errors": held.failures().num_rows,
        }
        rows = [(k, v) for k, v in summary.figures.items()]
        _show(as_json, f"version {held.version}", ("what", "value"), rows)


@APP.command()
def stats(
    store: StoreArgument,
    version: VersionOption = None,
    where: WhereOption = None,
    by: Annotated[
        str, typer.Option(help="Count classes apart by dataset, split, both, or none.")
    ] = "none",
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Count rows by dataset and split, and pixels, images and objects by class."""
    with command("store stats", as_json=as_json, debug=debug) as summary:
        from pipeline.errors import UsageError
        from pipeline.store import Store
        from pipeline.tables.statistics import BY, statistics

        if by not in BY:
            raise UsageError(f"--by takes {', '.join(BY)}, not {by!r}")
        held = Store.open(store, version)
        found = statistics(held, where).to_dict(by)
        summary.version, summary.figures = held.version, found
        for title, key in (("rows", "groups"), ("classes", "classes")):
            if found[key]:
                _show(as_json, *_condensed(title, found[key]))
        if not as_json and found["rows"]:
            shares = {n: f"{found[f'{n}_share']:.1%}" for n in ("depth", "embedded")}
            print(f"with depth: {shares['depth']}   with its image in it: {shares['embedded']}")


def _condensed(
    title: str, table: Sequence[dict[str, Any]]
) -> tuple[str, list[str], list[list[Any]]]:
    """Return a table fit for a narrow terminal: names that all rows share are in its title."""
    first = table[0]
    same = [c for c in first if all(row[c] == first[c] for row in table) and len(table) > 1]
    said = [f"{c.replace('_', ' ')} {first[c]}" for c in same if isinstance(first[c], str)]
    gone = {c for c in same if isinstance(first[c], str) or first[c] == 0}
    columns = [c for c in first if c not in gone]
    rows = [[_cell(c, row[c]) for c in columns] for row in table]
    return ", ".join([title, *said]), columns, rows


def _cell(column: str, value: Any) -> Any:
    """Return a value for people: shares in per cent, with the digits that rare classes need."""
    if column == "share":
        return "void" if value is None else f"{value:.2%}" if value >= 0.001 else f"{value:.4%}"
    return value


@APP.command()
def validate(
    store: StoreArgument,
    version: VersionOption = None,
    images: Annotated[
        bool,
        typer.Option("--images", help="Read the image files too: headers, and equal bytes."),
    ] = False,
    decode: Annotated[
        bool,
        typer.Option("--decode", help="Decode every image as well, and find look-alikes."),
    ] = False,
    tolerance: Annotated[
        float,
        typer.Option(
            min=0, max=1, help="Share of an object's pixels that its mask may call otherwise."
        ),
    ] = 0.25,
    out: Annotated[
        str | None, typer.Option(help="Where the report goes: a directory or a URL.")
    ] = None,
    max_errors: MaxErrorsOption = "0",
    runner: RunnerOption = "auto",
    address: AddressOption = None,
    workers: WorkersOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Check every row, rows against one another, and classes; exit with 3 when rows have errors."""
    with command("store validate", as_json=as_json, debug=debug, max_errors=max_errors) as summary:
        from jobs import validation as job
        from pipeline.files import open_sink
        from pipeline.runner import choose
        from pipeline.store import Store

        held = Store.open(store, version)
        depth: Images = "decode" if decode else "header" if images else "none"
        chosen = choose(
            runner,
            seconds=held.count() * job.SECONDS_AN_IMAGE[depth],
            address=address,
            workers=workers,
        )
        sink = open_sink(out) if out else None
        found = job.validate_store(held, chosen, images=depth, tolerance=tolerance, sink=sink)
        summary.inputs, summary.failed = found.inputs, found.failed
        summary.done, summary.version = found.inputs - found.failed, held.version
        summary.figures |= found.figures()
        summary.figures["findings"] = [f.to_dict() for f in found.findings]
        if sink is not None:
            arguments = {"images": images, "decode": decode, "tolerance": tolerance, "out": out}
            summary.paths |= job.write_report(sink, found, held, arguments)
        if not as_json:
            job.print_findings(found)


@APP.command()
def errors(
    store: StoreArgument,
    run: Annotated[str | None, typer.Option(help="Only those of one run.")] = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """List the inputs that failed, with the cause and the mend."""
    with command("store errors", as_json=as_json, debug=debug) as summary:
        from pipeline.store import Store

        rows = Store.open(store).failures().to_pylist()
        rows = [row for row in rows if run is None or row["run"] == run]
        summary.figures["errors"] = rows[:1000]
        columns = ("run", "stage", "error", "message")
        _show(as_json, f"{len(rows)} failures", columns, [[r[c] for c in columns] for r in rows])


@APP.command()
def diff(
    store: StoreArgument,
    old: Annotated[str, typer.Argument(help="A version or a tag.")],
    new: Annotated[
        str | None, typer.Argument(help="A version or tag; default: the newest.")
    ] = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Say which rows two versions differ by."""
    with command("store diff", as_json=as_json, debug=debug) as summary:
        from pipeline.store import Store
        from pipeline.tables.upkeep import difference

        found = difference(Store.open(store, old), Store.open(store, new))
        parts = {"added": found.added, "removed": found.removed, "changed": found.changed}
        summary.figures = {name: len(rows) for name, rows in parts.items()}
        rows = [(name, *row) for name, group in parts.items() for row in group[:50]]
        summary.figures["examples"] = rows
        _show(as_json, str(summary.figures), ("what", "dataset", "image"), rows)


@APP.command()
def history(
    store: StoreArgument,
    limit: Annotated[int | None, typer.Option(min=1, help="The newest N only.")] = None,
    run: Annotated[
        str | None,
        typer.Option(help="All of one run: its name, the start of it, or a version of it."),
    ] = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """List the store's versions, newest first, with what the runs behind them came to."""
    with command("store history", as_json=as_json, debug=debug) as summary:
        from jobs.history import COLUMNS, entry, row, run_rows
        from pipeline.runs.history import run_summary
        from pipeline.store import Store

        held = Store.open(store)
        summary.version = held.version
        if run is not None:
            found = run_summary(held, run)
            summary.figures["run"] = found
            _show(as_json, found["run"], ("what", "value"), run_rows(found))
            return
        tags = {version: name for name, version in held.tags().items()}
        commits = [(commit, tags.get(commit.version, "")) for commit in held.history(limit)]
        summary.figures["history"] = [entry(*commit) for commit in commits]
        _show(as_json, "history", COLUMNS, [row(*commit) for commit in commits])


@APP.command()
def restore(
    store: StoreArgument,
    version: Annotated[str, typer.Argument(help="The version or tag to go back to.")],
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Make an old version the newest again; nothing is deleted."""
    with command("store restore", as_json=as_json, debug=debug) as summary:
        from pipeline.store import Store

        _tell(summary, Store.open(store).restore(version), as_json)


@APP.command()
def tag(
    store: StoreArgument,
    name: Annotated[str, typer.Argument(help="The tag.")],
    version: VersionOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Give a version a name; vacuum keeps it."""
    with command("store tag", as_json=as_json, debug=debug) as summary:
        from pipeline.store import Store

        held = Store.open(store, version)
        held.tag(name)
        _tell(summary, held, as_json)


@APP.command()
def compact(store: StoreArgument, as_json: JsonOption = False, debug: DebugOption = False) -> None:
    """Join small fragments into larger ones; the rows stay what they are."""
    with command("store compact", as_json=as_json, debug=debug) as summary:
        from pipeline.store import Store
        from pipeline.tables.upkeep import compact as join

        held, gone = join(Store.open(store))
        summary.figures |= {"joined": gone, "fragments": len(held.fragments())}
        _tell(summary, held, as_json)


@APP.command()
def vacuum(
    store: StoreArgument,
    hours: Annotated[float, typer.Option(min=0, help="Keep versions of the last hours.")] = 168,
    delete: Annotated[
        bool, typer.Option("--delete", help="Really delete; else only list.")
    ] = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """List, or delete, files that no version of the last hours needs; tagged versions stay."""
    with command("store vacuum", as_json=as_json, debug=debug) as summary:
        from pipeline.store import Store

        files = Store.open(store).vacuum(hours=hours, delete=delete)
        summary.figures |= {"files": files, "deleted": delete}
        _show(
            as_json, "deleted" if delete else "would go (--delete)", ("file",), [[f] for f in files]
        )


@APP.command()
def merge(
    stores: Annotated[list[str], typer.Argument(help="Stores to read, then the one to write.")],
    label_space: Annotated[
        str | None, typer.Option(help="The label space of the result; default: the one they share.")
    ] = None,
    paint: Annotated[
        bool,
        typer.Option(
            "--paint/--no-paint", help="Paint a mask for rows that have objects only, to train on."
        ),
    ] = True,
    max_errors: MaxErrorsOption = "0",
    runner: RunnerOption = "auto",
    address: AddressOption = None,
    workers: WorkersOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Bring the rows of several stores into one, remapped to one label space."""
    with command("store merge", as_json=as_json, debug=debug, max_errors=max_errors) as summary:
        from jobs.console import note, tell_facts
        from pipeline.checks.findings import KINDS
        from pipeline.errors import UsageError
        from pipeline.label_space import label_space as find
        from pipeline.merging import merge as join
        from pipeline.runner import choose
        from pipeline.store import Store

        if len(stores) < 2:
            raise UsageError("name the stores to read and, last, the one to write")
        *sources, goal = stores
        opened = [Store.open(source) for source in sources]
        summary.inputs = sum(s.count() for s in opened)
        chosen = choose(
            runner, seconds=summary.inputs * SECONDS_A_MERGED_ROW, address=address, workers=workers
        )
        with Progress("merge", summary.inputs, unit="rows") as progress:
            held, report = join(
                opened,
                lambda space: Store.create(goal, [space]),
                find(label_space) if label_space else None,
                progress.reach,
                paint=paint,
                runner=chosen,
            )
        summary.figures |= {
            "painted": report.painted,
            "superseded": report.superseded,
            "held": report.held,
            "shared": dict(report.shared),
            "loss": report.loss.to_dict(),
        }
        summary.done, summary.failed = report.rows, report.failed
        summary.skipped = report.superseded + report.held
        if report.failed:
            note(f"{report.failed} rows failed; `segmill store errors {goal}` lists them")
        tell_facts(summary, report.facts_replaced)
        for line in report.loss.lines():
            note(f"lost: {line}")
        for kind, count in sorted(report.shared.items()):
            note(f"kept, but look at them: {count:,} rows ({KINDS[kind].title.lower()})")
        _tell(summary, held, as_json)


def _tell(summary: Summary, store: Any, as_json: bool) -> None:
    """Say which version resulted."""
    summary.version, summary.paths["store"] = store.version, store.url
    if not as_json:
        print(f"version {store.version}, {store.count():,} rows")
