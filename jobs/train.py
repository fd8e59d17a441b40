"""Train a model on a label store; the best weights by validation mIoU become a model directory.

    segmill train stores/camvid --recipe camvid-fpn --out models/enet

A recipe is a YAML file, or the name of one that ships with segmill; each says how long it takes and
what to expect. The same command again goes on where a killed run was, and does nothing after a
finished one.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from jobs.console import (
    AddressOption,
    DebugOption,
    JsonOption,
    MaxErrorsOption,
    RunnerOption,
    ViewOption,
    command,
    note,
)
from jobs.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Callable

    from jobs.console import Summary
    from pipeline.training.supervised import Result

APP = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
_SHOWN = 5


@APP.command()
def train(
    store: Annotated[str, typer.Argument(help="The label store to learn from.")],
    recipe: Annotated[str, typer.Option(help="A recipe's YAML file, or a shipped one's name.")],
    out: Annotated[str, typer.Option(help="The model directory to write.")],
    split: Annotated[str, typer.Option(help="The split to learn from.")] = "train",
    val_split: Annotated[str, typer.Option(help="The split that picks the best weights.")] = "val",
    labelled: Annotated[
        str | None,
        typer.Option(help="Learn from so few masks: 1/8, a number, or a file of image ids."),
    ] = None,
    unlabelled: Annotated[
        str | None,
        typer.Option(help="Another store with images to learn from without masks."),
    ] = None,
    unlabelled_split: Annotated[str, typer.Option(help="The split of that store.")] = "unlabelled",
    method: Annotated[str | None, typer.Option(help="Instead of the recipe's; by name.")] = None,
    version: Annotated[
        str | None, typer.Option(help="The store's version or tag; default: the newest.")
    ] = None,
    view: ViewOption = None,
    minutes: Annotated[
        float | None, typer.Option(min=0.01, help="Time for everything, instead of the recipe's.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Instead of the recipe's.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Instead of the recipe's.")] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume/--no-resume", help="Go on with the run in --out, or drop it."),
    ] = True,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Ray Train workers; default: one a GPU.")
    ] = None,
    gpu: Annotated[
        bool | None,
        typer.Option("--gpu/--cpu", help="What Ray's workers take; default: GPUs if enough."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="A model URI instead of the recipe's; to start from weights, say the same one "
            "with ?backbone_weights=FILE."
        ),
    ] = None,
    tensorboard: Annotated[
        str | None, typer.Option(help="A folder for TensorBoard's files, beside training.html.")
    ] = None,
    max_errors: MaxErrorsOption = "0",
    runner: RunnerOption = "auto",
    address: AddressOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Train a model as a recipe says; stop and resume at will."""
    with command("train", as_json=as_json, debug=debug, max_errors=max_errors) as summary:
        # Threads that spin while they wait take the cores from whoever works on them: on a machine
        # that others use too, a step took 10 s instead of 2. Set before torch starts its threads.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        from pipeline.pseudo.view import View
        from pipeline.pseudo.viewed_store import open_viewed
        from pipeline.store import Store
        from pipeline.training.launch import Where, launch
        from pipeline.training.recipe import read_recipe
        from pipeline.training.selection import selected
        from pipeline.training.supervised import Listener, Plan

        chosen = read_recipe(
            recipe, model=model, method=method, minutes=minutes, epochs=epochs, seed=seed
        )
        where = Where(cast("Any", runner), workers, address, gpu)
        source = open_viewed(store, version, View.parse(view) if view else None)
        few = None if labelled is None else selected(source, split, labelled)
        others = None if unlabelled is None else Store.open(unlabelled)
        plan = Plan(
            source, chosen, out, split, val_split, tensorboard,
            labelled=few, unlabelled=others, unlabelled_split=unlabelled_split,
        )  # fmt: skip
        with Progress("train", unit="steps") as progress:
            listener = Listener(_telling_steps(progress), _tell_epoch)
            result = launch(plan, where, listener, resume=resume)
        _book(summary, result, out)


def _telling_steps(progress: Progress) -> Callable[[int, int], None]:
    """Return what hears of steps, counted from the run's start; the first may be a later one."""
    heard = False

    def step(done: int, total: int) -> None:
        nonlocal heard
        if not heard:
            progress.go_on(done - 1)
            heard = True
        progress.reach(done, total or None)

    return step


def _tell_epoch(row: dict[str, Any]) -> None:
    loss = "" if row["loss"] is None else f"loss {row['loss']:.4f}, "
    scored = f"mIoU {100 * row['miou']:.1f}, " if "miou" in row else ""
    note(f"epoch {row['epoch']}: {loss}{scored}lr {row['lr']:.2g}, {row['seconds']:.0f} s")


def _book(summary: Summary, result: Result, out: str) -> None:
    """Put the run into the summary; an image that couldn't be read counts as failed, once."""
    from pipeline.report.training_page import PAGE

    summary.inputs = result.train_rows + result.val_rows + result.other_rows
    summary.failed = result.unreadable
    summary.done = summary.inputs - summary.failed
    summary.paths["model"] = out
    summary.paths["page"] = f"{out.rstrip('/')}/{PAGE}"
    summary.figures |= {
        "miou": result.miou,
        "best_epoch": result.best_epoch,
        "epochs": len(result.history),
        "model_digest": result.digest,
        "train_seconds": result.seconds,
        "wait_share": result.wait_share,
    }
    for name, why in list(result.failures.items())[:_SHOWN]:
        note(f"{name}: {why}")
    if result.miou is not None:
        note(f"best: mIoU {100 * result.miou:.2f} after epoch {result.best_epoch}")
