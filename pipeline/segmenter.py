"""The segmenter: holds one model on one device and turns images into labelled records.

Reading and decoding run in the segmenter's own threads, ahead of the device; the resizing of
logits, arg-max and confidence run on the device, so that only bytes leave it; cells are encoded in
threads again. Batches hold images of one size, in the order of the listing, so that the same shard
gives the same rows whoever labels it.
"""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import torch
from torch.nn import functional as F  # noqa: N812 - torch's own convention

from pipeline import masks
from pipeline.errors import CorruptImage, ImageTooLarge, InputError, ModelError, UsageError
from pipeline.files import read_url
from pipeline.images import decode, header
from pipeline.models import load_model
from pipeline.models.logits import at_size, padded
from pipeline.record import File, Provenance, Record

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from pipeline.label_space import LabelSpace
    from pipeline.models.loaded import LoadedModel
    from pipeline.record import Sample
    from pipeline.store import Store

Precision = Literal["fp32", "bf16", "fp16"]
PRECISIONS: Final = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_LOGITS_BYTES: Final = 256 << 20


@dataclass(frozen=True, slots=True)
class LabelOptions:
    """How images are labelled. Batch size, threads and device don't change the labels."""

    batch_size: int = 8
    precision: Precision = "fp32"
    confidence: bool = False
    input_size: tuple[int, int] | None = None
    """Height and width that images are resized to for the model; None: what the model says."""
    kind: Literal["model", "pseudo"] = "model"
    device: str = "auto"
    threads: int = 2

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise UsageError(f"--precision takes fp32, bf16 or fp16, not {self.precision!r}")
        if self.batch_size < 1:
            raise UsageError(f"--batch-size is at least 1, not {self.batch_size}")

    def output_identity(self) -> list[str]:
        """Return what, beyond the model, changes the labels: part of the model digest."""
        size = "native" if self.input_size is None else "{}x{}".format(*self.input_size)
        return [self.precision, size, f"confidence={self.confidence}"]


@dataclass(frozen=True, slots=True)
class SegmenterFactory:
    """Makes a segmenter in the process (or thread) that will use it; picklable."""

    uri: str
    weights: str | None = None
    label_space: str | None = None
    options: LabelOptions = field(default_factory=LabelOptions)

    def __call__(self) -> Segmenter:
        """Load the model (once a process) and return a segmenter."""
        device = pick_device(self.options.device)
        model = _load_once(self.uri, self.weights, self.label_space, str(device))
        return Segmenter(model, device, self.options)


def pick_device(name: str) -> torch.device:
    """Return the device that a worker uses: the one GPU that Ray lets it see, or the CPU."""
    if name != "auto":
        return torch.device(name)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


_LOADING = threading.Lock()


def _load_once(uri: str, weights: str | None, space: str | None, device: str) -> LoadedModel:
    """Load a model onto a device once a process: threads share it, as inference changes nothing."""
    with _LOADING:
        return _loaded(uri, weights, space, device)


@lru_cache(maxsize=2)
def _loaded(uri: str, weights: str | None, space: str | None, device: str) -> LoadedModel:
    model = load_model(uri, weights=weights, label_space=space)
    model.module.requires_grad_(False).eval()
    model.module.to(torch.device(device)).to(memory_format=torch.channels_last)
    return model


@dataclass(slots=True)
class _Decoded:
    """An image in memory: RGB uint8 [H, W, 3], and the EXIF orientation that was applied."""

    sample: Sample
    pixels: NDArray[np.uint8]
    orientation: int


@dataclass(frozen=True, slots=True)
class _Predicted:
    """A label map of class ids [H, W], and confidence uint8 [H, W] = round(255 p)."""

    ids: NDArray[np.uint8] | NDArray[np.uint16]
    confidence: NDArray[np.uint8]


