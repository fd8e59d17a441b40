"""Self-training in three stages: a teacher, a student of its reliable images, one of them all.

Yang et al. 2022, ST++ (2106.05095). The run is split into three equal parts. The teacher learns
from labels. An image is reliable where the teacher's earlier checkpoints agree with its last one;
the best half teach the first student, which then labels all images for the second. Every student
starts where the teacher started. What is saved is the best network of all three by validation, so
no student replaces a better teacher.
"""

from __future__ import annotations

import copy
from array import array
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np
import torch

from pipeline.errors import StoreError
from pipeline.models.logits import padded
from pipeline.training.methods.base import Base
from pipeline.training.methods.views import hardened, pseudo_labels, pseudo_loss

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from pipeline.models import LoadedModel
    from pipeline.training.learner import Task
    from pipeline.training.methods.options import SelfTraining as Options
    from pipeline.training.place import Place
    from pipeline.training.recipe import Recipe
    from pipeline.training.unlabelled import Pictures, Streams

STAGES: Final = 3
_CHECKPOINTS: Final = 3
"""The teacher's checkpoints that are compared, the last one included."""
_DRAWS: Final = 4
"""Batches looked through for one of reliable images."""


class SelfTraining(Base):
    """The loop's method: which stage it is follows from the share of the run that is over."""

    def __init__(self, model: LoadedModel, recipe: Recipe, place: Place, task: Task) -> None:
        self._multiple = model.preprocessing.multiple
        self._initial = copy.deepcopy(model.module.state_dict())
        self._stage, self._since, self._now = 0, 0, 0
        self._earlier: list[dict[str, Tensor]] = []
        self._reliable = torch.zeros(0, dtype=torch.int64)
        super().__init__(model, recipe, place, task)
        self.teacher: nn.Module = copy.deepcopy(self.module).requires_grad_(False).eval()

    @property
    def options(self) -> Options:
        """The recipe's options of this method."""
        return cast("Options", self.recipe.method)

    def pace(self, share: float) -> float:
        """Return the share of the stage: each has a learning rate that rises and falls."""
        return min(1.0, share * STAGES - self._stage)

    def age(self, number: int) -> int:
        """Return how many steps the stage's network has made."""
        return number - self._since

    def step(self, streams: Streams, number: int, share: float) -> tuple[Tensor, float]:
        """Go on to the next stage when its time has come; then change the weights once."""
        self._now = number
        while self._stage < min(STAGES - 1, int(share * STAGES)):
            self._advance(streams)
        result = super().step(streams, number, share)
        due = int((share * STAGES - self._stage) * _CHECKPOINTS)
        if self._stage == 0 and len(self._earlier) < min(due, _CHECKPOINTS - 1):
            self._earlier.append(copy.deepcopy(self.best_guess.state_dict()))
        return result

    def losses(self, streams: Streams, share: float) -> dict[str, Tensor]:
        """Return the loss on labels and, for students, that on the teacher's labels."""
        images, labels = self.supervised(streams)
        if self._stage == 0:
            return {"loss_labelled": self.criterion(self.logits(images), labels, share)}
        clean, shown, chosen = self._pictures(streams)
        size = (shown.shape[1], shown.shape[2])
        with torch.no_grad(), self.place.autocast(self.recipe.precision):
            answer = self.teacher(self.normalise(clean))
        confidence, best = pseudo_labels(answer, size)
        out = self.logits(torch.cat([images, self.normalise(hardened(clean))]))
        trusted = (confidence >= self.options.threshold) & chosen[:, None, None]
        loss = pseudo_loss(out[len(images) :], best, trusted, shown & chosen[:, None, None])
        own = self.criterion(out[: len(images)], labels, share)
        return {"loss_labelled": own, "loss_unlabelled": self.options.weight * loss}

    def _pictures(self, streams: Streams) -> tuple[Tensor, Tensor, Tensor]:
        """Return images, what of them is shown, and which of them may teach: bool [N]."""
        found: list[Pictures] = []
        chosen: list[Tensor] = []
        for _ in range(_DRAWS):
            batch = streams.unlabelled()
            found.append(batch)
            chosen.append(self._may_teach(batch.ids))
            if int(torch.cat(chosen).sum()) >= len(batch.ids):
                break
        flags = torch.cat(chosen)
        count = len(found[0].ids)
        order = (~flags).int().argsort(stable=True)[:count]
        images = torch.cat([b.images for b in found])[order]
        shown = torch.cat([b.shown for b in found])[order]
        device = self.place.device
        return images.to(device), shown.to(device), flags[order].to(device)

    def _may_teach(self, ids: tuple[str, ...]) -> Tensor:
        if self._stage != 1:
            return torch.ones(len(ids), dtype=torch.bool)
        return torch.isin(torch.tensor([_key(i) for i in ids]), self._reliable)

    def _advance(self, streams: Streams) -> None:
        """Make the network the teacher of the next stage's, which begins anew."""
        self.teacher.load_state_dict(self.best_guess.state_dict())
        if self._stage == 0:
            self._reliable = self._select(streams)
            self._earlier = []
        self.module.load_state_dict(self._initial)
        self._begin()
        self._stage, self._since = self._stage + 1, self._now

    def _select(self, streams: Streams) -> Tensor:
        """Return the keys of the images on which the checkpoints agree best."""
        assert streams.everything is not None
        others = []
        for state in self._earlier:
            other = copy.deepcopy(self.teacher)
            other.load_state_dict(state)
            others.append(other)
        keys, scores = array("q"), array("d")  # sixteen bytes an image
        for image_id, image in streams.everything():
            last = self._labels(self.teacher, image)
            keys.append(_key(image_id))
            agreed = [agreement(last, self._labels(other, image)) for other in others]
            scores.append(float(np.mean(agreed)) if agreed else 1.0)
        if not keys:
            raise StoreError("none of the images without masks can be read")
        order = np.argsort(-np.frombuffer(scores), kind="stable")
        kept = order[: max(1, round(self.options.reliable * len(keys)))]
        return torch.from_numpy(np.sort(np.frombuffer(keys, np.int64)[kept]))

    @torch.no_grad()
    def _labels(self, network: nn.Module, image: NDArray[np.uint8]) -> NDArray[np.int64]:
        pixels = self.normalise(torch.from_numpy(np.ascontiguousarray(image))[None])
        with self.place.autocast(self.recipe.precision):
            out = network(padded(pixels, self._multiple))
        labels: NDArray[np.int64] = out[0].argmax(0).cpu().numpy()
        return labels

    def state(self) -> dict[str, Any]:
        """Return all that a resumed run needs, the stage included."""
        return super().state() | {
            "stage": self._stage,
            "since": self._since,
            "teacher": self.teacher.state_dict(),
            "earlier": self._earlier,
            "reliable": self._reliable,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what `state` returned."""
        super().restore(state)
        self._stage, self._since = state["stage"], state["since"]
        self.teacher.load_state_dict(state["teacher"])
        self._earlier, self._reliable = state["earlier"], state["reliable"]


def agreement(one: NDArray[np.int64], other: NDArray[np.int64]) -> float:
    """Return the mean IoU of two label maps over the classes that either shows."""
    shown = np.union1d(one, other)
    ious = [((one == c) & (other == c)).sum() / ((one == c) | (other == c)).sum() for c in shown]
    return float(np.mean(ious))


def _key(image_id: str) -> int:
    """Return eight bytes that stand for an id: what is held of each of millions of images."""
    return int.from_bytes(blake2b(image_id.encode(), digest_size=8).digest(), signed=True)
