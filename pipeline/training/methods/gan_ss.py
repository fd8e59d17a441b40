"""GAN-SS: the segmenter is a discriminator with one class more, "made by the generator".

Souly et al. 2017 (1703.09695). Softmax over K classes and fake, whose logit is 0: the segmenter
keeps its K channels. On labelled pixels it learns the classes, on images without labels "not fake",
on generated ones "fake"; the generator learns to have its images taken for real. In the weak form
the generator is given the classes that the image shall show, and "not fake" becomes "one of the
classes that the image-level labels name", for real and generated images alike.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, Final, cast

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - its name everywhere

from pipeline.training.methods.base import Base, held, own_statistics
from pipeline.training.methods.views import at_size
from pipeline.training.schedule import rate

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.models import LoadedModel
    from pipeline.training.learner import Task
    from pipeline.training.methods.options import GanSS as Options
    from pipeline.training.place import Place
    from pipeline.training.recipe import Recipe
    from pipeline.training.unlabelled import Streams

_NOISE: Final = 100
_BETAS: Final = (0.5, 0.999)
_STRIDE: Final = 32


class Generator(nn.Module):
    """Turns noise float [N, 100], with the classes to show [N, C] behind it, into images.

    Images are uint8-valued floats [N, H, W, 3] in 0..255, from transposed convolutions.
    """

    def __init__(self, size: tuple[int, int], labels: int = 0, width: int = 32) -> None:
        super().__init__()
        self._size = size
        self._grid = (-(-size[0] // _STRIDE), -(-size[1] // _STRIDE))
        channels = [16 * width, 8 * width, 4 * width, 2 * width, width]
        self._first = channels[0]
        self.start = nn.Linear(_NOISE + labels, channels[0] * self._grid[0] * self._grid[1])
        layers: list[nn.Module] = [nn.BatchNorm2d(channels[0]), nn.ReLU()]
        for before, after in itertools.pairwise(channels):
            up = nn.ConvTranspose2d(before, after, 4, 2, 1, bias=False)
            layers += [up, nn.BatchNorm2d(after), nn.ReLU()]
        self.grow = nn.Sequential(*layers, nn.ConvTranspose2d(channels[-1], 3, 4, 2, 1), nn.Tanh())

    def forward(self, noise: Tensor) -> Tensor:
        """Make images."""
        grid = self.start(noise).view(-1, self._first, *self._grid)
        images: Tensor = self.grow(grid)[..., : self._size[0], : self._size[1]]
        return (127.5 * (images + 1)).permute(0, 2, 3, 1)


def real_loss(logits: Tensor) -> Tensor:
    """Return -log(1 - p_fake) of each pixel, [N, H, W], for logits [N, K, H, W]."""
    return F.softplus(-logits.logsumexp(1))


def fake_loss(logits: Tensor) -> Tensor:
    """Return -log p_fake of each pixel, [N, H, W]."""
    return F.softplus(logits.logsumexp(1))


def among_loss(logits: Tensor, present: Tensor) -> Tensor:
    """Return -log of the probability of the classes present, of each pixel, [N, H, W].

    `present` is float [N, K], 1 for those; an image that names none counts as any real one.
    """
    named = present.sum(1, keepdim=True) > 0
    absent = ((present == 0) & named)[:, :, None, None]
    inside = logits.masked_fill(absent, -torch.inf).logsumexp(1)
    return F.softplus(logits.logsumexp(1)) - inside


class GanSS(Base):
    """Segmenter and generator take turns in each step."""

    def __init__(self, model: LoadedModel, recipe: Recipe, place: Place, task: Task) -> None:
        super().__init__(model, recipe, place, task)
        labels = len(model.label_space.train_ids) if self.options.form == "weak" else 0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            self.generator = Generator(recipe.augment.crop, labels, self.options.width)
        self.generator.to(place.device)
        self._maker = torch.optim.Adam(
            self.generator.parameters(), lr=self.options.generator_lr, betas=_BETAS
        )
        self._asked = torch.zeros(0)

    @property
    def options(self) -> Options:
        """The recipe's options of this method."""
        return cast("Options", self.recipe.method)

    def losses(self, streams: Streams, share: float) -> dict[str, Tensor]:
        """Return the segmenter's losses; nothing of them reaches the generator."""
        device, weight = self.place.device, self.options.weight
        images, labels = self.supervised(streams)
        weak = self.options.form == "weak"
        pictures = streams.weak() if weak else streams.unlabelled()
        shown, present = pictures.shown.to(device), pictures.present.to(device)
        size = (shown.shape[1], shown.shape[2])
        others = at_size(self.logits(self.normalise(pictures.images)), size)
        each = among_loss(others, present) if weak else real_loss(others)
        self._asked = present
        with torch.no_grad():
            made = self._made()
        with own_statistics(self.module):
            fakes = self.logits(self.normalise(made))
        return {
            "loss_labelled": self.criterion(self.logits(images), labels, share),
            "loss_real": weight * (each * shown).sum() / shown.sum().clamp_min(1),
            "loss_fake": weight * fake_loss(fakes).mean(),
        }

    def _made(self) -> Tensor:
        """Generate a batch of images, in the weak form with the classes of the last real ones."""
        noise = torch.randn(len(self._asked), _NOISE).to(self.place.device)
        if self.options.form == "weak":
            noise = torch.cat([noise, self._asked], 1)
        made: Tensor = self.generator(noise)
        return made

    def also(self, streams: Streams, share: float) -> dict[str, Tensor]:
        """Teach the generator to deceive the segmenter, which doesn't change."""
        how = self.recipe.optimiser
        for group in self._maker.param_groups:
            group["lr"] = self.options.generator_lr * rate(share, how)
        self._maker.zero_grad(set_to_none=True)
        with held(self.module), own_statistics(self.module):
            logits = self.module(self.normalise(self._made())).float()
        weak = self.options.form == "weak"
        each = among_loss(logits, self._asked) if weak else real_loss(logits)
        loss = each.mean()
        torch.autograd.backward(loss)
        self._maker.step()
        return {"loss_generator": loss.detach()}

    def parts(self) -> dict[str, Any]:
        """Return all that has a state, by name."""
        return super().parts() | {"generator": self.generator, "maker": self._maker}
