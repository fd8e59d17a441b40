"""The segmenter: holds one model on one device and turns images into labelled records.

Reading, decoding and encoding run in the segmenter's own threads, around the device
(`pipeline/predict/stream.py`); the resizing of logits, arg-max and confidence run on it
(`pipeline/predict/predictor.py`), so that only bytes leave it. An image's labels depend on nothing
but the image: the same shard gives the same rows whoever labels it.
"""

from __future__ import annotations

import ctypes
import os
import socket
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch

from pipeline import depth as depth_cells
from pipeline import masks
from pipeline.errors import CorruptImage, InputError, ModelError, WorkerDied
from pipeline.files import read_listed, read_url
from pipeline.images import decode, header
from pipeline.labels.margin import with_margin
from pipeline.models import load_model
from pipeline.models.device_errors import device_lost
from pipeline.predict.options import LabelOptions
from pipeline.predict.predictor import Picture, Predicted, Predictor
from pipeline.predict.stream import Stream
from pipeline.record import Depth, File, Provenance, Record
from pipeline.runner import cores
from pipeline.spent import Spent
from pipeline.trees.ahead import is_far, share

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from concurrent.futures import Future

    from pipeline.label_space import LabelSpace
    from pipeline.models.loaded import LoadedModel
    from pipeline.record import Sample
    from pipeline.store import Store

