"""The segmenter: holds one model on one device and turns images into labelled records.

Reading and decoding run in the segmenter's own threads, ahead of the device; the resizing of
logits, arg-max and confidence run on the device (`pipeline/predict`), so that only bytes leave it;
cells are encoded in threads again. Batches hold images of one input shape, in the order of the
listing, so that the same shard gives the same rows whoever labels it.
"""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch

from pipeline import masks
from pipeline.errors import CorruptImage, InputError, ModelError
from pipeline.files import read_url
from pipeline.images import decode, header
from pipeline.models import load_model
from pipeline.predict.options import LabelOptions
from pipeline.predict.predictor import Predicted, Predictor
from pipeline.record import File, Provenance, Record

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from pipeline.label_space import LabelSpace
    from pipeline.models.loaded import LoadedModel
    from pipeline.record import Sample
    from pipeline.store import Store


@dataclass(frozen=True, slots=True)
class SegmenterFactory:
    """Makes a segmenter in the process (or thread) that will use it; picklable."""

    uri: str
    weights: str | None = None
    label_space: str | None = None
    options: LabelOptions = field(default_factory=LabelOptions)
    digest: str | None = None
    """The digest that the model had when the run was planned, where that is to be checked."""

    def __call__(self) -> Segmenter:
        """Load the model (once a process) and return a segmenter.

        Raises:
            ModelError: the model is not the one that the run was planned with.
        """
        device = pick_device(self.options.device)
        model = _load_once(self.uri, self.weights, self.label_space, str(device))
        if self.digest not in {None, model.digest}:
            raise ModelError(
                f"{self.uri}: changed since the run began, or is another on this node; run the "
                "same command again, or name a model that stays (?revision=, a directory)"
            )
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


class Segmenter:
    """One model on one device; called with a shard's samples, it yields their records."""

    def __init__(self, model: LoadedModel, device: torch.device, options: LabelOptions) -> None:
        self._model, self._options = model, options
        self._space: LabelSpace = model.label_space
        self._predictor = Predictor(model, device, options)
        self._threads = max(1, options.threads)
        if device.type == "cpu":
            # Actors and threads share the cores: threads of theirs would wait for one another.
            torch.set_num_threads(1)

    def __call__(self, samples: Sequence[Sample]) -> Iterator[tuple[Sample, Record | InputError]]:
        """Yield each sample with its record or the error that stopped it."""
        with ThreadPoolExecutor(self._threads) as pool:
            batches: dict[tuple[int, int], list[_Decoded]] = {}
            encoding: deque[Future[tuple[Sample, Record | InputError]]] = deque()
            for sample, decoded in self._decode_ahead(pool, samples):
                if isinstance(decoded, InputError):
                    yield sample, decoded
                    continue
                shape = self._predictor.input_shape(*decoded.pixels.shape[:2])
                batch = batches.setdefault(shape, [])
                batch.append(decoded)
                if len(batch) == self._options.batch_size:
                    self._label(pool, batches.pop(shape), encoding)
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
        predicted = self._predictor.predict([d.pixels for d in batch], paths)
        for decoded, one in zip(batch, predicted, strict=True):
            encoding.append(pool.submit(self._encode, decoded, one))

    def _encode(
        self, decoded: _Decoded, predicted: Predicted | InputError
    ) -> tuple[Sample, Record | InputError]:
        if isinstance(predicted, InputError):
            return decoded.sample, predicted
        sample, (height, width) = decoded.sample, decoded.pixels.shape[:2]
        mask = confidence = classes = None
        if predicted.ids is not None:
            mask = File(bytes=masks.encode(predicted.ids, self._space.cell_palette()))
            classes = masks.class_pixels(predicted.ids, self._space, predicted.confidence)
            if self._options.confidence and predicted.confidence is not None:
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
            mask=mask,
            confidence=confidence,
            classes=classes,
            instances=predicted.instances,
            provenance=Provenance(self._options.kind, self._model.uri, sample.digest),
            extra=f'{{"orientation": {decoded.orientation}}}' if decoded.orientation != 1 else None,
        )
        return sample, record


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
