"""What `store validate` and `ingest --validate` share: the run, its files, and the table."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

from jobs.console import note
from jobs.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    import pyarrow as pa

    from pipeline.runner import Runner
    from pipeline.store import Store
    from pipeline.trees.sinks import Sink
    from pipeline.validation import Images, Validation

SECONDS_AN_IMAGE = {"none": 0.002, "header": 0.003, "decode": 0.01}


def validate_store(
    store: Store,
    runner: Runner,
    *,
    images: Images,
    tolerance: float,
    sink: Sink | None = None,
    only: Collection[str] | None = None,
) -> Validation:
    """Validate, with progress; write `findings.parquet` as findings come, when there is a sink."""
    import pyarrow.parquet as pq

    from pipeline.checks.findings import FINDINGS
    from pipeline.validation import validate

    total = sum(f.rows for f in store.fragments() if only is None or f.path in only)
    with Progress("validate", total, unit="rows") as progress:

        def run(on_findings: Any) -> Validation:
            return validate(
                store,
                runner=runner,
                images=images,
                tolerance=tolerance,
                only=only,
                on_findings=on_findings,
                on_progress=progress.reach,
            )

        if sink is None:
            return run(lambda _: None)
        with (
            sink.stream("findings.parquet") as file,
            pq.ParquetWriter(file, FINDINGS, compression="zstd") as writer,
        ):

            def keep(batch: pa.RecordBatch) -> None:
                writer.write_batch(batch)

            return run(keep)


def write_report(
    sink: Sink, found: Validation, store: Store, arguments: Mapping[str, Any]
) -> dict[str, str]:
    """Write the page and the JSON; return where they and the findings lie."""
    import json

    from pipeline.report.finding_pictures import finding_pictures
    from pipeline.report.validation_page import validation_page

    facts = _facts(store, arguments)
    examples = [f for findings in found.examples.values() for f in findings]
    page = validation_page(
        found,
        store.label_spaces,
        title=store.url.rsplit("/", 1)[-1],
        facts=facts,
        pictures=finding_pictures(store, examples),
    )
    report = {
        **found.figures(),
        "facts": facts,
        "classes": _classes(found, store),
        "findings": [f.to_dict() for f in found.findings],
    }
    sink.write("report.json", json.dumps(report, indent=1).encode() + b"\n")
    sink.write("index.html", page)
    names = {"report": "index.html", "json": "report.json", "findings": "findings.parquet"}
    return {name: sink.url_of(file) for name, file in names.items()}


def _classes(found: Validation, store: Store) -> list[dict[str, Any]]:
    """Return the pixels, images and objects of each class that a split shows."""
    from pipeline.tables.statistics import Statistics

    return Statistics.of(store, found.classes).classes("split")


def _facts(store: Store, arguments: Mapping[str, Any]) -> dict[str, str]:
    words = ["segmill", "store", "validate", store.url]
    for name, value in arguments.items():
        words += [f"--{name}"] * bool(value) + [str(value)] * (value not in (None, False, True))
    return {
        "command": shlex.join(words),
        "store": f"{store.url}, version {store.version}",
        "label spaces": ", ".join(sorted(store.label_spaces)),
    }


def print_findings(found: Validation) -> None:
    """Print the findings' kinds, the worst first, each with an example."""
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from pipeline.checks.findings import KINDS, SEVERITIES

    console = Console()
    if not found.counts:
        console.print("nothing is wrong")
        return
    colours = dict(zip(SEVERITIES, ("red", "yellow", "blue"), strict=True))
    table = Table(box=SIMPLE, pad_edge=False)
    for heading in ("how bad", "what", "how many", "for example"):
        table.add_column(heading, justify="right" if heading == "how many" else "left")
    kinds = [k for k in KINDS if found.counts[k]]
    for kind in sorted(kinds, key=lambda k: SEVERITIES.index(KINDS[k].severity)):
        severity, title, _ = KINDS[kind]
        first = found.examples[kind][0]
        name = f"{first.row.dataset}/{first.row.image_id}: " if first.row else ""
        table.add_row(
            Text(severity, style=colours[severity]),
            Text(title),
            f"{found.counts[kind]:,}",
            Text(name + first.message),
        )
    console.print(table)


def tell_findings(found: Validation) -> None:
    """Say on stderr how a validation ended, with the first finding of each kind."""
    from pipeline.checks.findings import KINDS

    parts = [f"{found.of_severity(s):,} {s}" for s in ("error", "warning", "info")]
    note(f"validated {found.inputs:,} rows: {', '.join(parts)}")
    for kind in (k for k in KINDS if found.counts[k]):
        first = found.examples[kind][0]
        name = f"{first.row.dataset}/{first.row.image_id}: " if first.row else ""
        note(f"  {KINDS[kind].severity} {kind} ({found.counts[kind]:,}): {name}{first.message}")
