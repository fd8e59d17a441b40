"""Supervised training: a recipe's losses on a store's labels, the best weights by validation mIoU.

One loop for one process and for many: `Place` says which worker this is. After every epoch the run
can be killed and resumed; on one process with `epochs` the result is that of an unbroken run.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from pipeline.errors import ModelError, StoreError
from pipeline.files import open_sink
from pipeline.models.directory import amend_training, read_description, save_model
from pipeline.models.weights import digest
from pipeline.pseudo.viewed_store import ViewedStore
from pipeline.report.training_page import PAGE, training_page
from pipeline.training import checkpoint
from pipeline.training.batches import Epoch
from pipeline.training.board import Board, check_board
from pipeline.training.cache import Cache
from pipeline.training.data import Channels, Reader
from pipeline.training.learner import Task, open_model
from pipeline.training.losses import criterion
from pipeline.training.methods import make_method
from pipeline.training.schedule import Clock
from pipeline.training.unlabelled import ImageReader, open_streams
from pipeline.training.validate import validate
from pipeline.training.weighting import class_weights

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from pipeline.metrics.confusion import Tally
    from pipeline.store import Store
    from pipeline.training.methods.options import Stream
    from pipeline.training.place import Place
    from pipeline.training.recipe import Recipe

_NAMED_FAILURES: Final = 100
_NO_MATTER: Final = ("cache", "cache_mib")
"""Keys of a recipe that change nothing of what comes out."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to train, on what, and where it is written; picklable."""

    store: Store
    recipe: Recipe
    out: str
    split: str = "train"
    val_split: str = "val"
    tensorboard: str | None = None
    """A folder for TensorBoard's files."""
    labelled: frozenset[str] | None = None
    """The ids of the labelled images to learn from; None: all."""
    unlabelled: Store | None = None
    """Where images without masks are, for methods that learn from them.

    None: the store's own that have none, those of its split "unlabelled", and those whose masks
    `labelled` holds back.
    """
    unlabelled_split: str = "unlabelled"
    """The split of that other store."""

    def identity(self) -> dict[str, Any]:
        """Return what must agree for a killed run to go on."""
        recipe = self.recipe.plain()
        view = self.store.view.identity() if isinstance(self.store, ViewedStore) else None
        return {
            "recipe": {k: v for k, v in recipe.items() if k not in _NO_MATTER},
            "store version": self.store.version,
            **({"view": view} if view else {}),
            "split": self.split,
            "val split": self.val_split,
            "labelled": None if self.labelled is None else _digest(self.labelled),
            "unlabelled": None
            if self.unlabelled is None
            else [self.unlabelled.url, self.unlabelled.version, self.unlabelled_split],
        }

    def readers(self, channels: Channels) -> tuple[Reader, dict[Stream, ImageReader]]:
        """Return the reader of labelled images, and of what else the recipe's method needs."""
        recipe = self.recipe
        labelled = Reader(
            self.store, self.split, channels, oversample=recipe.oversample, only=self.labelled,
            with_depth=recipe.depth is not None,
        )  # fmt: skip
        if recipe.cache == "memory":
            labelled.cache = Cache(recipe.cache_mib << 20)
        source, split = self.store, self.split
        taken: Reader | None = labelled
        if self.unlabelled is not None:
            source, split, taken = self.unlabelled, self.unlabelled_split, None
        return labelled, {
            name: ImageReader(source, split, channels, taken=taken, weak=name == "weak")
            for name in sorted(recipe.method.needs)
        }


def _digest(ids: frozenset[str]) -> str:
    """Name a choice of images in a few letters."""
    return f"{len(ids)} images {sha256(chr(10).join(sorted(ids)).encode()).hexdigest()[:12]}"


