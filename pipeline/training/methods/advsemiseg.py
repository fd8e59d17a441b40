"""AdvSemiSeg: a discriminator of label maps says which pixels of a prediction to trust.

Hung et al. 2018 (1802.07934). The discriminator tells, pixel by pixel, truth from prediction. The
segmenter learns to deceive it, and on images without labels learns its own labels where the
discriminator takes them for truth. The discriminator sees predictions of labelled images only.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, Final, cast

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - its name everywhere

from pipeline.errors import UsageError
from pipeline.training.methods.base import Base, held
from pipeline.training.methods.views import at_size, pseudo_loss
from pipeline.training.schedule import rate

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.models import LoadedModel
    from pipeline.training.learner import Task
    from pipeline.training.methods.options import AdvSemiSeg as Options
    from pipeline.training.place import Place
    from pipeline.training.recipe import Recipe
    from pipeline.training.unlabelled import Streams

_STRIDE: Final = 32
_BETAS: Final = (0.9, 0.99)


class Discriminator(nn.Module):
    """Logits [N, 1, H, W] of "this is truth" for maps [N, C, H, W]; sides of 32 pixels or more.

    2,783,169 parameters with 21 classes.
    """

    def __init__(self, classes: int, width: int = 64) -> None:
        channels = [classes, width, 2 * width, 4 * width, 8 * width]
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(channels):
            layers += [nn.Conv2d(before, after, 4, 2, 1), nn.LeakyReLU(0.2)]
        super().__init__()
        self.layers = nn.Sequential(*layers, nn.Conv2d(channels[-1], 1, 4, 2, 1))

    def forward(self, maps: Tensor) -> Tensor:
        """Return one logit a pixel."""
        out: Tensor = self.layers(maps)
        return F.interpolate(out, maps.shape[-2:], mode="bilinear", align_corners=False)


class AdvSemiSeg(Base):
    """Segmenter and discriminator take turns in each step."""

    def __init__(self, model: LoadedModel, recipe: Recipe, place: Place, task: Task) -> None:
        super().__init__(model, recipe, place, task)
        if min(recipe.augment.crop) < _STRIDE:
            raise UsageError(
                f"method advsemiseg needs crops of {_STRIDE} pixels or more, not "
                f"{list(recipe.augment.crop)}"
            )
        self._classes = len(model.label_space.train_ids)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            self.discriminator = Discriminator(self._classes).to(place.device)
        self._critic = torch.optim.Adam(
            self.discriminator.parameters(), lr=self.options.critic_lr, betas=_BETAS
        )
        self._seen: list[tuple[Tensor, Tensor]] = []

    @property
    def options(self) -> Options:
        """The recipe's options of this method."""
        return cast("Options", self.recipe.method)

    def losses(self, streams: Streams, share: float) -> dict[str, Tensor]:
        """Return the segmenter's losses; nothing of them reaches the discriminator."""
        options = self.options
        images, labels = self.supervised(streams)
        size = (labels.shape[1], labels.shape[2])
        out = self.logits(images)
        found = at_size(out, size).softmax(1)
        self._seen.append((found.detach(), labels))
        pictures = streams.unlabelled()
        shown = pictures.shown.to(self.place.device)
        others = at_size(self.logits(self.normalise(pictures.images)), size)
        with held(self.discriminator):
            deceived = truthful(self.discriminator(found), labels != self.task.void)
            judged = self.discriminator(others.softmax(1))
            deceived_too = truthful(judged, shown)
        losses = {
            "loss_labelled": self.criterion(out, labels, share),
            "loss_deceive": options.adversarial * deceived,
            "loss_deceive_unlabelled": options.adversarial_unlabelled * deceived_too,
        }
        if share >= options.start:
            trusted = judged.detach().sigmoid()[:, 0] > options.threshold
            loss = pseudo_loss(others, others.detach().argmax(1), trusted, shown)
            losses["loss_unlabelled"] = options.weight * loss
            self.note(kept=(trusted & shown).sum() / shown.sum().clamp_min(1))
        return losses

    def also(self, streams: Streams, share: float) -> dict[str, Tensor]:
        """Teach the discriminator truth from prediction; nothing of it reaches the segmenter."""
        how = self.recipe.optimiser
        for group in self._critic.param_groups:
            group["lr"] = self.options.critic_lr * rate(share, how)
        self._critic.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.place.device)
        for found, labels in self._seen:
            valid = labels != self.task.void
            truth = F.one_hot(labels.long().masked_fill(~valid, 0), self._classes)
            real = truthful(self.discriminator(truth.movedim(-1, 1).float()), valid)
            fake = truthful(-self.discriminator(found), valid)
            loss = 0.5 * (real + fake) / len(self._seen)
            torch.autograd.backward(loss)
            total += loss.detach()
        self._critic.step()
        self._seen = []
        return {"loss_discriminator": total}

    def parts(self) -> dict[str, Any]:
        """Return all that has a state, by name."""
        return super().parts() | {"discriminator": self.discriminator, "critic": self._critic}


def truthful(logits: Tensor, valid: Tensor) -> Tensor:
    """Return the mean of -log sigmoid over valid pixels; logits [N, 1, H, W], bool [N, H, W]."""
    return (F.softplus(-logits[:, 0]) * valid).sum() / valid.sum().clamp_min(1)
