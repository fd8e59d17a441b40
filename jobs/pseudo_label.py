"""One round of pseudo-labels: calibrate on held-out truth, label a bucket, say how good it may be.

    segmill pseudo-label run:models/fpn --images s3://bucket/frames --truth stores/camvid \
        --where "split = 'val'" --out stores/night --report reports/night

The store keeps soft labels: every pixel's best class, its confidence and its margin. What of them
counts as a label, `--view reports/night/thresholds.json` of `export`, `evaluate` and `train` says.
FPN on two cores: 6 images of 480x360 a second; calibration and pages add 30 ms an image.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobs.console import (
    AddressOption,
    DebugOption,
    JsonOption,
    MaxErrorsOption,
    MetricsOption,
    RunnerOption,
    Summary,
    command,
    note,
    watching,
)
from jobs.progress import Progress

if TYPE_CHECKING:
    from pipeline.pseudo.calibrate import Calibration, Goal
    from pipeline.pseudo.round import Judged, Lists
    from pipeline.runner import Runner
    from pipeline.segmenter import SegmenterFactory
    from pipeline.store import Store
    from pipeline.trees.sinks import Sink

APP = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
SECONDS_AN_IMAGE = 0.15
_LABELS, _LISTS, _PLACE = "Thresholds", "Lists for people", "Where the work runs"


@APP.command("pseudo-label")
def pseudo_label(
    model: Annotated[list[str], typer.Argument(help="run:DIR, hf:NAME, ...; several: their mean.")],
    images: Annotated[str, typer.Option(help="What to label: a directory, bucket, list or store.")],
    truth: Annotated[str, typer.Option(help="The label store with held-out truth.")],
    out: Annotated[str, typer.Option(help="The label store to write to; made when absent.")],
    report: Annotated[str, typer.Option(help="Where thresholds, lists and the page go.")],
    where: Annotated[
        str | None,
        typer.Option(help="Held-out rows: SQL; truth that the model never saw, whole sequences."),
    ] = "split = 'val'",
    images_where: Annotated[
        str | None, typer.Option(help="Which rows, where --images is a store: SQL.")
    ] = None,
    tta: Annotated[
        str | None, typer.Option(metavar="SCALES", help="Average over scales and mirrors.")
    ] = None,
    target: Annotated[
        float, typer.Option(help="Precision that is promised.", rich_help_panel=_LABELS)
    ] = 0.95,
    quota: Annotated[
        float,
        typer.Option(help="Share kept of classes that reach no promise.", rich_help_panel=_LABELS),
    ] = 0.5,
    bound: Annotated[
        str,
        typer.Option(
            metavar="design|wilson|bootstrap",
            help="How far pixels of one image are taken for independent.",
            rich_help_panel=_LABELS,
        ),
    ] = "design",
    by_hand: Annotated[
        int,
        typer.Option(min=0, max=100_000, help="Images to rank.", rich_help_panel=_LISTS),
    ] = 100,
    scene: Annotated[
        str | None,
        typer.Option(
            metavar="image_id:REGEX|path:REGEX",
            help="What a scene is; default: images that look alike.",
            rich_help_panel=_LISTS,
        ),
    ] = None,
    audit: Annotated[
        int,
        typer.Option(min=0, max=100_000, help="Images to draw at random.", rich_help_panel=_LISTS),
    ] = 50,
    seed: Annotated[
        str, typer.Option(help="Of the audit's draw: the night's name.", rich_help_panel=_LISTS)
    ] = "0",
    runner: RunnerOption = "auto",
    address: AddressOption = None,
    max_errors: MaxErrorsOption = "0",
    metrics: MetricsOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Label a bucket softly, and say from held-out truth what to keep and how good it may be."""
    with command("pseudo-label", as_json=as_json, debug=debug, max_errors=max_errors) as summary:
        from pipeline.files import open_sink
        from pipeline.labelling import check_depth
        from pipeline.models.ensemble import uri_of
        from pipeline.models.uri import absolute
        from pipeline.predict.options import LabelOptions, check_model
        from pipeline.pseudo.calibrate import Goal
        from pipeline.pseudo.ranking import Lookalikes, Named
        from pipeline.pseudo.round import Lists
        from pipeline.runner import check_runner
        from pipeline.segmenter import SegmenterFactory
        from pipeline.store import Store

        check_runner(runner)
        goal = Goal(target, quota, bound)  # type: ignore[arg-type]
        options = LabelOptions.parse(
            batch_size="auto", input_size=None, window=None, tta=tta, min_confidence=None,
            confidence=True, margin=True, kind="pseudo",
        )  # fmt: skip
        lists = Lists(by_hand, Named.parse(scene) if scene else Lookalikes(), audit, seed)
        held, sink = Store.open(truth), open_sink(report)
        factory = SegmenterFactory(uri_of([absolute(m) for m in model]), options=options)
        loaded = factory.load()
        check_model(loaded, options)
        check_depth(images, loaded)
        factory = replace(factory, digest=loaded.digest)
        target_store = Store.create(out, [loaded.label_space])
        work = _Work(factory, loaded.digest, runner, address, metrics, summary)
        note("held-out images: labelled, and compared with their truth")
        calibration = work.calibrate(held, where, f"{target_store.url}/_held_out", goal)
        store = work.label(images, target_store, images_where, "pseudo-label")
        _finish(summary, sink, work.judge(store, calibration, lists, sink))


