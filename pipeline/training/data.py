"""Training data: rows stream out of a label store, threads decode them, memory stays bounded.

What is held at once: the shuffle buffer (rows as stored: paths, embedded images, mask cells) and a
few batches of decoded images. A row that cannot be read is left out, counted, and named.
"""

from __future__ import annotations

import json
import re
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from itertools import repeat
from typing import TYPE_CHECKING, Any, Final, TypeVar

import numpy as np
import pyarrow.compute as pc

from pipeline import depth as depth_cells
from pipeline import masks
from pipeline.errors import InputError, SizeMismatch, StoreError
from pipeline.files import read_url
from pipeline.images import decode
from pipeline.label_space import find_remap
from pipeline.record import Depth
from pipeline.training.augment import resized
from pipeline.training.example import Example

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator

    from numpy.typing import NDArray

    from pipeline.label_space import LabelSpace
    from pipeline.store import Store
    from pipeline.training.cache import Cache
    from pipeline.training.example import Labels

T = TypeVar("T")
_COLUMNS: Final = ("image_id", "image", "label_space", "mask", "extra", "classes")
_SCAN_ROWS: Final = 32  # rows may embed images
_BUFFER_BYTES: Final = 256 << 20
_IDS: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class Row:
    """One labelled image as the store holds it, nothing decoded."""

    image_id: str
    path: str
    data: bytes | None
    cell: bytes
    label_space: str
    depth: Depth | None = None
    """Where the model takes it."""
    upright: bool = False
    """Whether the mask lies on the image turned by its EXIF orientation, not on the one stored."""
    repeats: float = 1.0
    """How often training shall see it in a pass."""

    @property
    def size(self) -> int:
        """Bytes held, more or less."""
        depth = b"" if self.depth is None else self.depth.bytes or b""
        return len(self.data or b"") + len(self.cell) + len(depth)


@dataclass
class Channels:
    """A model's channels: class i is `space.train_ids[i]`; every pixel without a class is `void`.

    8-bit up to 255 classes, 16-bit beyond.
    """

    space: LabelSpace
    _luts: dict[str, Labels] = field(default_factory=dict, repr=False)

    @property
    def count(self) -> int:
        """The number of classes."""
        return len(self.space.train_ids)

    @property
    def things(self) -> list[int]:
        """The channels of countable things; empty where the label space does not tell."""
        classes = (self.space.by_id[i] for i in self.space.train_ids)
        return [channel for channel, c in enumerate(classes) if c.isthing]

    @property
    def void(self) -> int:
        """The value of pixels without a class."""
        return 255 if self.count <= 255 else _IDS - 1

    def lut(self, source: LabelSpace) -> Labels:
        """Return the channel of every 16-bit id of another label space.

        Raises:
            RemapError: no remap leads from it to the model's label space.
        """
        if source.name not in self._luts:
            channel = np.full(_IDS, self.void, np.uint16)
            channel[list(self.space.train_ids)] = np.arange(self.count)
            remap = find_remap(source, self.space).lut
            lut = np.full(_IDS, self.void, np.uint16)
            lut[: len(remap)] = channel[remap]
            self._luts[source.name] = lut.astype(np.uint8) if self.void == 255 else lut
        return self._luts[source.name]


@dataclass
class Survey:
    """What a split holds, from the `classes` column alone: no pixel is touched.

    `pixels[c]` counts class c; `home[c]` counts the valid pixels of the images that show it,
    `images[c]` those images.
    """

    labelled: int
    unlabelled: int
    pixels: NDArray[np.int64]
    home: NDArray[np.int64]
    images: NDArray[np.int64]


