"""DecoupledNet's training: image-level labels teach which classes, few masks teach where.

Hong et al. 2015 (1506.04924). The first part of the run trains the classification network on images
with image-level labels and on the labelled ones. Then it is frozen, and the segmentation network
learns figure against ground, one of an image's classes at a time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch.nn import functional as F  # noqa: N812 - its name everywhere

from pipeline.errors import UsageError
from pipeline.models.decouplednet import DecoupledNet as Network
from pipeline.training.methods.base import Base, held

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.models import LoadedModel
    from pipeline.training.learner import Task
    from pipeline.training.methods.options import DecoupledNet as Options
    from pipeline.training.place import Place
    from pipeline.training.recipe import Recipe
    from pipeline.training.unlabelled import Streams

_IGNORED = -1


class DecoupledNet(Base):
    """Two stages; which one it is follows from the share of the run that is over."""

    module: Network

    def __init__(self, model: LoadedModel, recipe: Recipe, place: Place, task: Task) -> None:
        if not isinstance(model.module, Network):
            raise UsageError(
                f"{recipe.model}: method decouplednet trains its own network; "
                "model: zoo:decouplednet"
            )
        super().__init__(model, recipe, place, task)

    @property
    def options(self) -> Options:
        """The recipe's options of this method."""
        return cast("Options", self.recipe.method)

    def pace(self, share: float) -> float:
        """Return the share of the stage: each has a learning rate that rises and falls."""
        split = self.options.classify
        return share / split if share < split else (share - split) / (1 - split)

    def losses(self, streams: Streams, share: float) -> dict[str, Tensor]:
        """Return the loss of the network whose turn it is; the other gets no gradient."""
        images, labels = self.supervised(streams)
        if share < self.options.classify:
            return self._classification(streams, images, labels)
        return self._segmentation(images, labels)

    def _classification(
        self, streams: Streams, images: Tensor, labels: Tensor
    ) -> dict[str, Tensor]:
        pictures = streams.weak()
        both = torch.cat([images, self.normalise(pictures.images)])
        present = torch.cat([self._present(labels), pictures.present.to(self.place.device)])
        with self.place.autocast(self.recipe.precision):
            scores = self.module.scores(both)
        counted = self.module.counted.to(present.device)
        each = F.binary_cross_entropy_with_logits(scores.float(), present, reduction="none")
        return {"loss_classification": (each * counted).mean()}

    def _present(self, labels: Tensor) -> Tensor:
        """Return float [N, C]: which classes each label map shows."""
        classes = torch.arange(self.module.classes, device=labels.device)
        return (labels.long().flatten(1)[:, None] == classes[:, None]).any(-1).float()

    def _segmentation(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        self.module.classifier.eval()  # its statistics stay as its weights do
        asked = self._asked(self._present(labels))
        which = asked.any(1).nonzero()[:, 0]
        if not len(which):
            first = next(self.module.segmenter.parameters())
            return {"loss_segmentation": 0 * first.sum()}
        # The bridge runs on the classifier's weights too, so it is held and not only unrecorded.
        with held(self.module.classifier), self.place.autocast(self.recipe.precision):
            seen = self.module.see(images)
            out = self.module.figure(seen, which, asked[which].float())
        target = _figure(labels[which].long(), asked[which], self.task.void)
        size = (target.shape[1], target.shape[2])
        scores = F.interpolate(out.float(), size, mode="bilinear", align_corners=False)
        loss = F.cross_entropy(scores, target, ignore_index=_IGNORED, reduction="sum")
        return {"loss_segmentation": loss / (target != _IGNORED).sum().clamp_min(1)}

    def _asked(self, present: Tensor) -> Tensor:
        """Return bool [N, C]: for each image one of its classes, at times all of them.

        All at once only where the model has a background, which is learned that way.
        """
        there = (present * self.module.counted.to(present.device)).cpu()
        draws = torch.rand(there.shape) * there
        one = F.one_hot(draws.argmax(1), there.shape[1]).bool() & there.bool()
        if self.module.background is not None:
            every = torch.rand(len(there), 1) < self.options.together
            one = torch.where(every, there.bool(), one)
        return one.to(present.device)


def _figure(labels: Tensor, asked: Tensor, void: int) -> Tensor:
    """Return 1 where a label [N, H, W] is among those asked for [N, C], else 0; -1 for void."""
    safe = labels.masked_fill(labels == void, 0)
    inside = asked.gather(1, safe.flatten(1)).view_as(labels)
    return inside.long().masked_fill(labels == void, _IGNORED)
