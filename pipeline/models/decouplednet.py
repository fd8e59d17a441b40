"""DecoupledNet: which classes an image shows, and for each of them where it is.

Hong, Noh and Han 2015 (1506.04924). A classification network; bridging layers that lead each
class's score back to the features that made it; a segmentation network that tells that class's
figure from the ground. The paper's is VGG-16 with its mirror image (134,342,484 and 173,107,906
parameters); this one has its shape with two convolutions a level, batch norms, no fully connected
layers of 4096, and a sixteenth to all of its width.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - its name everywhere

from pipeline.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

_LEVELS: Final = (1, 2, 4, 8, 8)
"""Channels of the levels, in widths; each is followed by a pooling."""
_PRESENT: Final = 0.5
_PAIRS: Final = 16
"""Images times classes that the segmentation network takes at once."""
_LEAST: Final = 1e-6


@dataclass(frozen=True, slots=True)
class Seen:
    """What the classification network makes of N images."""

    top: Tensor
    """[N, F, h, w]: the features after the last pooling."""
    places: list[Tensor]
    """The poolings' arg-max, by level."""
    sizes: list[tuple[int, int]]
    """Height and width before each pooling."""
    maps: Tensor
    """[N, C, h, w]: each class's scores, of which the largest counts."""
    passed: list[Tensor]
    """Where the head's rectifiers let signals through."""


class Classifier(nn.Module):
    """Encoder of five poolings and a head of three convolutions."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        channels = [3, *(width * n for n in _LEVELS)]
        pairs = itertools.pairwise(channels)
        self.levels = nn.ModuleList(
            nn.Sequential(_unit(before, after), _unit(after, after)) for before, after in pairs
        )
        top = channels[-1]
        self.first = nn.Conv2d(top, 2 * top, 3, padding=1)
        self.second = nn.Conv2d(2 * top, 2 * top, 1)
        self.score = nn.Conv2d(2 * top, classes, 1)

    def forward(self, images: Tensor) -> Seen:
        """Classify images [N, 3, H, W] whose sides are 32 or more."""
        x, places, sizes = images, [], []
        for level in self.levels:
            sizes.append((x.shape[2], x.shape[3]))
            x, place = F.max_pool2d(level(x), 2, return_indices=True)
            places.append(place)
        first = self.first(x)
        second = self.second(F.relu(first))
        return Seen(x, places, sizes, self.score(F.relu(second)), [first > 0, second > 0])

    def saliency(self, seen: Seen, which: Tensor, asked: Tensor) -> Tensor:
        """Return [P, F, h, w]: the asked classes' scores led back to the features.

        `which` [P] are images, `asked` float [P, C] their classes. The largest score of each class,
        as a probability, goes back from its place through the head's transposed weights where the
        rectifiers were open: the gradient of the score.
        """
        maps = seen.maps[which]
        flat = maps.flatten(2)
        best, place = flat.max(2)
        value = (best.sigmoid() * asked).to(flat.dtype)
        seed = torch.zeros_like(flat).scatter(2, place[..., None], value[..., None])
        x = F.conv_transpose2d(seed.view_as(maps), self.score.weight) * seen.passed[1][which]
        x = F.conv_transpose2d(x, self.second.weight) * seen.passed[0][which]
        return F.conv_transpose2d(x, self.first.weight, padding=1)


class Segmenter(nn.Module):
    """Figure and ground of one class, from features, its saliency and the poolings' places."""

    def __init__(self, width: int) -> None:
        super().__init__()
        channels = [width * n for n in _LEVELS]
        top = channels[-1]
        self.features, self.salient = nn.BatchNorm2d(top), nn.BatchNorm2d(top)
        self.bridge = nn.Sequential(_unit(2 * top, 2 * top), _unit(2 * top, top))
        after = [channels[0], *channels[:-1]]
        self.levels = nn.ModuleList(
            nn.Sequential(_unit(own, own), _unit(own, out))
            for own, out in zip(reversed(channels), reversed(after), strict=True)
        )
        self.decide = nn.Conv2d(channels[0], 2, 1)

    def forward(self, seen: Seen, which: Tensor, saliency: Tensor) -> Tensor:
        """Return logits [P, 2, H, W] for images [P]: ground, figure."""
        top = seen.top[which]
        x = self.bridge(torch.cat([self.features(top), self.salient(saliency)], 1))
        ups = zip(self.levels, reversed(seen.places), reversed(seen.sizes), strict=True)
        for level, place, size in ups:
            x = level(F.max_unpool2d(x, place[which], [2, 2], output_size=list(size)))
        out: Tensor = self.decide(x)
        return out