class Segmenter:
    """One model on one device; called with a shard's samples, it yields their records."""

    def __init__(self, model: LoadedModel, device: torch.device, options: LabelOptions) -> None:
        self._model, self._device, self._options = model, device, options
        self._space: LabelSpace = model.label_space
        prep = model.preprocessing
        self._size = options.input_size or prep.size
        shape = (1, 3, 1, 1)
        self._mean = torch.tensor(prep.mean, device=device).view(shape) * 255
        self._scale = 1 / (torch.tensor(prep.std, device=device).view(shape) * 255)
        ids = np.array(self._space.train_ids)
        lut = ids.astype(self._space.dtype)
        # As int16: CUDA has few operations on uint16. The bits are the same.
        self._ids = torch.from_numpy(lut if lut.itemsize == 1 else lut.view(np.int16)).to(device)
        self._threads = max(1, options.threads)
        if device.type == "cpu":
            # Actors and threads share the cores: threads of theirs would wait for one another.
            torch.set_num_threads(1)

    def __call__(self, samples: Sequence[Sample]) -> Iterator[tuple[Sample, Record | InputError]]:
        """Yield each sample with its record or the error that stopped it."""
        with ThreadPoolExecutor(self._threads) as pool:
            batches: dict[tuple[int, ...], list[_Decoded]] = {}
            encoding: deque[Future[tuple[Sample, Record | InputError]]] = deque()
            for sample, decoded in self._decode_ahead(pool, samples):
                if isinstance(decoded, InputError):
                    yield sample, decoded
                    continue
                batch = batches.setdefault(decoded.pixels.shape, [])
                batch.append(decoded)
                if len(batch) == self._options.batch_size:
                    self._label(pool, batches.pop(decoded.pixels.shape), encoding)
                while len(encoding) > 4 * self._options.batch_size:
                    yield encoding.popleft().result()
            for batch in batches.values():
                self._label(pool, batch, encoding)
            while encoding:
                yield encoding.popleft().result()

    def _decode_ahead(
        self, pool: ThreadPoolExecutor, samples: Sequence[Sample]
    ) -> Iterator[tuple[Sample, _Decoded | InputError]]:
        """Yield decoded images in order, while the next ones are read and decoded."""
        ahead: deque[tuple[Sample, Future[_Decoded | InputError]]] = deque()
        embedded = _embedded_bytes(samples)
        for sample in samples:
            ahead.append((sample, pool.submit(_decode, sample, embedded.get(sample.path))))
            if len(ahead) > 2 * self._options.batch_size:
                first, future = ahead.popleft()
                yield first, future.result()
        for first, future in ahead:
            yield first, future.result()

    def _label(
        self,
        pool: ThreadPoolExecutor,
        batch: list[_Decoded],
        encoding: deque[Future[tuple[Sample, Record | InputError]]],
    ) -> None:
        """Run one batch through the model and hand the results to the encoders."""
        paths = [d.sample.path for d in batch]
        predicted = self.predict(np.stack([d.pixels for d in batch]), paths)
        for decoded, one in zip(batch, predicted, strict=True):
            encoding.append(pool.submit(self._encode, decoded, one))

    def _encode(
        self, decoded: _Decoded, predicted: _Predicted | InputError
    ) -> tuple[Sample, Record | InputError]:
        if isinstance(predicted, InputError):
            return decoded.sample, predicted
        sample, (height, width) = decoded.sample, predicted.ids.shape
        confidence = None
        if self._options.confidence:
            confidence = File(bytes=masks.encode(predicted.confidence))
        record = Record(
            image_id=sample.image_id,
            dataset=sample.dataset,
            split=sample.split,
            image=File(sample.path),
            fingerprint=sample.fingerprint,
            height=height,
            width=width,
            label_space=self._space.name,
            mask=File(bytes=masks.encode(predicted.ids, self._space.cell_palette())),
            confidence=confidence,
            classes=masks.class_pixels(predicted.ids, self._space, predicted.confidence),
            provenance=Provenance(self._options.kind, self._model.uri, sample.digest),
            extra=f'{{"orientation": {decoded.orientation}}}' if decoded.orientation != 1 else None,
        )
        return sample, record

    @torch.inference_mode()
    def predict(
        self, pixels: NDArray[np.uint8], paths: Sequence[str]
    ) -> list[_Predicted | InputError]:
        """Label RGB images uint8 [N, H, W, 3] of one size; a batch too large for memory is halved.

        A single image too large for memory comes back as its error.

        Raises:
            ModelError: the model's channels are not its label space's classes.
        """
        try:
            return list(self._predict(pixels))
        except RuntimeError as error:
            if not _is_memory(error):
                raise
        # Out of the handler: while it ran, the traceback kept the failed batch's tensors.
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        if len(pixels) == 1:
            cause = f"{pixels.shape[2]} x {pixels.shape[1]} pixels don't fit the model's memory"
            return [ImageTooLarge(paths[0], cause, "scale it down, or give --input-size")]
        middle = len(pixels) // 2
        first = self.predict(pixels[:middle], paths[:middle])
        return first + self.predict(pixels[middle:], paths[middle:])

    def _predict(self, pixels: NDArray[np.uint8]) -> list[_Predicted]:
        height, width = pixels.shape[1:3]
        host = torch.from_numpy(pixels)
        if self._device.type == "cuda":
            host = host.pin_memory()
        images = host.to(self._device, non_blocking=True).permute(0, 3, 1, 2)
        images = (images.to(torch.float32) - self._mean) * self._scale
        images = images.contiguous(memory_format=torch.channels_last)
        if self._size and self._size != (height, width):
            images = F.interpolate(images, self._size, mode="bilinear", antialias=True)
        rows, columns = images.shape[2:]
        with self._autocast():
            logits = self._model.module(padded(images, self._model.preprocessing.multiple))
        if logits.shape[1] != len(self._ids):
            raise ModelError(
                f"{self._model.uri}: the model has {logits.shape[1]} classes, label space "
                f"{self._space.name!r} has {len(self._ids)}; name another with --label-space"
            )
        return self._decide(logits, (rows, columns), (height, width))

    def _autocast(self) -> AbstractContextManager[Any]:
        dtype = PRECISIONS[self._options.precision]
        if dtype is torch.float32:
            return nullcontext()
        return torch.autocast(self._device.type, dtype)

    def _decide(
        self, logits: Tensor, inside: tuple[int, int], size: tuple[int, int]
    ) -> list[_Predicted]:
        """Bring logits to the image's size, a few images at a time, and keep the best class."""
        each = 4 * logits.shape[1] * size[0] * size[1]
        step = max(1, _LOGITS_BYTES // each)
        found: list[_Predicted] = []
        multiple = self._model.preprocessing.multiple
        for some in torch.split(logits.float(), step):
            part = at_size(some, inside, multiple, size)
            top, best = part.max(dim=1)
            # p of the best class is 1 / sum(exp(logit - top)): no full softmax is kept.
            p = 1 / (part - top.unsqueeze(1)).exp().sum(dim=1)
            confidence = (p * 255).round().to(torch.uint8).cpu().numpy()
            ids = self._ids[best].cpu().numpy().view(self._space.dtype)
            found += [_Predicted(i, c) for i, c in zip(ids, confidence, strict=True)]
        return found


def _is_memory(error: RuntimeError) -> bool:
    """Tell whether a device, or the CPU's allocator, had no memory left."""
    return isinstance(error, torch.cuda.OutOfMemoryError) or "can't allocate" in str(error)


def _decode(sample: Sample, data: bytes | None) -> _Decoded | InputError:
    """Read and decode one image; an image of a dataset keeps the grid that its labels lie on."""
    try:
        if data is None:
            data = read_url(sample.path)
        as_seen = not (isinstance(sample.payload, dict) and sample.payload.get("as_stored"))
        orientation = header(data, sample.path).orientation if as_seen else 1
        return _Decoded(sample, decode(data, sample.path, orient=as_seen), orientation)
    except InputError as error:
        return error
    except OSError as error:
        mend = "check that it can be read, then run the same command again"
        return InputError(sample.path, f"cannot be read ({error.strerror or error})", mend)
    except MemoryError:
        return CorruptImage(sample.path, "does not fit into memory", "make it smaller")


def _embedded_bytes(samples: Sequence[Sample]) -> dict[str, bytes]:
    """Return the images that a store holds itself, by path."""
    stores = {
        (s.payload["store"], s.payload["version"])
        for s in samples
        if isinstance(s.payload, dict) and "store" in s.payload
    }
    if not stores:
        return {}
    import pyarrow.compute as pc

    found: dict[str, bytes] = {}
    ids = [s.image_id for s in samples]
    key = pc.field("image_id")
    near = (key >= min(ids)) & (key <= max(ids)) & key.isin(ids)
    for url, version in stores:
        for batch in _opened(url, version).scan(["image"], near, 16):
            held: Iterable[dict[str, Any]] = batch["image"].to_pylist()
            found.update({i["path"]: i["bytes"] for i in held if i["bytes"] is not None})
    return found


@lru_cache(maxsize=2)
def _opened(url: str, version: int) -> Store:
    from pipeline.store import Store

    return Store.open(url, version)
