"""Images that are learned from without their masks: crops, and whole ones with image-level labels.

Their streams have no end: a pass over the labelled images decides how long an epoch is. As with
labelled batches, every sample draws from a generator of its own, so an epoch can be repeated alone.
"""

from __future__ import annotations

import re
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count, islice
from typing import TYPE_CHECKING, Any, Final, Self

import cv2
import numpy as np
import pyarrow.compute as pc
import torch

from pipeline.errors import StoreError
from pipeline.files import read_url
from pipeline.images import decode
from pipeline.training.augment import augmented, resized
from pipeline.training.batches import prefetched, train_batches
from pipeline.training.data import Reader, Row, shuffled
from pipeline.training.example import Example
from pipeline.training.recipe import Jitter
from pipeline.training.waiting import Timed

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator
    from types import TracebackType

    from numpy.typing import NDArray
    from torch import Tensor

    from pipeline.training.batches import Batch, Epoch
    from pipeline.training.methods.options import Stream
    from pipeline.training.place import Place
    from pipeline.training.recipe import Recipe

_COLUMNS: Final = ("image_id", "split", "image", "label_space", "classes", "image_labels")
_KNOWN: Final = ("image_id", "split", "classes", "image_labels")
_SCAN_ROWS: Final = 32  # rows may embed images
_STREAMS: Final[dict[Stream, int]] = {"unlabelled": 1, "weak": 2}
"""What sets the streams' random numbers apart."""


@dataclass(frozen=True, slots=True)
class Pictures:
    """A batch of N images without masks."""

    ids: tuple[str, ...]
    images: Tensor
    """uint8 [N, H, W, 3]."""
    shown: Tensor
    """bool [N, H, W]: False where an image smaller than the crop is padded."""
    present: Tensor
    """float32 [N, C]: 1 for the classes in the image, as far as the stream tells, else 0."""


@dataclass(frozen=True, slots=True)
class Unmasked(Row):
    """One image as the store holds it, and the ids of the classes that it shows, where told."""

    present: tuple[int, ...] = ()


@dataclass
class ImageReader(Reader):
    """The images of a store's split whose masks are not looked at."""

    taken: Reader | None = None
    """A reader of the same store: the rows that it reads with their masks are left out."""
    weak: bool = False
    """Whether only images with image-level labels are read.

    A row without `image_labels` whose mask is withheld has the mask's classes as such.
    """

    @property
    def where(self) -> pc.Expression:
        """The rows' filter: the split, and beside labelled rows also the split "unlabelled"."""
        names = {self.split} if self.taken is None else {self.split, "unlabelled"}
        either = "|".join(re.escape(name) for name in sorted(names))
        return pc.match_substring_regex(pc.field("split"), f"^({either})$")

    def _reads(self, row: dict[str, Any]) -> bool:
        if self.taken is not None and self.taken.reads(row):
            return False
        return not self.weak or _told(row) is not None

    @cached_property
    def images(self) -> int:
        """How many rows it reads."""
        batches = self.store.scan(list(_KNOWN), self.where, 4096)
        return sum(self._reads(row) for batch in batches for row in batch.to_pylist())

    def rows(self, rank: int = 0, world: int = 1) -> Iterator[Row]:
        """Yield every `world`-th row, in the store's order."""
        index = 0
        for batch in self.store.scan(list(_COLUMNS), self.where, _SCAN_ROWS):
            known = batch.select(_KNOWN).to_pylist()
            for at, row in enumerate(known):
                if not self._reads(row):
                    continue
                index += 1
                if (index - 1) % world == rank:
                    yield _unmasked(batch.slice(at, 1).to_pylist()[0])

    def picture(self, row: Row) -> NDArray[np.uint8]:
        """Decode one image, uint8 [H, W, 3].

        Raises:
            InputError: it is missing or bad.
        """
        return decode(read_url(row.path) if row.data is None else row.data, row.path)

    def presence(self, row: Row) -> NDArray[np.float32]:
        """Return 1 for each class that the row says is in the image, float32 [C]."""
        out = np.zeros(self.channels.count, np.float32)
        if self.weak and isinstance(row, Unmasked):
            lut = self.channels.lut(self.store.space(row.label_space))
            channels = lut[list(row.present)]
            out[channels[channels != self.channels.void]] = 1
        return out

    def check(self, method: str) -> None:
        """Refuse a stream without images.

        Raises:
            StoreError: there is none.
        """
        if not self.images:
            what = "image_labels" if self.weak else "no mask in use"
            raise StoreError(
                f"{self.store.url}: split {self.split!r} has no image with {what}, which method "
                f"{method!r} learns from; name a store with --unlabelled, or hold masks back "
                "with --labelled"
            )


def _told(row: dict[str, Any]) -> list[int] | None:
    """Return the ids of the classes that a row says are in its image; None where it doesn't."""
    if row["image_labels"] is not None:
        return list(row["image_labels"])
    return None if row["classes"] is None else [item["id"] for item in row["classes"]]


def _unmasked(values: dict[str, Any]) -> Unmasked:
    image = values["image"] or {}
    return Unmasked(
        image_id=values["image_id"],
        path=image.get("path") or values["image_id"],
        data=image.get("bytes"),
        cell=b"",
        label_space=values["label_space"],
        upright=True,
        present=tuple(_told(values) or ()),
    )


