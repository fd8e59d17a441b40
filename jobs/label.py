"""Label images in bulk with a model; what the store holds already is left alone.

    segmill label images/ stores/night --model run:models/enet --actors 1:4 --gpus-per-actor 1

ENet on two cores: about 12 images of 480x360 a second.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, cast

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
from jobs.progress import Progress
from pipeline.errors import UsageError

if TYPE_CHECKING:
    from pipeline.runner import Resources, Runner
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
    shard_images: Annotated[
        int, typer.Option(min=1, max=1_000_000, help="Images in one shard of work.")
    ] = 128,
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
        from pipeline.predict.thresholds import Thresholds
        from pipeline.predict.tta import Augmentation
        from pipeline.runs.choice import Choice
        from pipeline.segmenter import SegmenterFactory
        from pipeline.store import Store

        choice = Choice.parse(limit, shard, sample)
        options = LabelOptions(
            batch_size=_batch(batch_size),
            precision=cast("Any", precision),
            confidence=confidence,
            decode=cast("Any", decode),
            pad_limit=pad_limit,
            compile=compiled,
            input_size=_size("--input-size", input_size),
            window=_size("--window", window),
            overlap=overlap,
            tta=Augmentation.parse(tta) if tta is not None else Augmentation(),
            refine=cast("Any", refine),
            min_confidence=(
                Thresholds() if min_confidence is None else Thresholds.parse(min_confidence)
            ),
        )
        uri = uri_of([absolute(m) for m in model])
        weights = absolute(weights) if weights else None
        factory = SegmenterFactory(uri, weights, label_space, options)
        loaded = factory.load()  # workers in this process use it too; those of Ray load their own
        check_model(loaded, options)
        digest, space = label_digest(loaded.digest, options), loaded.label_space
        factory = replace(factory, digest=loaded.digest)
        resources = _resources(actors, gpus_per_actor, address)
        if dry_run:
            from jobs.label_outlook import tell_outlook

            job = LabelJob(images, digest, dataset, where, choice, shard_images)
            tell_outlook(summary, job, store, factory, resources, price_per_gpu_hour)
            return
        target = Store.create(store, [space])

        def pick(count: int) -> Runner:
            from pipeline.runner import choose

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


def _has_gpus(address: str | None) -> bool:
    """Tell whether this machine, or the cluster where there is one, has GPUs."""
    import os

    if address or os.environ.get("RAY_ADDRESS"):
        import ray

        from pipeline.ray_runner import start_ray

        start_ray(address)
        if ray.cluster_resources().get("GPU"):
            return True
        note("the cluster has no GPU now; --gpus-per-actor 1 asks for some, labelling on CPUs")
        return False
    import torch

    return bool(torch.cuda.is_available())


def _batch(text: str) -> int | None:
    """Read a batch size; None is auto."""
    if text == "auto":
        return None
    number = _number(text)
    if number is None:
        raise UsageError(f"--batch-size is a number, or auto, not {text!r}")
    return number


def _size(option: str, text: str | None) -> tuple[int, int] | None:
    """Read HxW."""
    if text is None:
        return None
    height, width = (_number(side) for side in text.lower().partition("x")[::2])
    if not height or not width:
        raise UsageError(f"{option} is HxW, like 360x480, not {text!r}")
    return height, width


def _resources(actors: str | None, gpus: float | None, address: str | None) -> Resources:
    """Read MIN:MAX actors and the GPUs of each; by default one where there are any."""
    from pipeline.runner import Resources

    if gpus is None:
        gpus = 1.0 if _has_gpus(address) else 0.0
    if actors is None:
        return Resources(gpus=gpus)
    first, _, last = actors.partition(":")
    low, high = _number(first), _number(last or first)
    if low is None or high is None:
        raise UsageError(f"--actors is MAX or MIN:MAX, like 1:8, not {actors!r}")
    return Resources(low, high, gpus=gpus)


def _number(text: str) -> int | None:
    """Read a whole number of plain digits; None where it is none, or beyond all use."""
    return int(text) if re.fullmatch("[0-9]{1,9}", text) else None