@dataclass
class Reader:
    """The labelled rows of a store's split, in the classes of a model."""

    store: Store
    split: str
    channels: Channels
    failures: dict[str, str] = field(default_factory=dict)
    """Image ids that could not be read, and why."""
    oversample: float | None = None
    """Images of classes that a smaller share of the images shows are repeated."""
    with_depth: bool = False
    cache: Cache | None = None
    only: frozenset[str] | None = None
    """The ids of the images to read; None: all."""

    def reads(self, row: dict[str, Any]) -> bool:
        """Tell whether this reads a row of its store, given by image_id, split and classes."""
        chosen = self.only is None or row["image_id"] in self.only
        return chosen and row["classes"] is not None and row["split"] == self.split

    @property
    def where(self) -> pc.Expression:
        """The rows' filter.

        Not `field == split`: a comparison is first tried on the log's statistics of each fragment,
        and where those leave a column out, Delta's reader takes that for "nothing here".
        """
        return pc.match_substring_regex(pc.field("split"), f"^{re.escape(self.split)}$")

    @cached_property
    def survey(self) -> Survey:
        """Count the split's rows and its classes' pixels."""
        out = Survey(0, 0, *(np.zeros(self.channels.count, np.int64) for _ in range(3)))
        for row in self._known():
            if row["classes"] is None:
                out.unlabelled += 1
            elif self.reads(row):
                out.labelled += 1
                counts = self._channel_pixels(row["label_space"], row["classes"])
                out.pixels += counts
                out.home += (counts > 0) * counts.sum()
                out.images += counts > 0
        return out

    def _known(self) -> Iterator[dict[str, Any]]:
        """Yield what the split's rows say of their classes."""
        columns = ["image_id", "split", "classes", "label_space"]
        for batch in self.store.scan(columns, self.where, 4096):
            yield from batch.to_pylist()

    @cached_property
    def _factors(self) -> NDArray[np.float64]:
        """How often an image of each class is to be seen in a pass."""
        survey = self.survey
        share = np.maximum(survey.images, 1) / max(1, survey.labelled)
        return np.maximum(1.0, np.sqrt((self.oversample or 0.0) / share))

    def _repeats(self, space: str, classes: list[dict[str, Any]] | None) -> float:
        if self.oversample is None or not classes:
            return 1.0
        shown = self._channel_pixels(space, classes) > 0
        return float(self._factors[shown].max(initial=1.0))

    @cached_property
    def samples(self) -> int:
        """How many samples a pass over the labelled rows gives, repeats included, on average."""
        if self.oversample is None:
            return self.survey.labelled
        total = 0.0
        for row in self._known():
            if self.reads(row):
                total += self._repeats(row["label_space"], row["classes"])
        return int(total)

    def _channel_pixels(self, space: str, classes: list[dict[str, Any]]) -> NDArray[np.int64]:
        lut = self.channels.lut(self.store.space(space))
        counts = np.zeros(self.channels.count, np.int64)
        for item in classes:
            channel = int(lut[item["id"]])
            if channel != self.channels.void:
                counts[channel] += item["pixels"]
        return counts

    def rows(self, rank: int = 0, world: int = 1) -> Iterator[Row]:
        """Yield every `world`-th labelled row, in the store's order."""
        index = 0
        columns = (*_COLUMNS, "depth") if self.with_depth else _COLUMNS
        for batch in self.store.scan(columns, self.where, _SCAN_ROWS):
            for at in range(batch.num_rows):
                if not batch["mask"][at].is_valid:
                    continue
                if self.only is not None and batch["image_id"][at].as_py() not in self.only:
                    continue
                index += 1
                if (index - 1) % world == rank:
                    values = batch.slice(at, 1).to_pylist()[0]
                    yield row_of(values, self._repeats(values["label_space"], values["classes"]))

    def load(self, row: Row, size: tuple[int, int] | None = None) -> Example:
        """Return one row decoded, brought to a height and width; out of the cache if it is there.

        Raises:
            InputError: its image, mask or depth is missing or bad, or their sizes differ.
        """

        def make() -> Example:
            example = self._decoded(row)
            return example if size is None else resized(example, *size)

        return make() if self.cache is None else self.cache.get(row.image_id, make)

    def _decoded(self, row: Row) -> Example:
        data = read_url(row.path) if row.data is None else row.data
        image = decode(data, row.path, orient=row.upright)
        ids = masks.decode(row.cell, f"{row.image_id}: mask")
        check_size(row, image, ids)
        labels = self.channels.lut(self.store.space(row.label_space))[ids]
        if not self.with_depth:
            return Example(image, labels)
        return Example(image, labels, depth_cells.beside(row.depth, ids.shape, row.image_id))

    def loaded(
        self, rows: Iterator[Row], work: Callable[[Row, int], Any], threads: int, ahead: int
    ) -> Iterator[Any]:
        """Yield work(row, position) for each row, in order, computed ahead by threads.

        Rows whose work raises InputError or OSError are left out and noted in `failures`.
        """
        with closing(computed_ahead(rows, work, threads, ahead)) as results:
            for row, result in results:
                yield from self._good(row, result)

    def _good(self, row: Row, future: Future[Any]) -> Iterator[Any]:
        try:
            result = future.result()
        except (InputError, OSError) as error:
            self.failures.setdefault(row.image_id, str(error))
        else:
            yield result

    def nothing_readable(self) -> StoreError:
        """Return the error of a split in which no image at all could be read."""
        first = next(iter(self.failures.values()), "none has a mask")
        return StoreError(
            f"{self.store.url}: no image of split {self.split!r} can be read (first: {first})"
        )