def picture_batches(
    reader: ImageReader, recipe: Recipe, epoch: Epoch, place: Place, size: tuple[int, int] | None
) -> Generator[Pictures]:
    """Yield batches without end: random crops, or whole images where their labels are read.

    An image-level label says nothing of a crop, so a weak image is brought to the crop's size.
    Colours stay as they are: they are changed where a view of the image shall be hard.

    Raises:
        StoreError: no row can be read.
    """
    with closing(prefetched(_batched(_samples(reader, recipe, epoch, place, size), recipe))) as it:
        yield from it


_Sample = tuple[str, "NDArray[np.uint8]", "NDArray[np.bool_]", "NDArray[np.float32]"]


def _samples(
    reader: ImageReader, recipe: Recipe, epoch: Epoch, place: Place, size: tuple[int, int] | None
) -> Generator[_Sample]:
    stream = _STREAMS["weak" if reader.weak else "unlabelled"]
    mine = -(-reader.images // place.world)
    # A buffer that holds all rows draws from all of them; a smaller one starts near the front.
    skip = epoch.number * epoch.steps * recipe.batch % mine if mine > recipe.shuffle_rows else 0
    for turn in count():
        seed = (recipe.seed, epoch.number, turn, place.rank, stream)

        def work(row: Row, position: int, seed: tuple[int, ...] = seed) -> _Sample:
            rng = np.random.default_rng((*seed, position))
            image, shown = _view(reader.picture(row), reader, recipe, size, rng)
            return row.image_id, image, shown, reader.presence(row)

        rows = islice(reader.rows(place.rank, place.world), skip if turn == 0 else 0, None)
        mixed = shuffled(rows, np.random.default_rng(seed), recipe.shuffle_rows)
        good = 0
        for sample in reader.loaded(mixed, work, place.threads, ahead=2 * recipe.batch):
            good += 1
            yield sample
        if not good and turn:
            raise reader.nothing_readable()


def _view(
    image: NDArray[np.uint8],
    reader: ImageReader,
    recipe: Recipe,
    size: tuple[int, int] | None,
    rng: np.random.Generator,
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Return the image as the network sees it, and which pixels are the image's."""
    how = recipe.augment.model_copy(update={"jitter": Jitter(), "focus": 0.0})
    if reader.weak:
        size = how.crop
    example = _bare(image)
    if size is not None:
        example = resized(example, *size)
    if not reader.weak:
        example = augmented(example, how, 255, rng)
    elif rng.random() < how.flip:
        example = example.map(lambda a: cv2.flip(a, 1))
    return example.image, example.labels == 0


def _bare(image: NDArray[np.uint8]) -> Example:
    """Return an image with labels that say no more than where it is."""
    return Example(image, np.zeros(image.shape[:2], np.uint8))


def _batched(samples: Generator[_Sample], recipe: Recipe) -> Generator[Pictures]:
    try:
        while True:
            ids, images, shown, present = zip(*islice(samples, recipe.batch), strict=True)
            yield Pictures(
                ids, *(torch.from_numpy(np.stack(part)) for part in (images, shown, present))
            )
    finally:
        samples.close()


@dataclass
class Streams:
    """What an epoch learns from: iterating gives labelled batches, the others are asked for."""

    labelled: Iterator[Batch]
    others: dict[Stream, Iterator[Pictures]] = field(default_factory=dict)
    everything: Callable[[], Iterator[tuple[str, NDArray[np.uint8]]]] | None = None
    """Every unlabelled image once, in the store's order, whole, with its id."""
    _stack: ExitStack = field(default_factory=ExitStack)
    _timed: tuple[Timed[Any], ...] = ()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        return next(self.labelled)

    def unlabelled(self) -> Pictures:
        """Return the next crops of unlabelled images."""
        return next(self.others["unlabelled"])

    def weak(self) -> Pictures:
        """Return the next images with image-level labels."""
        return next(self.others["weak"])

    def seconds(self) -> tuple[float, float]:
        """Return the seconds that the device waited for batches, and all since they were opened."""
        found = [each.seconds() for each in self._timed]
        return sum(waited for waited, _ in found), max((whole for _, whole in found), default=0.0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()


def open_streams(
    labelled: Reader,
    others: dict[Stream, ImageReader],
    recipe: Recipe,
    epoch: Epoch,
    place: Place,
    size: tuple[int, int] | None,
) -> Streams:
    """Return an epoch's batches, to be closed; nothing is read before it is asked for."""
    stack = ExitStack()
    batches = stack.enter_context(closing(train_batches(labelled, recipe, epoch, place, size)))
    pictures = {
        name: stack.enter_context(closing(picture_batches(reader, recipe, epoch, place, size)))
        for name, reader in others.items()
    }

    def everything() -> Iterator[tuple[str, NDArray[np.uint8]]]:
        reader = others["unlabelled"]

        def work(row: Row, _: int) -> tuple[str, NDArray[np.uint8]]:
            image = reader.picture(row)
            if size is not None:
                image = resized(_bare(image), *size).image
            return row.image_id, image

        return reader.loaded(reader.rows(), work, place.threads, 2 * recipe.batch)

    labelled_ready = Timed(batches, place.device)
    ready = {name: Timed(each, place.device) for name, each in pictures.items()}
    clocks: tuple[Timed[Any], ...] = (labelled_ready, *ready.values())
    return Streams(labelled_ready, dict(ready), everything, stack, clocks)