@dataclass(frozen=True, slots=True)
class Listener:
    """Hears of each step (how many of how many, 0 if open) and of each epoch when it is saved."""

    step: Callable[[int, int], None] = lambda done, total: None
    epoch: Callable[[dict[str, Any]], None] = lambda row: None


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a run."""

    history: list[dict[str, Any]]
    """One entry an epoch: steps, loss, lr; `seconds` since the start; `train_seconds` of the steps
    alone, `wait` of them for batches; miou, pixel_accuracy and iou where validated."""
    best_epoch: int | None
    miou: float | None
    """Validation mIoU of the saved weights; None without a validation split."""
    digest: str
    train_rows: int
    val_rows: int
    other_rows: int
    """Images without masks that the method learned from."""
    unreadable: int
    failures: dict[str, str]
    """Image ids that could not be read, and why: the first hundred."""
    seconds: float
    finished: bool

    @property
    def wait_share(self) -> float | None:
        """The share of the steps' time that the device waited for batches; None where not known."""
        rows = [row for row in self.history if row.get("train_seconds")]
        total = sum(row["train_seconds"] for row in rows)
        return sum(row["wait"] for row in rows) / total if total else None


def read_result(url: str) -> Result:
    """Return what came of the run in a directory, from its model.json."""
    described = read_description(url)
    record = described["training"]
    return Result(
        history=record["epochs"],
        best_epoch=record["best_epoch"],
        miou=record["miou"],
        digest=described["digest"],
        train_rows=record["rows"]["train"],
        val_rows=record["rows"]["val"],
        other_rows=max(record["rows"].get(name, 0) for name in ("unlabelled", "weak")),
        unreadable=record["unreadable"],
        failures=record["unreadable_first"],
        seconds=record["seconds"],
        finished=record["finished"],
    )


def train(plan: Plan, place: Place, listener: Listener | None = None) -> None:
    """Train to the recipe's end and leave the best model in `plan.out`.

    A run that was killed goes on from its checkpoint there; a finished one is left as it is.

    Raises:
        StoreError: the split has no readable labels.
        ModelError: model and labels don't fit, or the loss is no longer a number.
    """
    run = _Run(plan, place, listener or Listener())
    while not run.over():
        run.epoch()
    run.finish()


def preflight(plan: Plan) -> None:
    """Check all that can be checked without training: recipe, model, labels, older run.

    Raises:
        SegmillError: as `train` would.
    """
    checkpoint.load(plan.out, plan.identity())
    weighted = plan.recipe.class_weights != "none"
    criterion(plan.recipe.loss, ignore_index=255, weights=torch.ones(1) if weighted else None)
    if plan.tensorboard is not None:
        check_board()
    model = open_model(plan.recipe, plan.store)
    _check_rows(plan, *plan.readers(Channels(model.label_space)))


def _check_rows(plan: Plan, reader: Reader, others: dict[Stream, ImageReader]) -> None:
    survey, url = reader.survey, reader.store.url
    if not survey.labelled:
        raise StoreError(
            f"{url}: split {reader.split!r} has no image with a mask; name another with --split"
        )
    if not survey.pixels.sum():
        raise StoreError(
            f"{url}: no pixel of split {reader.split!r} has a class of label space "
            f"{reader.channels.space.name!r}"
        )
    for other in others.values():
        other.check(plan.recipe.method.name)


