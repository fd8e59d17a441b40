"""UniMatch: hard views agree with the easy one, in the image and in the features.

Yang et al. 2023 (2208.09910): an image's pseudo-labels come from its easy view; two hard CutMix
views and one with dropped features learn them. Version 2 (2410.10777): the pseudo-labels come from
the moving average, and the two hard views get complementary halves of the features.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch

from pipeline.errors import UsageError
from pipeline.training.methods.base import Base
from pipeline.training.methods.features import changed, complementary, with_dropped
from pipeline.training.methods.views import boxes, hardened, mixed, pseudo_labels, pseudo_loss
from pipeline.training.schedule import MovingAverage

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.training.methods.options import UniMatch as Options
    from pipeline.training.unlabelled import Streams

_AREA = (0.02, 0.4)
_MIXED = 0.5
"""How often a hard view is mixed."""


class UniMatch(Base):
    """Version 1 uses the network itself (or the recipe's average), version 2 its teacher."""

    @property
    def options(self) -> Options:
        """The recipe's options of this method."""
        return cast("Options", self.recipe.method)

    def _averaged(self) -> MovingAverage | None:
        if self.options.version == 1:
            return super()._averaged()
        return MovingAverage(self.module, self.options.decay)

    def losses(self, streams: Streams, share: float) -> dict[str, Tensor]:
        """Return the loss on labels and those on pseudo-labels; both halves count alike."""
        images, labels = self.supervised(streams)
        pictures = streams.unlabelled()
        clean, shown = (x.to(self.place.device) for x in (pictures.images, pictures.shown))
        if self.options.version == 2:
            return self._second(images, labels, clean, shown, share)
        return self._first(images, labels, clean, shown, share)

    def _first(
        self, images: Tensor, labels: Tensor, clean: Tensor, shown: Tensor, share: float
    ) -> dict[str, Tensor]:
        count, size = len(images), (shown.shape[1], shown.shape[2])
        with changed(self.module, with_dropped(count, self.options.drop)):
            out = self.logits(torch.cat([images, self.normalise(clean)]))
        if len(out) != count + 2 * len(clean):
            raise UsageError(
                f"{self.recipe.model}: its features can't be perturbed, as it loses the images "
                "that are added to them; use method mean-teacher"
            )
        own, (easy, dropped) = out[:count], out[count:].chunk(2)
        confidence, best = pseudo_labels(easy, size)
        hard = self._hard(clean, shown, confidence, best, plain=False)
        sure = confidence >= self.options.threshold
        features = pseudo_loss(dropped, best, sure, shown)
        return self._weighed(self.criterion(own, labels, share), 0.5 * hard + 0.5 * features)

    def _second(
        self, images: Tensor, labels: Tensor, clean: Tensor, shown: Tensor, share: float
    ) -> dict[str, Tensor]:
        size = (shown.shape[1], shown.shape[2])
        with torch.no_grad(), self.place.autocast(self.recipe.precision):
            answer = self.best_guess.eval()(self.normalise(clean))
        confidence, best = pseudo_labels(answer, size)
        hard = self._hard(clean, shown, confidence, best, plain=True)
        return self._weighed(self.criterion(self.logits(images), labels, share), hard)

    def _hard(
        self, clean: Tensor, shown: Tensor, confidence: Tensor, best: Tensor, *, plain: bool
    ) -> Tensor:
        """Return the mean loss of two hard views; `plain` has them share one set of channels."""
        views = [(self._box(shown), hardened(clean)) for _ in range(2)]
        inputs = self.normalise(torch.cat([mixed(hard, box) for box, hard in views]))
        if plain:
            with changed(self.module, complementary):
                outs = self.logits(inputs).chunk(2)
        else:
            outs = self.logits(inputs).chunk(2)
        total = torch.zeros((), device=self.place.device)
        for (box, _), out in zip(views, outs, strict=True):
            sure = mixed(confidence, box) >= self.options.threshold
            total = total + 0.5 * pseudo_loss(out, mixed(best, box), sure, mixed(shown, box))
            self.note(kept=(sure & mixed(shown, box)).sum() / shown.sum().clamp_min(1))
        return total

    def _box(self, shown: Tensor) -> Tensor:
        count, height, width = shown.shape
        chosen = torch.rand(count) < _MIXED
        box = boxes((count, height, width), *_AREA) & chosen[:, None, None]
        return box.to(shown.device)

    def _weighed(self, labelled: Tensor, others: Tensor) -> dict[str, Tensor]:
        return {"loss_labelled": 0.5 * labelled, "loss_unlabelled": 0.5 * others}
