"""Label images in bulk with a model; what the store holds already is left alone.

    segmill label images/ stores/night --model run:models/enet --actors 1:4 --gpus-per-actor 1

ENet on two cores: about 12 images of 480x360 a second.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from jobs.console import (
    AddressOption,
    DebugOption,
    JsonOption,
    MaxErrorsOption,
    Progress,
    RunnerOption,
    command,
    note,
)
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
        str, typer.Option(help="The model: run:DIR, hf:, onnx:FILE, ...: docs/models.md")
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
    batch_size: Annotated[int, typer.Option(min=1, help="Images in a forward pass.")] = 8,
    precision: Annotated[str, typer.Option(help="fp32, bf16 or fp16.")] = "fp32",
    input_size: Annotated[
        str | None, typer.Option(metavar="HxW", help="Resize images for the model.")
    ] = None,
    confidence: Annotated[
        bool, typer.Option("--confidence", help="Keep each pixel's confidence as well.")
    ] = False,
    where: Annotated[
        str | None, typer.Option(help="Which rows of a store: an SQL condition on its columns.")
    ] = None,
    dataset: Annotated[str, typer.Option(help="The dataset's name in the rows.")] = "",
    shard_images: Annotated[int, typer.Option(min=1, help="Images in one shard of work.")] = 128,
    max_errors: MaxErrorsOption = "0",
    runner: RunnerOption = "auto",
    address: AddressOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Label images in bulk: listed, minus what is done, on segmenters, exactly once."""
    with command("label", as_json=as_json, debug=debug, max_errors=max_errors) as summary:
        from pipeline.labelling import label as label_images
        from pipeline.labelling import label_digest
        from pipeline.models import load_model
        from pipeline.models.uri import absolute
        from pipeline.predict.options import LabelOptions
        from pipeline.segmenter import SegmenterFactory
        from pipeline.store import Store

        options = LabelOptions(
            batch_size=batch_size,
            precision=cast("Any", precision),
            confidence=confidence,
            input_size=_size(input_size),
        )
        model, weights = absolute(model), absolute(weights) if weights else None
        loaded = load_model(model, weights=weights, label_space=label_space)
        digest, space = label_digest(loaded.digest, options), loaded.label_space
        factory = SegmenterFactory(model, weights, label_space, options, loaded.digest)
        del loaded  # the workers load their own
        target = Store.create(store, [space])
        resources = _resources(actors, gpus_per_actor, address)

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
                shard_images=shard_images,
                on_progress=progress.reach,
                on_listed=progress.listed,
            )
        summary.book(report)
        summary.paths["store"] = target.url
        summary.figures |= {"model_digest": digest, "label_space": space.name}
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


def _size(text: str | None) -> tuple[int, int] | None:
    """Read HxW."""
    if text is None:
        return None
    height, _, width = text.lower().partition("x")
    if not (height.isdigit() and width.isdigit() and int(height) and int(width)):
        raise UsageError(f"--input-size is HxW, like 360x480, not {text!r}")
    return int(height), int(width)


def _resources(actors: str | None, gpus: float | None, address: str | None) -> Resources:
    """Read MIN:MAX actors and the GPUs of each; by default one where there are any."""
    from pipeline.runner import Resources

    if gpus is None:
        gpus = 1.0 if _has_gpus(address) else 0.0
    if actors is None:
        return Resources(gpus=gpus)
    low, _, high = actors.partition(":")
    if not (low.isdigit() and (high or low).isdigit()):
        raise UsageError(f"--actors is MAX or MIN:MAX, like 1:8, not {actors!r}")
    return Resources(int(low), int(high or low), gpus=gpus)
