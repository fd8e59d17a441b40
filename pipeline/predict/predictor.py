"""From pixels on a device to each pixel's best class and its probability, by one model.

An answer depends on the image alone, never on those beside it in a batch: images are resized or
padded by their own size, and a batch holds images whose inputs have one shape.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch.nn import functional as F  # noqa: N812 - torch's own convention

from pipeline.errors import ImageTooLarge, InputError, ModelError
from pipeline.models.logits import at_size, padded
from pipeline.predict.instances import Canvas, find

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from pipeline.models.loaded import BoxMasks, LoadedModel, QueryMasks
    from pipeline.predict.options import LabelOptions
    from pipeline.record import Instance

_DTYPES: Final = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_LOGITS_BYTES: Final = 256 << 20
"""Most that logits at the images' size take on the device at a time."""


@dataclass(frozen=True, slots=True)
class Predicted:
    """A label map of class ids [H, W], and confidence uint8 [H, W] = round(255 p).

    `instances` are the objects of a model that finds them, else None; both maps are None for one
    that finds nothing but objects.
    """

    ids: NDArray[np.uint8] | NDArray[np.uint16] | None
    confidence: NDArray[np.uint8] | None
    instances: tuple[Instance, ...] | None = None


class Predictor:
    """One model on one device; turns images of one input shape into label maps."""

    def __init__(self, model: LoadedModel, device: torch.device, options: LabelOptions) -> None:
        self._model, self._device, self._options = model, device, options
        self._space = model.label_space
        prep = model.preprocessing
        if options.input_size is not None:
            prep = replace(prep, size=options.input_size)
        self._inside, self._multiple = prep.inside, prep.multiple
        shape = (1, 3, 1, 1)
        self._mean = torch.tensor(prep.mean, device=device).view(shape) * 255
        self._scale = 1 / (torch.tensor(prep.std, device=device).view(shape) * 255)
        lut = np.array(self._space.train_ids).astype(self._space.dtype)
        # As int16: CUDA has few operations on uint16. The bits are the same.
        self._ids = torch.from_numpy(lut if lut.itemsize == 1 else lut.view(np.int16)).to(device)

    def input_shape(self, height: int, width: int) -> tuple[int, int]:
        """Return the height and width of the model's input for an image of that size.

        Images with the same input shape may stand in one batch.
        """
        rows, columns = self._inside(height, width)
        return rows + -rows % self._multiple, columns + -columns % self._multiple

    @torch.inference_mode()
    def predict(
        self, images: Sequence[NDArray[np.uint8]], paths: Sequence[str]
    ) -> list[Predicted | InputError]:
        """Label RGB images uint8 [H, W, 3] of one input shape.

        A batch too large for memory is halved; a single image too large comes back as its error.

        Raises:
            ModelError: the model's channels are not its label space's classes.
        """
        try:
            return list(self._predict(images))
        except RuntimeError as error:
            if not _is_memory(error):
                raise
        # Out of the handler: while it ran, the traceback kept the failed batch's tensors.
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        if len(images) == 1:
            height, width = images[0].shape[:2]
            cause = f"{width} x {height} pixels don't fit the model's memory"
            return [ImageTooLarge(paths[0], cause, "scale it down, or give --input-size")]
        middle = len(images) // 2
        first = self.predict(images[:middle], paths[:middle])
        return first + self.predict(images[middle:], paths[middle:])

    def _predict(self, images: Sequence[NDArray[np.uint8]]) -> list[Predicted]:
        sizes = [(i.shape[0], i.shape[1]) for i in images]
        inside = [self._inside(*size) for size in sizes]
        inputs = torch.cat([self._input(i) for i in images])
        with self._autocast():
            logits = self._model.module(inputs.contiguous(memory_format=torch.channels_last))
        if self._model.objects is not None:
            return [self._objects(*one) for one in zip(logits, inside, sizes, strict=True)]
        if logits.shape[1] != len(self._ids):
            raise ModelError(
                f"{self._model.uri}: the model has {logits.shape[1]} classes, label space "
                f"{self._space.name!r} has {len(self._ids)}; name another with --label-space"
            )
        found: list[Predicted] = []
        for first, last in _runs(list(zip(inside, sizes, strict=True))):
            found += self._decide(logits[first:last], inside[first], sizes[first])
        return found

    def _input(self, image: NDArray[np.uint8]) -> Tensor:
        """Return one image as the model's input, float32 [1, 3, H, W]."""
        host = torch.from_numpy(image)
        if self._device.type == "cuda":
            host = host.pin_memory()
        pixels = host.to(self._device, non_blocking=True).permute(2, 0, 1).unsqueeze(0)
        pixels = (pixels.to(torch.float32) - self._mean) * self._scale
        inside = self._inside(image.shape[0], image.shape[1])
        if inside != image.shape[:2]:
            pixels = F.interpolate(pixels, inside, mode="bilinear", antialias=True)
        return padded(pixels, self._multiple)

    def _objects(
        self, raw: BoxMasks | QueryMasks, inside: tuple[int, int], size: tuple[int, int]
    ) -> Predicted:
        found = find(raw, self._model, Canvas(inside, self._multiple, size))
        return Predicted(found.ids, found.confidence, found.instances)

    def _autocast(self) -> AbstractContextManager[Any]:
        dtype = _DTYPES[self._options.precision]
        if dtype is torch.float32:
            return nullcontext()
        return torch.autocast(self._device.type, dtype)

    def _decide(
        self, logits: Tensor, inside: tuple[int, int], size: tuple[int, int]
    ) -> list[Predicted]:
        """Bring logits to the image's size, a few images at a time, and keep the best class."""
        each = 4 * logits.shape[1] * size[0] * size[1]
        step = max(1, _LOGITS_BYTES // each)
        found: list[Predicted] = []
        for some in torch.split(logits.float(), step):
            part = at_size(some, inside, self._multiple, size)
            top, best = part.max(dim=1)
            # p of the best class is 1 / sum(exp(logit - top)): no full softmax is kept.
            p = 1 / (part - top.unsqueeze(1)).exp().sum(dim=1)
            confidence = (p * 255).round().to(torch.uint8).cpu().numpy()
            ids = self._ids[best].cpu().numpy().view(self._space.dtype)
            found += [Predicted(i, c) for i, c in zip(ids, confidence, strict=True)]
        return found


def _runs(values: Sequence[object]) -> list[tuple[int, int]]:
    """Return where equal neighbours begin and end.

    >>> _runs("aab")
    [(0, 2), (2, 3)]
    """
    edges = [i for i in range(1, len(values)) if values[i] != values[i - 1]]
    return list(zip([0, *edges], [*edges, len(values)], strict=True))


def _is_memory(error: RuntimeError) -> bool:
    """Tell whether a device, or the CPU's allocator, had no memory left."""
    return isinstance(error, torch.cuda.OutOfMemoryError) or "can't allocate" in str(error)