class DecoupledNet(nn.Module):
    """Return log-probabilities [N, classes, H, W] of an image batch; sides of 32 or more.

    Classes whose score is 0.5 or more take part, the best one always. `background`, a channel, is
    not classified: it is the ground of all the others together. In training mode all take part.
    """

    def __init__(self, classes: int, width: int = 16, background: int | None = None) -> None:
        super().__init__()
        if background is not None and not 0 <= background < classes:
            raise UsageError(f"decouplednet: background={background} is none of {classes} channels")
        self.classes, self.background = classes, background
        self.classifier = Classifier(classes, width)
        self.segmenter = Segmenter(width)

    @property
    def counted(self) -> Tensor:
        """Float [C]: 1 for the classes that are classified, 0 for the background."""
        out = torch.ones(self.classes)
        if self.background is not None:
            out[self.background] = 0
        return out

    def see(self, images: Tensor) -> Seen:
        """Run the classification network."""
        seen: Seen = self.classifier(images)
        return seen

    def scores(self, images: Tensor) -> Tensor:
        """Return each class's logit of being in the image, [N, C]."""
        return self.see(images).maps.amax((2, 3))

    def figure(self, seen: Seen, which: Tensor, asked: Tensor) -> Tensor:
        """Return logits [P, 2, H, W] of the ground and the figure of the classes asked for.

        `which` int64 [P] are images, `asked` float [P, C] has a 1 for each of their classes.
        """
        out: Tensor = self.segmenter(seen, which, self.classifier.saliency(seen, which, asked))
        return out

    def forward(self, images: Tensor) -> Tensor:
        """Find the classes, then segment each: k passes of the segmentation network for k."""
        seen = self.see(images)
        kept = self._kept(seen.maps.amax((2, 3)))
        pairs = kept.nonzero()
        asked = F.one_hot(pairs[:, 1], self.classes).to(images)
        if self.background is not None:
            asked = torch.cat([asked, kept.to(images)])
            union = torch.arange(len(images), device=images.device)
            ground = torch.full_like(union, self.background)
            pairs = torch.cat([pairs, torch.stack([union, ground], 1)])
        return self._joined(seen, pairs, asked, images)

    def _kept(self, scores: Tensor) -> Tensor:
        """Return bool [N, C]: the classes that take part."""
        counted = self.counted.to(scores.device).bool()
        if self.training:
            return counted.expand_as(scores)
        best = scores.masked_fill(~counted, -torch.inf).argmax(1)
        return (scores.sigmoid() > _PRESENT) & counted | F.one_hot(best, self.classes).bool()

    def _joined(self, seen: Seen, pairs: Tensor, asked: Tensor, images: Tensor) -> Tensor:
        """Put the passes' figures into their channels; pixels without support get equal shares."""
        height, width = images.shape[-2:]
        shape = (len(images) * self.classes, height, width)
        out = torch.full(shape, _LEAST, device=images.device)
        at = pairs[:, 0] * self.classes + pairs[:, 1]
        found = []
        for start in range(0, len(pairs), _PAIRS):
            part = slice(start, start + _PAIRS)
            share = self.figure(seen, pairs[part, 0], asked[part]).float().softmax(1)
            ground = pairs[part, 1] == (-1 if self.background is None else self.background)
            found.append(torch.where(ground[:, None, None], share[:, 0], share[:, 1]))
        out = out.index_put((at,), torch.cat(found).clamp_min(_LEAST))
        chances = out.view(len(images), self.classes, height, width)
        return (chances / chances.sum(1, keepdim=True)).log()


def _unit(channels: int, out: int) -> nn.Sequential:
    conv = nn.Conv2d(channels, out, 3, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out), nn.ReLU(inplace=True))
