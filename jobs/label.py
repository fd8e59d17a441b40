"""Label images in bulk with a model; what the store holds already is left alone.

    segmill label images/ stores/night --model run:models/enet --actors 1:4 --gpus-per-actor 1

ENet on two cores: about 12 images of 480x360 a second.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.console import (
    AddressOption,
    DebugOption,
    JsonOption,
    MaxErrorsOption,
    MetricsOption,
    RunnerOption,
    command,
    note,
    watching,
)
from jobs.gpus import default_gpus
from jobs.progress import Progress

if TYPE_CHECKING:
    from pipeline.runner import Runner
    from pipeline.store import Store

APP = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
SECONDS_AN_IMAGE = 0.15


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
        list[str],
        typer.Option(
            help="The model: run:DIR, hf:, onnx:FILE, ...: docs/models.md; several: their mean."
        ),
    ],
    weights: Annotated[str | None, typer.Option(help="Weights to load into it.")] = None,
    label_space: Annotated[
        str | None, typer.Option(help="Label space, if the model's own is not the right one.")
    ] = None,
    actors: Annotated[
        str | None, typer.Option(metavar="[MIN:]MAX", help="Ray actors; default: what fits.")
    ] = None,
    gpus_per_actor: Annotated[
        float | None, typer.Option(min=0, help="Share of a GPU; default: 1 where there are GPUs.")
    ] = None,
    batch_size: Annotated[
        str, typer.Option(metavar="N|auto", help="Images in a forward pass; auto: what fits.")
    ] = "auto",
    precision: Annotated[str, typer.Option(help="fp32, bf16 or fp16.")] = "fp32",
    input_size: Annotated[
        str | None, typer.Option(metavar="HxW", help="Resize images for the model.")
    ] = None,
    decode: Annotated[
        str,
        typer.Option(help="full; or reduced: large JPEGs at 1/2 to 1/8 where the input is small."),
    ] = "full",
    pad_limit: Annotated[
        float, typer.Option(help="Share of pixels that padding may add, to batch images alike.")
    ] = 0.0,
    compiled: Annotated[
        bool, typer.Option("--compile", help="Compile the network: pays from thousands of images.")
    ] = False,
    confidence: Annotated[
        bool, typer.Option("--confidence", help="Keep each pixel's confidence as well.")
    ] = False,
    window: Annotated[
        str | None, typer.Option(metavar="HxW", help="Label large images through sliding windows.")
    ] = None,
    overlap: Annotated[
        float | None, typer.Option(help="Share of a window in common with the next; 0.25.")
    ] = None,
    tta: Annotated[
        str | None, typer.Option(help="Average over scales and mirrors: flip, or 0.75,1,1.25,flip.")
    ] = None,
    refine: Annotated[str, typer.Option(help="none, guided or densecrf: follow edges.")] = "none",
    min_confidence: Annotated[
        str | None,
        typer.Option(metavar="P|NAME=P,…|FILE", help="Pixels less sure than that become void."),
    ] = None,
    where: Annotated[
        str | None, typer.Option(help="Which rows of a store: an SQL condition on its columns.")
    ] = None,
    dataset: Annotated[str, typer.Option(help="The dataset's name in the rows.")] = "",
    shard_images: Annotated[int, typer.Option(min=1, help="Images in one shard of work.")] = 128,
    limit: Annotated[
        int | None, typer.Option(min=0, help="Only the first N images. The rest are no inputs.")
    ] = None,
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="I/N",
            help="Only part I of N, 1/4 to 4/4, by a hash of the path: for clusters that share a "
            "bucket. The rest are no inputs.",
        ),
    ] = None,
    sample: Annotated[
        str | None,
        typer.Option(
            metavar="P%",
            help="Only a share, by a hash of the path: the 1% are among the 2%. Taken before "
            "--shard, and both before --limit. The rest are no inputs.",
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Say what would be done, and what it takes; write nothing."),
    ] = False,
    price_per_gpu_hour: Annotated[
        float | None, typer.Option(min=0, help="For --dry-run: what an hour of a GPU costs.")
    ] = None,
    metrics: MetricsOption = None,
    max_errors: MaxErrorsOption = "0",
    runner: RunnerOption = "auto",
    address: AddressOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Label images in bulk: listed, minus what is done, on segmenters, exactly once."""
    with command("label", as_json=as_json, debug=debug, max_errors=max_errors) as summary:
        from pipeline.labelling import LabelJob, label_digest, void_share
        from pipeline.labelling import label as label_images
        from pipeline.models.ensemble import uri_of
        from pipeline.models.uri import absolute
        from pipeline.predict.options import LabelOptions, check_model
        from pipeline.runner import Resources, choose
        from pipeline.runs.choice import Choice
        from pipeline.segmenter import SegmenterFactory
        from pipeline.store import Store

        choice = Choice.parse(limit, shard, sample)
        options = LabelOptions.parse(
            batch_size=batch_size,
            precision=precision,
            confidence=confidence,
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
        uri = uri_of([absolute(m) for m in model])
        weights = absolute(weights) if weights else None
        factory = SegmenterFactory(uri, weights, label_space, options)
        loaded = factory.load()  # workers in this process use it too; those of Ray load their own
        check_model(loaded, options)
        digest, space = label_digest(loaded.digest, options), loaded.label_space
        factory = replace(factory, digest=loaded.digest)
        gpus = default_gpus(address) if gpus_per_actor is None else gpus_per_actor
        resources = Resources.parse(actors, gpus=gpus)
        if dry_run:
            from jobs.label_outlook import tell_outlook

            job = LabelJob(images, digest, dataset, where, choice, shard_images)
            tell_outlook(summary, job, store, factory, resources, price_per_gpu_hour)
            return
        target = Store.create(store, [space])

        def pick(count: int) -> Runner:
            return choose(
                runner, seconds=count * SECONDS_AN_IMAGE, resources=resources, address=address
            )

        with Progress("label") as progress:
            report = label_images(
                images,
                target,
                factory,
                digest,
                choose_runner=pick,
                dataset=dataset,
                where=where,
                choice=choice,
                shard_images=shard_images,
                facts={"gpus_per_worker": resources.gpus},
                watch=watching(progress, metrics, "label"),
                on_listed=progress.listed,
            )
        summary.book(report)
        summary.paths["store"] = target.url
        summary.figures |= {"model_digest": digest, "label_space": space.name}
        summary.figures["changed"] = report.changed
        if options.min_confidence:
            share = void_share(target.latest(), report.run)
            summary.figures["void_share"] = round(share, 6)
            note(f"{share:.1%} of the pixels labelled now are void: --min-confidence")
        if report.failed:
            _tell(target, report.run)


def _tell(store: Store, run: str) -> None:
    """Show the first failures of a run."""
    import pyarrow.compute as pc

    failures = store.latest().failures()
    failures = failures.filter(pc.equal(failures["run"], run))
    for message in failures["message"].to_pylist()[:5]:
        note(message)
    note(f"{failures.num_rows} inputs failed; `segmill store errors {store.url}` lists them")
