"""From pixels on a device to each pixel's best class and its probability, by one model.

    pending = predictor.start(images)       # images of one `input_shape`; returns at once on CUDA
    labels = pending.result()               # waits for the device

The parts, each of which options may replace or wrap: pixels go up (`Lanes.up`), become the model's
input (`_input`), logits (`_logits`), and ids with confidence (`decide`), which come down.

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
from pipeline.models.device_errors import no_memory
from pipeline.predict.compiled import Compiled
from pipeline.predict.decide import Cut, Decided, Frame, bands, decide
from pipeline.predict.instances import Canvas, find
from pipeline.predict.lanes import Arriving, Lanes, seconds_between
from pipeline.predict.options import check_model
from pipeline.predict.shapes import CPU_BATCH, BatchSizes, Shape, padded_length
from pipeline.predict.views import Views

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from pipeline.models.loaded import BoxMasks, LoadedModel, QueryMasks
    from pipeline.predict.options import LabelOptions
    from pipeline.record import Instance

_DTYPES: Final = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_LOGITS_BYTES: Final = 256 << 20
"""Most that logits at the images' size take on the device at a time."""


@dataclass(frozen=True, slots=True)
class Picture:
    """An image to label: RGB uint8 [h, w, 3], and the height and width of its label map.

    The two sizes differ where the image was decoded at reduced size. `depth` is float32, metres, of
    the label map's size, 0 where nothing was measured; None for models of colours.
    """

    pixels: NDArray[np.uint8]
    size: tuple[int, int]
    path: str
    depth: NDArray[np.float32] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.pixels.nbytes + (0 if self.depth is None else self.depth.nbytes)


@dataclass(frozen=True, slots=True)
class Predicted:
    """A label map of class ids [H, W], and confidence uint8 [H, W] = round(255 p).

    `margin` is the lead over the next class, round(255 (p - q)), where it was asked for.

    `instances` are the objects of a model that finds them, else None; both maps are None for one
    that finds nothing but objects.
    """

    ids: NDArray[np.uint8] | NDArray[np.uint16] | None
    confidence: NDArray[np.uint8] | None
    instances: tuple[Instance, ...] | None = None
    margin: NDArray[np.uint8] | None = None


@dataclass(frozen=True, slots=True)
class _Group:
    """Images of one size in a batch: their places in it, and their labels on the way to the host.

    All maps are [N, H, W]; of uint16 ids the bits lie in int16.
    """

    places: tuple[int, ...]
    ids: Arriving
    confidence: Arriving
    margin: Arriving | None

    @classmethod
    def down(cls, places: tuple[int, ...], found: Decided, lanes: Lanes) -> _Group:
        """Send maps on their way to the host."""
        ahead = None if found.margin is None else lanes.down(found.margin)
        return cls(places, lanes.down(found.ids), lanes.down(found.confidence), ahead)

    def labels(self, ids_dtype: type[np.uint8 | np.uint16]) -> list[Predicted]:
        """Wait for the maps; return those of each image."""
        ids, sure = self.ids.array().view(ids_dtype), self.confidence.array()
        ahead = [None] * len(ids) if self.margin is None else self.margin.array()
        maps = zip(ids, sure, ahead, strict=True)
        return [Predicted(i, confidence, margin=margin) for i, confidence, margin in maps]


@dataclass(frozen=True, slots=True)
class Pending:
    """A batch whose labels are on their way; those of `ready` have come, by their places."""

    groups: tuple[_Group, ...]
    ready: tuple[tuple[int, Predicted | InputError], ...]
    ids_dtype: type[np.uint8 | np.uint16]
    marks: tuple[tuple[Any, Any], ...]

    def result(self) -> list[Predicted | InputError]:
        """Wait for the device; return an answer for each image, in the order of the batch."""
        found: dict[int, Predicted | InputError] = dict(self.ready)
        for group in self.groups:
            found |= dict(zip(group.places, group.labels(self.ids_dtype), strict=True))
        return [found[place] for place in sorted(found)]

    def device_seconds(self) -> float:
        """Return how long the device computed; to be asked after `result`."""
        return sum(seconds_between(*pair) for pair in self.marks)


