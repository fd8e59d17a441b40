"""Validation: mIoU at the images' full size, from one confusion matrix over the whole split."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from pipeline.metrics.confusion import ConfusionMatrix, Tally, class_index, count_pairs
from pipeline.models.logits import at_size, padded
from pipeline.training.augment import resized
from pipeline.training.batches import stacked, val_examples

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pipeline.models.loaded import Preprocessing
    from pipeline.training.batches import Batch
    from pipeline.training.data import Reader
    from pipeline.training.example import Example
    from pipeline.training.place import Place


class Normaliser:
    """Turns batches into a network's input, channels last, on its device."""

    def __init__(self, preprocessing: Preprocessing, device: torch.device) -> None:
        shape = (1, 3, 1, 1)
        self._device = device
        self._mean = torch.tensor(preprocessing.mean, device=device).view(shape) * 255
        self._scale = 1 / (torch.tensor(preprocessing.std, device=device).view(shape) * 255)
        self._depth = preprocessing.depth

    def __call__(self, batch: Batch) -> Tensor:
        """Return float [N, 3, H, W], or [N, 4, H, W] with depth, where 0 is "not measured" too.

        NHWC bytes become channels-last without a copy.
        """
        colours = self.colours(batch.images)
        if batch.depth is None or self._depth is None:
            return colours
        metres = batch.depth.to(self._device, non_blocking=True)[:, None]
        mean, std = self._depth
        depth = torch.where(metres > 0, (metres - mean) / std, 0.0)
        return torch.cat((colours, depth), dim=1).contiguous(memory_format=torch.channels_last)

    def colours(self, images: Tensor) -> Tensor:
        """Return float [N, 3, H, W] of uint8 images [N, H, W, 3]."""
        moved = images.to(self._device, non_blocking=True).permute(0, 3, 1, 2)
        return (moved.float() - self._mean) * self._scale


def validate(
    module: nn.Module,
    reader: Reader,
    place: Place,
    preprocessing: Preprocessing,
    *,
    batch: int,
    precision: str,
) -> Tally:
    """Return the tally of the split's pixels over all workers; the module is in eval mode after."""
    classes = reader.channels.count
    index = class_index(range(classes))
    matrix = ConfusionMatrix.empty(classes)
    normalise = Normaliser(preprocessing, place.device)
    module.eval()
    with torch.inference_mode():
        for group in val_examples(reader, place, batch):
            inputs = normalise(_stack(group, preprocessing.size))
            inside = (inputs.shape[2], inputs.shape[3])
            with place.autocast(precision):
                logits = module(padded(inputs, preprocessing.multiple))
            for one, example in zip(logits.float(), group, strict=True):
                height, width = example.labels.shape
                full = at_size(one[None], inside, preprocessing.multiple, (height, width))
                best = full[0].argmax(dim=0).cpu().numpy()
                found = best.astype(np.uint8) if classes <= 255 else best.astype(np.uint16)
                matrix.update(count_pairs(example.labels, found), index, index)
    matrix.counts = place.total(torch.from_numpy(matrix.counts)).numpy()
    return matrix.tally()


def _stack(group: list[Example], size: tuple[int, int] | None) -> Batch:
    return stacked(group if size is None else [resized(e, *size) for e in group])