def check_size(row: Row, image: NDArray[Any], ids: NDArray[Any]) -> None:
    """Raise SizeMismatch unless an image [H, W, 3] and its mask [H, W] are of one size."""
    if image.shape[:2] != ids.shape:
        raise SizeMismatch(
            row.path,
            f"the image is {image.shape[0]}x{image.shape[1]}, its mask "
            f"{ids.shape[0]}x{ids.shape[1]}",
            "ingest the image again, it changed since",
        )


def computed_ahead(
    items: Iterable[T], work: Callable[[T, int], Any], threads: int, ahead: int
) -> Generator[tuple[T, Future[Any]]]:
    """Yield each item with its work(item, position), in order, at most `ahead` of them waiting."""
    pending: deque[tuple[T, Future[Any]]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for position, item in enumerate(items):
                pending.append((item, pool.submit(work, item, position)))
                if len(pending) > ahead:
                    yield pending.popleft()
            while pending:
                yield pending.popleft()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def row_of(values: dict[str, Any], repeats: float = 1.0) -> Row:
    """Return a row of the store, given in Arrow's Python form."""
    image, extra = values["image"] or {}, values["extra"]
    return Row(
        image_id=values["image_id"],
        path=image.get("path") or values["image_id"],
        data=image.get("bytes"),
        cell=values["mask"]["bytes"] or b"",
        depth=None if values.get("depth") is None else Depth(**values["depth"]),
        label_space=values["label_space"],
        upright=bool(extra) and json.loads(extra).get("orientation", 1) != 1,
        repeats=repeats,
    )


def repeated(rows: Iterator[Row], rng: np.random.Generator) -> Iterator[Row]:
    """Yield each row as often as it asks for; the fraction of a time is drawn."""
    for row in rows:
        times = int(row.repeats)
        if row.repeats > times:
            times += int(rng.random() < row.repeats - times)
        yield from repeat(row, times)


def shuffled(rows: Iterator[Row], rng: np.random.Generator, most: int) -> Iterator[Row]:
    """Yield the rows in random order, as far as a buffer of `most` rows and 256 MiB allows."""
    buffer: list[Row] = []
    held = 0
    for row in rows:
        buffer.append(row)
        held += row.size
        if len(buffer) > most or held > _BUFFER_BYTES:
            at = int(rng.integers(len(buffer)))
            buffer[at], buffer[-1] = buffer[-1], buffer[at]
            held -= buffer[-1].size
            yield buffer.pop()
    for at in rng.permutation(len(buffer)):
        yield buffer[at]