class Predictor:
    """One model on one device; turns images of one input shape into label maps."""

    def __init__(self, model: LoadedModel, device: torch.device, options: LabelOptions) -> None:
        check_model(model, options)
        self._model, self._device, self._options = model, device, options
        self._space = model.label_space
        prep = model.preprocessing
        if options.input_size is not None:
            prep = replace(prep, size=options.input_size)
        elif options.window:
            # Windows see images at their own size, whatever the network was trained at.
            prep = replace(prep, size=None, edge=None)
        self._inside, self._multiple = prep.inside, prep.multiple
        self._resizes = prep.size is not None or prep.edge is not None
        self._network: Callable[[Tensor], Tensor] = (
            Compiled(model.module) if options.compile else model.module
        )
        on_cpu = CPU_BATCH if device.type == "cpu" else None
        self.batches = BatchSizes(options.batch_size or on_cpu)
        """How many images to label at once, by the shape of their input."""
        self._lanes = Lanes(device)
        shape = (1, 3, 1, 1)
        self._mean = torch.tensor(prep.mean, device=device).view(shape) * 255
        self._scale = 1 / (torch.tensor(prep.std, device=device).view(shape) * 255)
        self._depth = prep.depth
        lut = np.array(self._space.train_ids).astype(self._space.dtype)
        # As int16: CUDA has few operations on uint16. The bits are the same.
        self._ids = torch.from_numpy(lut if lut.itemsize == 1 else lut.view(np.int16)).to(device)
        self._cut = self._thresholds()
        self._views: Views | None = None
        if options.in_views:
            inside = self._inside if self._resizes else None
            self._views = Views(self._logits_at, len(lut), options, inside)

    def input_shape(self, height: int, width: int) -> Shape:
        """Return the height and width of the model's input for an image of that size.

        Images with the same input shape may stand in one batch.
        """
        return self._grid(*self._inside(height, width))

    def _grid(self, rows: int, columns: int) -> Shape:
        """Return what sides are padded to, so that images of nearly one size share a batch."""
        fixed = self._resizes or self._model.objects is not None
        limit = 0.0 if fixed else self._options.pad_limit
        high, wide = (padded_length(n, self._multiple, limit) for n in (rows, columns))
        return high, wide

    def enough(self, height: int, width: int) -> Shape | None:
        """Return the size that an image may be decoded at, as the model sees no more; or None."""
        return self._inside(height, width) if self._resizes else None

    def predict(self, images: Sequence[Picture]) -> list[Predicted | InputError]:
        """Label images of one input shape and wait for the answers; see `start`."""
        return self.start(images).result()

    @torch.inference_mode()
    def start(self, images: Sequence[Picture]) -> Pending:
        """Begin to label images of one input shape.

        A batch too large for memory is halved; a single image too large comes back as its error.

        Raises:
            ModelError: the model's channels are not its label space's classes.
        """
        shape = self.input_shape(*images[0].size)
        left, done = [range(len(images))], []
        while left:
            places = left.pop()
            begun = self._tried([images[p] for p in places], places)
            if begun is None:
                self.batches.too_many(shape, len(places))
                middle = len(places) // 2
                left += [places[middle:], places[:middle]]
            else:
                done.append(begun)
                self.batches.went_well(shape, len(places))
        return _joined(done)

    def _tried(self, images: Sequence[Picture], places: Sequence[int]) -> Pending | None:
        """Begin a batch; None when it is too large for memory and can be halved."""
        try:
            return self._begin(images, places)
        except RuntimeError as error:
            if not no_memory(error):
                raise
        # Out of the handler: while it ran, the traceback kept the failed batch's tensors.
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        if len(images) > 1:
            return None
        height, width = images[0].size
        cause = f"{width} x {height} pixels don't fit the model's memory"
        too_large = ImageTooLarge(
            images[0].path, cause, "scale it down, or give --input-size or --window"
        )
        return Pending((), ((places[0], too_large),), self._space.dtype, ())

    def _begin(self, images: Sequence[Picture], places: Sequence[int]) -> Pending:
        alike: dict[tuple[Shape, Shape], list[int]] = {}
        for n, image in enumerate(images):
            alike.setdefault((image.pixels.shape[:2], image.size), []).append(n)
        if self._views is not None:
            return self._begin_views(self._views, images, places, list(alike.values()))
        uploaded = [
            (*self._uploaded([images[n] for n in some]), size) for (_, size), some in alike.items()
        ]
        begin = self._lanes.mark()
        inputs = torch.cat([self._input(*one) for one in uploaded])
        if self._model.objects is not None:
            order = [places[n] for some in alike.values() for n in some]
            sizes = [size for (_, size), some in alike.items() for _ in some]
            raw = self._output(inputs)
            found = [self._objects(*one) for one in zip(raw, sizes, strict=True)]
            marks = ((begin, self._lanes.mark()),)
            return Pending((), tuple(zip(order, found, strict=True)), self._space.dtype, marks)
        logits = self._logits(inputs)
        seen = (inputs.shape[2], inputs.shape[3])
        groups, first = [], 0
        for (_, size), some in alike.items():
            frame = Frame(seen, self._inside(*size), size)
            part = logits[first : first + len(some)]
            margin = self._options.margin
            labels = decide(part, frame, self._ids, _LOGITS_BYTES, self._cut, margin=margin)
            first += len(some)
            groups.append(_Group.down(tuple(places[n] for n in some), labels, self._lanes))
        return Pending(tuple(groups), (), self._space.dtype, ((begin, self._lanes.mark()),))

    def _uploaded(self, images: Sequence[Picture]) -> tuple[Tensor, Tensor | None]:
        """Begin to copy images of one size, and their depth if the model takes it, to the device.

        Raises:
            ModelError: the model takes depth, and an image has none.
        """
        pixels = self._lanes.up([image.pixels for image in images])
        if self._depth is None:
            return pixels, None
        depth = [image.depth for image in images if image.depth is not None]
        if len(depth) < len(images):
            raise ModelError(f"{self._model.uri}: takes depth, and an image came without")
        return pixels, self._lanes.up(depth)

    def _begin_views(
        self,
        views: Views,
        images: Sequence[Picture],
        places: Sequence[int],
        alike: Sequence[Sequence[int]],
    ) -> Pending:
        """Begin a batch whose images are seen several times, each size for itself."""
        groups: list[_Group] = []
        errors: list[tuple[int, InputError]] = []
        marks: list[tuple[Any, Any]] = []
        for some in alike:
            first = images[some[0]]
            if cause := views.too_large(first.size):
                mend = "leave the dense CRF out for it: --refine guided has no limit"
                errors += [(places[n], ImageTooLarge(images[n].path, cause, mend)) for n in some]
                continue
            pixels = self._lanes.up([images[n].pixels for n in some]).permute(0, 3, 1, 2)
            begin = self._lanes.mark()
            labels = views.labels(pixels, first.size, self._ids, self._cut)
            marks.append((begin, self._lanes.mark()))
            groups.append(_Group.down(tuple(places[n] for n in some), labels, self._lanes))
        return Pending(tuple(groups), tuple(errors), self._space.dtype, tuple(marks))

    def _logits_at(self, pixels: Tensor, size: tuple[int, int]) -> Tensor:
        """Return logits float32 [N, C, *size] of RGB [N, 3, h, w], 0..255 of any type."""
        inside = (pixels.shape[2], pixels.shape[3])
        inputs = self._padded((pixels.to(torch.float32) - self._mean) * self._scale)
        frame = Frame((inputs.shape[2], inputs.shape[3]), inside, size)
        ((_, logits),) = bands(self._logits(inputs), frame, size[0])
        return logits

    def _thresholds(self) -> Cut | None:
        """Return what pixels too unsure become, None where any confidence will do."""
        if not self._options.min_confidence:
            return None
        least = self._options.min_confidence.by_channel(self._space)
        void = np.array([self._space.ignore_index]).astype(self._space.dtype)
        value = torch.from_numpy(void if void.itemsize == 1 else void.view(np.int16))
        return Cut(torch.tensor(least, device=self._device), value[0].to(self._device))

    def _input(self, pixels: Tensor, depth: Tensor | None, size: Shape) -> Tensor:
        """Return uint8 [N, h, w, 3], of images of a size, as the input: float32 [N, 3, H, W].

        With depth, in metres [N, *size], it is [N, 4, H, W].
        """
        image = pixels.permute(0, 3, 1, 2)
        image = (image.to(torch.float32) - self._mean) * self._scale
        inside = self._inside(*size)
        if inside != tuple(image.shape[2:]):
            image = F.interpolate(image, inside, mode="bilinear", antialias=True)
        if depth is not None:
            image = torch.cat((image, self._scaled(depth, inside)), dim=1)
        return self._padded(image)

    def _scaled(self, depth: Tensor, inside: Shape) -> Tensor:
        """Return depth in metres [N, h, w] as a channel [N, 1, *inside], as training gives it."""
        assert self._depth is not None, "the model says how to scale depth"
        mean, std = self._depth
        metres = depth[:, None]
        if inside != tuple(metres.shape[2:]):  # a mean of depths is no depth: by nearest
            metres = F.interpolate(metres, inside, mode="nearest")
        return torch.where(metres > 0, (metres - mean) / std, 0.0)

    def _padded(self, image: Tensor) -> Tensor:
        """Return images with their border repeated below and right, to sizes that batches share."""
        high, wide = self._grid(image.shape[2], image.shape[3])
        down, right = high - image.shape[2], wide - image.shape[3]
        return F.pad(image, (0, right, 0, down), mode="replicate") if down or right else image

    def _logits(self, inputs: Tensor) -> Tensor:
        """Return the logits [N, C, h, w] of inputs [N, 3, H, W], in the precision asked for.

        Raises:
            ModelError: the model's channels are not its label space's classes.
        """
        logits: Tensor = self._output(inputs)
        if logits.shape[1] != len(self._ids):
            raise ModelError(
                f"{self._model.uri}: the model has {logits.shape[1]} classes, label space "
                f"{self._space.name!r} has {len(self._ids)}; name another with --label-space"
            )
        return logits

    def _output(self, inputs: Tensor) -> Any:
        """Return what the network says of inputs [N, 3, H, W], in the precision asked for."""
        with self._autocast():
            return self._network(inputs.contiguous(memory_format=torch.channels_last))

    def _objects(self, raw: BoxMasks | QueryMasks, size: Shape) -> Predicted:
        found = find(raw, self._model, Canvas(self._inside(*size), self._multiple, size))
        return Predicted(found.ids, found.confidence, found.instances)

    def _autocast(self) -> AbstractContextManager[Any]:
        dtype = _DTYPES[self._options.precision]
        if dtype is torch.float32:
            return nullcontext()
        return torch.autocast(self._device.type, dtype)


def _joined(parts: Sequence[Pending]) -> Pending:
    """Return the parts of one batch as one."""
    return Pending(
        tuple(g for p in parts for g in p.groups),
        tuple(r for p in parts for r in p.ready),
        parts[0].ids_dtype,
        tuple(m for p in parts for m in p.marks),
    )
