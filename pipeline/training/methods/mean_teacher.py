"""Mean Teacher with CutMix: the student agrees with its own average on mixed images.

Tarvainen and Valpola 2017 (1703.01780); for segmentation French et al. 2020 (1906.01916): one box
of another image is put into each, and the teacher's answers are mixed likewise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch

from pipeline.training.methods.base import Base
from pipeline.training.methods.views import (
    at_size,
    boxes,
    hardened,
    mixed,
    pseudo_labels,
    pseudo_loss,
    ramp,
)
from pipeline.training.schedule import MovingAverage

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pipeline.training.methods.options import MeanTeacher as Options
    from pipeline.training.unlabelled import Streams


class MeanTeacher(Base):
    """The student is trained, the teacher, its moving average, is what is used."""

    @property
    def options(self) -> Options:
        """The recipe's options of this method."""
        return cast("Options", self.recipe.method)

    def _averaged(self) -> MovingAverage:
        return MovingAverage(self.module, self.options.decay)

    @property
    def teacher(self) -> nn.Module:
        """The moving average of the student, in evaluation mode."""
        return self.best_guess.eval()

    def losses(self, streams: Streams, share: float) -> dict[str, Tensor]:
        """Return the loss on labels and that on the teacher's answers."""
        options, device = self.options, self.place.device
        images, labels = self.supervised(streams)
        pictures = streams.unlabelled()
        clean, shown = pictures.images.to(device), pictures.shown.to(device)
        size = (shown.shape[1], shown.shape[2])
        with torch.no_grad(), self.place.autocast(self.recipe.precision):
            answer = self.teacher(self.normalise(clean))
        box = boxes((len(shown), *size), options.area[0], options.area[1]).to(device)
        hard = self.normalise(hardened(mixed(clean, box)))
        out = self.logits(torch.cat([images, hard]))
        own, other = out[: len(images)], out[len(images) :]
        confidence, best = pseudo_labels(answer, size)
        confidence, best = mixed(confidence, box), mixed(best, box)
        sure, shown = confidence >= options.threshold, mixed(shown, box)
        if options.loss == "cross-entropy":
            loss = pseudo_loss(other, best, sure, shown)
        else:
            loss = _squared(other, answer, box, sure & shown, shown)
        self.note(kept=(sure & shown).sum() / shown.sum().clamp_min(1))
        return {
            "loss_labelled": self.criterion(own, labels, share),
            "loss_unlabelled": options.weight * ramp(share, options.ramp) * loss,
        }


def _squared(logits: Tensor, answer: Tensor, box: Tensor, sure: Tensor, shown: Tensor) -> Tensor:
    """Return the squared difference of probabilities, scaled by the share of sure pixels."""
    size = (box.shape[1], box.shape[2])
    wanted = mixed(at_size(answer, size).softmax(1).movedim(1, -1), box)
    found = at_size(logits, size).softmax(1).movedim(1, -1)
    pixels = shown.sum().clamp_min(1)
    return ((found - wanted) ** 2).sum(-1).mul(shown).sum() / pixels * (sure.sum() / pixels)
