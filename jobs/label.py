"""Label images in bulk with a model; what the store holds already is left alone.

    segmill label images/ stores/night --model run:models/enet --actors 1:4 --gpus-per-actor 1

ENet on two cores: about 12 images of 480x360 a second.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.console import (
    DebugOption,
    JsonOption,
    MaxErrorsOption,
    MetricsOption,
    check_metrics,
    command,
    note,
    watching,
)
from jobs.gpus import default_gpus
from jobs.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.runner import Runner
    from pipeline.runs.report import RunReport
    from pipeline.store import Store

APP = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
SECONDS_AN_IMAGE = 0.15
_IMAGES, _QUALITY = "Which images", "Better labels for more time: docs/labelling.md"
_SPEED, _PLACE = "Speed", "Where the work runs"


@APP.command()
def label(
    images: Annotated[
        str,
        typer.Argument(
            help="A directory, glob, .zip, .tar, bucket, .txt/.csv/.parquet, or a store."
        ),
    ],
    store: Annotated[str, typer.Argument(help="The label store to write to; made when absent.")],
    model: Annotated[
        list[str] | None,
        typer.Option(
            metavar="URI",
            help="run:DIR, hf:NAME, onnx:FILE, ...: docs/models.md; several: their mean. Default: "
            "a small one of street scenes that comes with segmill.",
        ),
    ] = None,
    weights: Annotated[
        str | None, typer.Option(metavar="FILE", help="Weights to load into it.")
    ] = None,
    label_space: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Label space, if the model's own is not the right one."),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Say what would be done, and what it takes; write nothing."),
    ] = False,
    price_per_gpu_hour: Annotated[
        float | None,
        typer.Option(min=0, metavar="PRICE", help="For --dry-run: what an hour of a GPU costs."),
    ] = None,
    max_errors: MaxErrorsOption = "0",
    metrics: MetricsOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
    dataset: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="The dataset's name in the rows; default: after the source. Images are known by "
            "it and their path: keep it where the source's name changes.",
            rich_help_panel=_IMAGES,
        ),
    ] = "",
    where: Annotated[
        str | None,
        typer.Option(
            metavar="SQL",
            help="Which rows of a store: an SQL condition on its columns.",
            rich_help_panel=_IMAGES,
        ),
    ] = None,
    sample: Annotated[
        str | None,
        typer.Option(
            metavar="P%",
            help="Only a share, by a hash of the path: the 1% are among the 2%. The rest are no "
            "inputs.",
            rich_help_panel=_IMAGES,
        ),
    ] = None,
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="I/N",
            help="Of those only part I of N, 1/4 to 4/4, by a hash of the path: for clusters that "
            "share a bucket.",
            rich_help_panel=_IMAGES,
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            min=0, metavar="N", help="Of those only the first N.", rich_help_panel=_IMAGES
        ),
    ] = None,
    input_size: Annotated[
        str | None,
        typer.Option(metavar="HxW", help="Resize images for the model.", rich_help_panel=_QUALITY),
    ] = None,
    window: Annotated[
        str | None,
        typer.Option(
            metavar="HxW",
            help="Label large images through sliding windows.",
            rich_help_panel=_QUALITY,
        ),
    ] = None,
    overlap: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            help="Share of a window in common with the next; 0.25.",
            rich_help_panel=_QUALITY,
        ),
    ] = None,
    tta: Annotated[
        str | None,
        typer.Option(
            metavar="SCALES",
            help="Average over scales and mirrors: flip, or 0.75,1,1.25,flip.",
            rich_help_panel=_QUALITY,
        ),
    ] = None,
    refine: Annotated[
        str,
        typer.Option(
            metavar="none|guided|densecrf", help="Follow edges.", rich_help_panel=_QUALITY
        ),
    ] = "none",
    min_confidence: Annotated[
        str | None,
        typer.Option(
            metavar="P|NAME=P,…|FILE",
            help="Pixels less sure than that become void.",
            rich_help_panel=_QUALITY,
        ),
    ] = None,
    confidence: Annotated[
        bool,
        typer.Option(
            "--confidence",
            help="Keep each pixel's confidence as well.",
            rich_help_panel=_QUALITY,
        ),
    ] = False,
    margin: Annotated[
        bool,
        typer.Option(
            "--margin",
            help="Keep each pixel's lead over the next class as well.",
            rich_help_panel=_QUALITY,
        ),
    ] = False,
    batch_size: Annotated[
        str,
        typer.Option(
            metavar="N|auto",
            help="Images in a forward pass; auto: what fits.",
            rich_help_panel=_SPEED,
        ),
    ] = "auto",
    precision: Annotated[
        str,
        typer.Option(
            metavar="fp32|bf16|fp16",
            help="Numbers that the model computes with.",
            rich_help_panel=_SPEED,
        ),
    ] = "fp32",
    decode: Annotated[
        str,
        typer.Option(
            metavar="full|reduced",
            help="reduced: large JPEGs at 1/2 to 1/8 where the input is small.",
            rich_help_panel=_SPEED,
        ),
    ] = "full",
    pad_limit: Annotated[
        float,
        typer.Option(
            metavar="X",
            help="Share of pixels that padding may add, to batch images alike.",
            rich_help_panel=_SPEED,
        ),
    ] = 0.0,
    compiled: Annotated[
        bool,
        typer.Option(
            "--compile",
            help="Compile the network: pays from thousands of images.",
            rich_help_panel=_SPEED,
        ),
    ] = False,
    runner: Annotated[
        str,
        typer.Option(
            metavar="auto|local|ray",
            help="local: this process; auto: Ray for a cluster, a GPU or much work.",
            rich_help_panel=_PLACE,
        ),
    ] = "auto",
    address: Annotated[
        str | None,
        typer.Option(
            help="A Ray cluster's address; without it Ray starts on this machine.",
            rich_help_panel=_PLACE,
        ),
    ] = None,
    actors: Annotated[
        str | None,
        typer.Option(
            metavar="MIN:MAX|N",
            help="Ray actors; N is N:N, all from the start. Default: what fits.",
            rich_help_panel=_PLACE,
        ),
    ] = None,
    gpus_per_actor: Annotated[
        float | None,
        typer.Option(
            min=0,
            metavar="X",
            help="Share of a GPU; default: 1 where there are GPUs.",
            rich_help_panel=_PLACE,
        ),
    ] = None,
    shard_images: Annotated[
        int,
        typer.Option(
            min=1,
            max=1_000_000,
            metavar="N",
            help="Images in one shard of work.",
            rich_help_panel=_PLACE,
        ),
    ] = 128,
) -> None:
    """Label images in bulk: listed, minus what is done, on segmenters, exactly once."""
    with command("label", as_json=as_json, debug=debug, max_errors=max_errors) as summary:
        began = time.perf_counter()
        from pipeline.labelling import LabelJob, check_depth, check_source, label_digest, void_share
        from pipeline.labelling import label as label_images
        from pipeline.models.ensemble import uri_of
        from pipeline.models.shipped import DEFAULT, announcement
        from pipeline.models.uri import absolute
        from pipeline.predict.options import LabelOptions, check_model
        from pipeline.runner import Resources, check_runner, choose
        from pipeline.runs.choice import Choice
        from pipeline.segmenter import SegmenterFactory
        from pipeline.store import Store

        check_runner(runner)
        choice = Choice.parse(limit, shard, sample)
        options = LabelOptions.parse(
            batch_size=batch_size,
            precision=precision,
            confidence=confidence,
            margin=margin,
            decode=decode,
            pad_limit=pad_limit,
            compile=compiled,
            input_size=input_size,
            window=window,
            overlap=overlap,
            tta=tta,
            refine=refine,
            min_confidence=min_confidence,
        )
        check_source(images, dataset=dataset, where=where)
        check_metrics(metrics)
        if not model:
            note(announcement(DEFAULT))
        uri = uri_of([absolute(m) for m in model or [DEFAULT]])
        weights = absolute(weights) if weights else None
        factory = SegmenterFactory(uri, weights, label_space, options)
        gpus = default_gpus(address, runner) if gpus_per_actor is None else gpus_per_actor
        resources = Resources.parse(actors, gpus=gpus)
        loaded = factory.load()  # workers in this process use it too; those of Ray load their own
        check_model(loaded, options)
        check_depth(images, loaded)
        digest, space = label_digest(loaded.digest, options), loaded.label_space
        job = LabelJob(images, digest, dataset, where, choice, shard_images)
        if dry_run:
            from jobs.label_outlook import tell_outlook

            tell_outlook(summary, job, store, factory, resources, price_per_gpu_hour)
            return
        # Where workers are given GPUs, none may fall back to its CPU in silence.
        given = replace(options, device="cuda") if resources.gpus else options
        factory = replace(factory, digest=loaded.digest, options=given)
        target = Store.create(store, [space])

        def pick(count: int) -> Runner:
            return choose(
                runner, seconds=count * SECONDS_AN_IMAGE, resources=resources, address=address
            )

        with Progress("label") as progress:
            watch = watching(progress, metrics, summary, max_errors)
            report = label_images(
                job,
                target,
                factory,
                choose_runner=pick,
                facts={"gpus_per_worker": resources.gpus},
                watch=watch if dataset else _telling_strangers(watch, target.count()),
                on_listed=progress.listed,
                spent={"load": time.perf_counter() - began},
            )
        summary.book(report)
        summary.paths["store"] = target.url
        summary.figures |= {"model_digest": digest, "label_space": space.name}
        summary.figures["changed"] = report.changed
        if options.min_confidence and report.done:
            share = void_share(target.latest(), report.run)
            summary.figures["void_share"] = round(share, 6)
            note(f"{share:.1%} of the pixels labelled now are void: --min-confidence")
        if report.failed:
            _tell(target, report.run)


def _telling_strangers(
    watch: Callable[[RunReport], None], held: int
) -> Callable[[RunReport], None]:
    """Return `watch`, which first says why a store with rows may know none of the inputs."""
    heard = False

    def hear(report: RunReport) -> None:
        nonlocal heard
        new = report.todo and report.todo + report.repeated == report.inputs and not report.changed
        if new and held and not heard:
            note(
                f"none of these {report.todo:,} inputs is among the {held:,} rows of the store; an "
                "image is known by its path and its dataset's name, which is the source's name "
                "unless --dataset gives one"
            )
        heard = True
        watch(report)

    return hear


def _tell(store: Store, run: str) -> None:
    """Show the first failures of a run."""
    import pyarrow.compute as pc

    failures = store.latest().failures()
    failures = failures.filter(pc.equal(failures["run"], run))
    for message in failures["message"].to_pylist()[:5]:
        note(message)
    count = failures.num_rows
    note(
        f"{count:,} input{'s' * (count != 1)} failed; `segmill store errors {store.url}` lists them"
    )