_MOST_THREADS: Final = 16
_Key = tuple[str, str]
"""An image's dataset and path."""


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
            WorkerDied: the device cannot be used.
        """
        device = pick_device(self.options.device)
        model = self.load()
        if self.digest not in {None, model.digest}:
            raise ModelError(
                f"{self.uri}: changed since the run began, or is another on this node; run the "
                "same command again, or name a model that stays (?revision=, a directory)"
            )
        with _LOADING, losing_device():
            model.module.to(device)
        with losing_device():
            return Segmenter(model, device, self.options)

    def load(self) -> LoadedModel:
        """Return the model, loaded once a process: threads share it, inference changes nothing."""
        asked = self.options.device
        if not asked.startswith("cuda") and pick_device(asked).type == "cpu":
            keep_freed_memory()
        with _LOADING:
            return _loaded(self.uri, self.weights, self.label_space)


@contextmanager
def losing_device() -> Iterator[None]:
    """Raise WorkerDied for an error after which the process can use its device no more."""
    try:
        yield
    except RuntimeError as error:
        if not device_lost(error):
            raise
        cause = str(error).splitlines()[0]
        raise WorkerDied(f"the device failed ({cause})") from error


def pick_device(name: str) -> torch.device:
    """Return the device that a worker uses: the one GPU that Ray lets it see, or the CPU.

    Raises:
        WorkerDied: a GPU was asked for by name, and torch sees none.
    """
    if name.startswith("cuda") and not torch.cuda.is_available():
        seen = os.environ.get("CUDA_VISIBLE_DEVICES")
        why = f"CUDA_VISIBLE_DEVICES is {seen!r}; is the driver up?"
        why = why if torch.version.cuda else "a build for CPUs"
        raise WorkerDied(
            f"a worker was given a GPU, and torch {torch.__version__} sees none on "
            f"{socket.gethostname()} ({why}); mend that, or label on CPUs: --gpus-per-actor 0"
        )
    if name != "auto":
        return torch.device(name)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def keep_freed_memory() -> bool:
    """Have glibc keep what is freed for the next batch; return whether it is glibc and does.

    It gives large blocks back at once, and the kernel clears their pages again for each layer of a
    network: 165 CPU-ms an image became 130 (ENet, 480x360, one thread). What the process held at
    its peak it then holds to its end.
    """
    if sys.platform != "linux":
        return False
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):
        return False
    # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, and M_ARENA_MAX: other arenas end at 64 MB.
    wanted = ((-1, (1 << 31) - 1), (-3, 1 << 30), (-8, 1))
    return {libc.mallopt(name, value) for name, value in wanted} == {1}


_LOADING = threading.Lock()


@lru_cache(maxsize=2)
def _loaded(uri: str, weights: str | None, space: str | None) -> LoadedModel:
    model = load_model(uri, weights=weights, label_space=space)
    model.module.requires_grad_(False).eval().to(memory_format=torch.channels_last)
    return model


@dataclass(slots=True)
class _Decoded:
    """An image in memory, and the EXIF orientation that was applied."""

    sample: Sample
    picture: Picture
    orientation: int


class Segmenter:
    """One model on one device; called with a shard's samples, it yields their records."""

    def __init__(self, model: LoadedModel, device: torch.device, options: LabelOptions) -> None:
        self._model, self._options = model, options
        self._space: LabelSpace = model.label_space
        self._threads = options.threads or _threads(device)
        self.predictor = Predictor(model, device, options)
        self._reduced = options.decode == "reduced"
        self._with_depth = model.preprocessing.depth is not None
        self.spent = Spent()
        """Where the time went; whoever drives the segmenter takes it."""
        if device.type == "cpu":
            # Actors and threads share the cores: threads of theirs would wait for one another.
            torch.set_num_threads(1)

    def __call__(self, samples: Sequence[Sample]) -> Iterator[tuple[Sample, Record | InputError]]:
        """Yield each sample with its record or the error that stopped it.

        Raises:
            WorkerDied: the device failed in a way that all later work in this process shares.
        """
        pool = ThreadPoolExecutor(self._threads, "segmill-images")
        with self.spent.on("wait"):
            depths = _depths(samples) if self._with_depth else {}
            read_ahead = _ReadAhead(samples, self.spent)
        try:
            decode = partial(self._decode, read=read_ahead, depths=depths)
            stream = Stream(self.predictor, self.spent, pool, self._encode)
            with losing_device():
                yield from stream.run(samples, decode)
        finally:
            read_ahead.close()
            pool.shutdown(cancel_futures=True)

    def _decode(
        self, sample: Sample, read: _ReadAhead, depths: Mapping[_Key, Depth]
    ) -> _Decoded | InputError:
        """Read and decode an image; one of a dataset keeps the grid that its labels lie on."""
        try:
            data = read(sample)
            with self.spent.on("decode"):
                as_seen = not (isinstance(sample.payload, dict) and sample.payload.get("as_stored"))
                head = header(data, sample.path)
                orientation = head.orientation if as_seen else 1
                size = (head.height, head.width)
                size = size[::-1] if orientation > 4 else size
                at_least = self.predictor.enough(*size) if self._reduced else None
                pixels = decode(data, sample.path, orient=as_seen, at_least=at_least)
                depth = None
                if self._with_depth:
                    cell = depths.get((sample.dataset, sample.path))
                    depth = depth_cells.beside(cell, size, sample.image_id)
                picture = Picture(pixels, size, sample.path, depth)
                return _Decoded(sample, picture, orientation)
        except InputError as error:
            return error
        except OSError as error:
            mend = "check that it can be read, then run the same command again"
            return InputError(sample.path, f"cannot be read ({error.strerror or error})", mend)
        except MemoryError:
            return CorruptImage(sample.path, "does not fit into memory", "make it smaller")

    def _encode(
        self, decoded: _Decoded, predicted: Predicted | InputError
    ) -> tuple[Sample, Record | InputError]:
        if isinstance(predicted, InputError):
            return decoded.sample, predicted
        with self.spent.on("encode"):
            return decoded.sample, self._record(decoded, predicted)

    def _record(self, decoded: _Decoded, predicted: Predicted) -> Record:
        sample, (height, width) = decoded.sample, decoded.picture.size
        mask = confidence = classes = None
        if predicted.ids is not None:
            mask = File(bytes=masks.encode(predicted.ids, self._space.cell_palette()))
            classes = masks.class_pixels(predicted.ids, self._space, predicted.confidence)
            if self._options.confidence and predicted.confidence is not None:
                cell = masks.encode(predicted.confidence)
                if predicted.margin is not None:
                    cell = with_margin(cell, predicted.margin)
                confidence = File(bytes=cell)
        return Record(
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


def _threads(device: torch.device) -> int:
    """Return how many threads read, decode and encode for one device."""
    if device.type == "cpu":
        return 2
    # Ray shows an actor its own GPU only: the driver's folder has one entry for each of the node.
    found = Path("/proc/driver/nvidia/gpus")
    gpus = len(list(found.iterdir())) if found.is_dir() else torch.cuda.device_count()
    return min(_MOST_THREADS, max(2, cores() // max(1, gpus)))


class _ReadAhead:
    """Gives the bytes of samples; of those that lie far away, many are on their way at once."""

    def __init__(self, samples: Sequence[Sample], spent: Spent) -> None:
        self._spent, self._embedded = spent, _embedded_bytes(samples)
        far = [s for s in samples if s.path not in self._embedded and is_far(s.path)]
        self._coming: dict[str, Future[bytes]] = {}
        self._left = iter(far)
        self._lock = threading.Lock()
        in_flight = share(os.environ, cores())[1]
        self._pool = ThreadPoolExecutor(in_flight, "segmill-read") if far else None
        for sample in islice(self._left, in_flight):
            self._ask(sample.path)

    def __call__(self, sample: Sample) -> bytes:
        """Return a sample's bytes; ask for one more of those that come later."""
        data = self._embedded.get(sample.path)
        if data is not None:
            return data
        # Of what a store or a list calls a fingerprint nothing is known.
        if sample.path[:1] == "/" and sample.fingerprint and sample.payload is None:
            with self._spent.on("read"):
                return read_listed(sample.path, sample.fingerprint)
        with self._lock:
            coming = self._coming.pop(sample.path, None)
            after = next(self._left, None) if coming is not None else None
            if after is not None:
                self._ask(after.path)
        return self._read(sample.path) if coming is None else coming.result()

    def _ask(self, path: str) -> None:
        if self._pool is not None:
            self._coming[path] = self._pool.submit(self._read, path)

    def _read(self, path: str) -> bytes:
        with self._spent.on("read"):
            return read_url(path)

    def close(self) -> None:
        """Let go of what nobody will ask for."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


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


def _depths(samples: Sequence[Sample]) -> dict[_Key, Depth]:
    """Return the depth maps of samples that are rows of a store, where it has them."""
    import pyarrow.compute as pc

    rows = {
        tuple(s.payload["row_of"])
        for s in samples
        if isinstance(s.payload, dict) and "row_of" in s.payload
    }
    found: dict[_Key, Depth] = {}
    ids = [s.image_id for s in samples]
    key = pc.field("image_id")
    near = (key >= min(ids)) & (key <= max(ids)) & key.isin(ids)
    for url, version in rows:
        columns = ["dataset", "image.path", "depth"]
        for batch in _opened(url, version).scan(columns, near, 16):
            for row in batch.to_pylist():
                if row["depth"] is not None:
                    found[row["dataset"], row["image.path"]] = Depth(**row["depth"])
    return found


@lru_cache(maxsize=2)
def _opened(url: str, version: int) -> Store:
    from pipeline.store import Store

    return Store.open(url, version)
