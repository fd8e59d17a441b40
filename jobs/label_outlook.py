"""`segmill label --dry-run`: what would be done, how long it would take, what it would cost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jobs.console import note
from jobs.gpus import has_gpu
from jobs.progress import Progress, span

if TYPE_CHECKING:
    from jobs.console import Summary
    from pipeline.labelling import LabelJob
    from pipeline.runner import Resources
    from pipeline.segmenter import SegmenterFactory


def tell_outlook(
    summary: Summary,
    job: LabelJob,
    store: str,
    factory: SegmenterFactory,
    resources: Resources,
    price: float | None,
) -> None:
    """Tell what a label job would do, and put it into the summary; nothing is written.

    All inputs count as skipped: none is labelled.
    """
    from pipeline.labelling import VERB, foresee_labels
    from pipeline.runs.outlook import past_rate, trial_rate
    from pipeline.store import Store
    from pipeline.tables.location import is_table, locate

    held = Store.open(store) if is_table(locate(store)) else None
    with Progress("label") as progress:
        outlook = foresee_labels(job, held, factory.options.kind, progress.listed)
    rate = None
    if outlook.work and held is not None:
        rate = past_rate(held.tree(), VERB, job.digest, resources.gpus)
    if outlook.work and rate is None:
        note("no finished run of this model in the store: labelling some images here to time it")
        rate = trial_rate(factory, outlook.trial)
        if resources.gpus and not has_gpu():
            note("this machine has no GPU: the images were labelled on its CPU")
    if price is not None and not resources.gpus:
        note("no GPU is asked for, so none costs anything; --gpus-per-actor 1 asks for some")
    figures = outlook.figures(
        rate, workers=_workers(resources, rate), gpus=resources.gpus, price=price
    )
    summary.inputs = summary.skipped = outlook.listed
    summary.figures |= figures | {"model_digest": job.digest}
    _print(figures)


def _workers(resources: Resources, rate: Any) -> int:
    """Return how many workers are reckoned with: those asked for, else what this machine has.

    A trial has all cores to itself; the workers of a run share them.
    """
    from pipeline.runner import cores

    if resources.max_actors is not None:
        return resources.max_actors
    if resources.gpus:
        import torch

        return max(1, int(torch.cuda.device_count() / resources.gpus))
    return cores() if rate is not None and rate.source == "history" else 1


def _print(told: dict[str, Any]) -> None:
    note(
        "dry run: {listed:,} listed = {done_already:,} done already + {to_do:,} to do + "
        "{changed:,} changed + {adopted:,} labelled by a run that died + {repeated:,} listed "
        "again".format(**told)
    )
    rate = told.get("rate")
    if rate is None:
        note("nothing to time" if "expected_seconds" in told else "no image could be labelled")
        return
    runs, workers = len(rate["of"]), told["workers"]
    where = f"{rate['images']} images of {runs} earlier run{'s' * (runs != 1)}"
    if rate["source"] == "trial":
        where = f"{rate['images']} images labelled here, from {rate['of'][0]} on"
    text = (
        f"{rate['images_per_second']:.1f} images a second and worker ({where}): "
        f"{span(told['expected_seconds'])} on {workers} worker{'s' * (workers != 1)}, "
        f"{told['worker_hours']:,.2f} worker hours, {told['gpu_hours']:,.2f} GPU hours"
    )
    note(text + (f", cost {told['cost']:,.2f}" if "cost" in told else ""))