class _Work:
    """The steps of a round, each of which goes on where it was stopped."""

    def __init__(
        self,
        factory: SegmenterFactory,
        model_digest: str,
        runner: str,
        address: str | None,
        metrics: str | None,
        summary: Summary,
    ) -> None:
        from pipeline.labelling import label_digest

        self._factory, self._summary = factory, summary
        self._digest = label_digest(model_digest, factory.options)
        self._runner, self._address, self._metrics = runner, address, metrics

    def _choose(self, count: int, seconds: float = SECONDS_AN_IMAGE) -> Runner:
        from jobs.gpus import default_gpus
        from pipeline.runner import Resources, choose

        gpus = default_gpus(self._address, self._runner) if seconds == SECONDS_AN_IMAGE else 0.0
        resources = Resources.parse(None, gpus=gpus)
        return choose(
            self._runner, seconds=count * seconds, resources=resources, address=self._address
        )

    def label(self, source: str, store: Store, where: str | None, verb: str) -> Store:
        """Label what the store does not hold yet; return the snapshot."""
        from pipeline.labelling import LabelJob, label

        with Progress(verb) as progress:
            held_out = verb != "pseudo-label"
            watch = watching(progress, None if held_out else self._metrics, self._summary)
            report = label(
                LabelJob(source, self._digest, where=where),
                store,
                self._factory,
                choose_runner=self._choose,
                watch=watch,
                on_listed=progress.listed,
            )
        if held_out and report.failed:
            note(
                f"{report.failed} held-out images could not be labelled: `store errors` lists them"
            )
        if not held_out:
            self._summary.book(report)
            self._summary.paths["store"] = store.url
        return store.latest()

    def calibrate(self, truth: Store, where: str | None, url: str, goal: Goal) -> Calibration:
        """Label the held-out images, in a store beside the labels, and calibrate on them."""
        from pipeline.pseudo.bounds import REPLICATES
        from pipeline.pseudo.calibrate import calibrate
        from pipeline.pseudo.held_out import gather
        from pipeline.store import Store

        store = Store.create(url, [self._factory.load().label_space])
        pred = self.label(truth.url, store, where, "held-out")
        mine = f"provenance['model_digest'] = '{self._digest}'"
        replicates = REPLICATES if goal.bound == "bootstrap" else 0
        held = gather(
            truth,
            pred,
            self._choose(pred.count(), 0.03),
            where=where,
            pred_where=mine,
            replicates=replicates,
        )
        for failure in held.failures[:5]:
            note(f"{failure.image_id}: {failure.message}")
        facts = {
            "truth": f"{truth.url}, version {truth.version}",
            "held-out rows": where or "all",
            "model": self._factory.uri,
            "model_digest": self._digest,
        }
        self._summary.figures["held_out"] = {
            "images": held.images,
            "unpredicted": held.unpredicted,
            "unlabelled": held.unlabelled,
            "failed": held.failed,
        }
        return replace(calibrate(held, goal), facts=facts)

    def judge(self, store: Store, calibration: Calibration, lists: Lists, sink: Sink) -> Judged:
        """Say what may be expected of this model's labels in the store, image by image too."""
        import pyarrow.parquet as pq

        from pipeline.pseudo.quality import image_schema
        from pipeline.pseudo.round import judge

        mine = f"provenance['model_digest'] = '{self._digest}'"
        runner = self._choose(store.count(), 0.02)
        with (
            sink.stream("quality.parquet") as file,
            pq.ParquetWriter(file, image_schema(), compression="zstd") as writer,
        ):
            return judge(
                store, calibration, lists, runner, where=mine, on_images=writer.write_batch
            )


def _finish(summary: Summary, sink: Sink, judged: Judged) -> None:
    """Write everything, and book it."""
    from pipeline.report.pseudo_page import pseudo_page

    figures = judged.figures()
    names = judged.write(sink)
    sink.write("summary.json", json.dumps(figures, indent=1).encode() + b"\n")
    sink.write("index.html", pseudo_page(judged))
    names |= {"quality": "quality.parquet", "summary": "summary.json", "report": "index.html"}
    summary.paths |= {name: sink.url_of(file) for name, file in names.items()}
    summary.figures |= figures
    for failure in judged.quality.failures[:5]:
        note(f"{failure.image_id}: {failure.message}")
    _tell(summary, figures)


def _tell(summary: Summary, figures: dict[str, Any]) -> None:
    """Say in a few lines what a person wants to know."""
    expected, said = figures["expected"], figures["thresholds"]

    def percent(value: float | None) -> str:
        return "unknown" if value is None else f"{100 * value:.1f} %"

    summary.lines += [
        f"expected without truth: mIoU {percent(expected['miou'])}, accuracy "
        f"{percent(expected['accuracy'])}; the audit sample alone tells without assumptions",
        f"kept by the view: {percent(expected['coverage'])} of the pixels, expected accuracy "
        f"{percent(expected['kept_accuracy'])}",
    ]
    for why, text in (
        ("few", "too little held-out truth"),
        ("unseen", "never predicted on held-out images"),
        ("unmet", "no threshold reaches the target"),
        ("starved", "the threshold keeps less than the quota"),
    ):
        names = [name for name, rule in said.items() if rule["why"] == why]
        if names:
            summary.lines.append(f"by quota, {text}: {', '.join(names)}")