class _Run:
    """One worker's part of a run: readers, learner, and how far it is."""

    def __init__(self, plan: Plan, place: Place, listener: Listener) -> None:
        recipe = plan.recipe
        self._plan, self._place, self._listener, self._recipe = plan, place, listener, recipe
        self._clock = Clock(None, None if recipe.minutes is None else recipe.minutes * 60)
        if place.device.type == "cpu":
            torch.set_num_threads(place.threads)
        else:
            torch.backends.cudnn.benchmark = True  # every batch has the crop's size
        found = checkpoint.load(plan.out, plan.identity())
        self._progress = checkpoint.Progress() if found is None else found[0]
        self._clock.before = self._progress.seconds
        self._model = open_model(recipe, plan.store)
        channels = Channels(self._model.label_space)
        self._train, self._others = plan.readers(channels)
        depth = recipe.depth is not None
        self._val = Reader(plan.store, plan.val_split, channels, with_depth=depth)
        _check_rows(plan, self._train, self._others)
        if recipe.epochs is not None:
            self._clock.total_steps = recipe.epochs * self._steps
        self._class_weights = self._weigh()
        weights = self._class_weights
        tensor = None if weights is None else torch.from_numpy(weights).to(place.device)
        self._learner = make_method(self._model, recipe, place, Task(channels.void, tensor))
        if found is not None:
            self._learner.restore(found[1])
        wanted = plan.tensorboard is not None and place.rank == 0
        self._board = Board(plan.tensorboard or "", self._progress.step) if wanted else None

    def _weigh(self) -> NDArray[np.float32] | None:
        survey = self._train.survey
        return class_weights(self._recipe.class_weights, survey.pixels, survey.home)

    @property
    def _steps(self) -> int:
        """Weight updates in an epoch."""
        recipe = self._recipe
        each = recipe.batch * recipe.accumulate * self._place.world
        return recipe.steps_per_epoch or max(1, self._train.samples // each)

    def over(self) -> bool:
        """Tell whether the recipe's end is reached."""
        last = self._recipe.epochs is not None and self._progress.epoch >= self._recipe.epochs
        if not self._progress.history:
            return self._progress.finished  # a run leaves a model, however short its time
        return self._progress.finished or last or self._share() >= 1 or self._stale()

    def _stale(self) -> bool:
        """Tell whether the last validations found nothing better, and the recipe minds."""
        patience, best = self._recipe.early_stop, self._progress.best_epoch
        if patience is None or best is None:
            return False
        later = sum("miou" in row and row["epoch"] > best for row in self._progress.history)
        return bool(later >= patience)

    def _share(self) -> float:
        """Return how much of the run is over, the same on all workers."""
        share = self._clock.progress(self._progress.step)
        return self._place.agree(share) if self._clock.budget is not None else share

    def epoch(self) -> None:
        """Train one epoch, validate, save."""
        progress, number = self._progress, self._progress.epoch
        # Dropout draws from torch's generator; seeding it here makes an epoch repeatable alone.
        seed = np.random.SeedSequence((self._recipe.seed, number, self._place.rank))
        torch.manual_seed(int(seed.generate_state(1)[0]))
        row = {"epoch": number + 1, **self._train_epoch(number), "step": progress.step}
        progress.epoch = number + 1
        best = self._validate(row) if self._due() else False
        progress.seconds = row["seconds"] = round(self._clock.elapsed, 2)
        failures: dict[str, str] = {}
        for reader in (self._train, self._val, *self._others.values()):
            failures |= reader.failures
        progress.failures |= self._place.gathered(failures)
        progress.history.append(row)
        if self._place.rank == 0:
            self._save(best=best)
        self._listener.epoch(row)

    def _train_epoch(self, number: int) -> dict[str, Any]:
        """Return the epoch's steps, mean loss over steps and workers, last rate, and times."""
        self._learner.module.train()
        progress, place, steps, lr = self._progress, self._place, 0, 0.0
        total = torch.zeros((), device=place.device)
        size = self._model.preprocessing.size
        shape = self._shape(number)
        with open_streams(self._train, self._others, self._recipe, shape, place, size) as streams:
            for _ in range(self._steps):
                share = self._share()
                if share >= 1 and progress.step:
                    break
                loss, lr = self._learner.step(streams, progress.step, share)
                total += loss
                steps += 1
                progress.step += 1
                self._listener.step(progress.step, self._clock.total_steps or 0)
            waited, seconds = streams.seconds()
        mean = float(place.total(total)) / max(1, steps * place.world)
        if not math.isfinite(mean):
            raise ModelError(
                f"{self._plan.out}: the loss is {mean} in epoch {number + 1}; lower optimiser.lr "
                "or set optimiser.clip_norm"
            )
        row = {"steps": steps, "loss": mean if steps else None, "lr": lr}
        row |= {"train_seconds": round(seconds, 3), "wait": round(waited, 3)}
        return row | self._learner.figures()

    def _shape(self, number: int) -> Epoch:
        recipe = self._recipe
        batches, skip = self._steps * recipe.accumulate, 0
        if recipe.steps_per_epoch:  # go on where the last epoch ended
            rows = -(-self._train.samples // self._place.world)
            skip = number * batches * recipe.batch % rows
        return Epoch(number, batches, skip)

    def _due(self) -> bool:
        """Tell whether this epoch ends with a validation: every n-th, and the last."""
        out_of_time = self._share() >= 1
        return self._progress.epoch % self._recipe.validate_every == 0 or out_of_time or self.over()

    def _validate(self, row: dict[str, Any]) -> bool:
        """Add the validation's figures to the epoch's row; tell whether these weights are best."""
        if not self._val.survey.labelled:
            return True
        start, progress = self._clock.elapsed, self._progress
        tally = validate(
            self._learner.best_guess,
            self._val,
            self._place,
            self._model.preprocessing,
            batch=self._recipe.batch,
            precision=self._recipe.precision,
        )
        if not tally.pixels:
            raise self._val.nothing_readable()
        self._clock.validation = self._clock.elapsed - start
        row.update(self._figures(tally))
        if progress.best_miou is not None and tally.miou <= progress.best_miou:
            return False
        progress.best_miou, progress.best_epoch = tally.miou, progress.epoch
        return True

    def _figures(self, tally: Tally) -> dict[str, Any]:
        """Return mIoU, pixel accuracy and the classes' IoU, None where a class never occurs."""
        space = self._model.label_space
        names = [space.by_id[i].name for i in space.train_ids]
        iou = {
            n: None if math.isnan(v) else float(v) for n, v in zip(names, tally.iou, strict=True)
        }
        return {"miou": tally.miou, "pixel_accuracy": tally.pixel_accuracy, "iou": iou}

    def _save(self, *, best: bool) -> None:
        """Write the model if it is the best, then the checkpoint that counts it as written."""
        plan = self._plan
        if best:
            model = replace(self._model, module=self._learner.best_guess)
            model.digest = digest(model)
            save_model(model, plan.out, self._record())
        self._show()
        checkpoint.save(plan.out, plan.identity(), self._progress, self._learner.state())

    def _show(self) -> None:
        """Write what is for people to look at."""
        page = training_page(self._record(), self._model.label_space, title=self._plan.out)
        open_sink(self._plan.out).write(PAGE, page)
        if self._board is not None and not self._progress.finished:
            self._board.add(self._progress.history[-1])

    def _record(self) -> dict[str, Any]:
        """Return what model.json says about the training."""
        plan, progress, place = self._plan, self._progress, self._place
        weights, space = self._class_weights, self._model.label_space
        names = [space.by_id[i].name for i in space.train_ids]
        return {
            "method": self._recipe.method.name,
            "recipe": self._recipe.plain(),
            "store": plan.store.url,
            "store_version": plan.store.version,
            "split": plan.split,
            "val_split": plan.val_split,
            "rows": self._rows(),
            "class_weights": None
            if weights is None
            else dict(zip(names, map(float, weights), strict=True)),
            "code": code_version(),
            "torch": torch.__version__,
            "workers": place.world,
            "device": place.device.type,
            "finished": progress.finished,
            "seconds": progress.seconds,
            "best_epoch": progress.best_epoch,
            "miou": progress.best_miou,
            "unreadable": len(progress.failures),
            "unreadable_first": dict(list(progress.failures.items())[:_NAMED_FAILURES]),
            "epochs": progress.history,
        }

    def _rows(self) -> dict[str, int]:
        train, val = self._train.survey, self._val.survey
        rows = {"train": train.labelled, "val": val.labelled, "without_mask": train.unlabelled}
        return rows | {name: reader.images for name, reader in self._others.items()}

    def finish(self) -> None:
        """Close the run's record."""
        progress, plan = self._progress, self._plan
        if self._place.rank == 0 and not progress.finished:
            progress.finished = True
            amend_training(plan.out, self._record())
            self._show()
            checkpoint.save(plan.out, plan.identity(), progress, self._learner.state())


def code_version() -> str:
    """Return segmill's version as installed."""
    try:
        return version("segmill")
    except PackageNotFoundError:
        return "0+unknown"
