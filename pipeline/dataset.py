"""A label store as data for a training loop of your own.

    dataset = StoreDataset("stores/voc", where="split = 'train'", size=(512, 512), seed=7)
    loader = dataset.loader(batch=8, threads=4)
    while loader.epoch < 20:
        for batch in loader:                       # batch["image"], batch["mask"]
            ...
            torch.save({"data": loader.state_dict(), ...}, "checkpoint.pt")

An epoch shows every row once, over all ranks and worker processes together, in an order that the
seed and the epoch decide alone: not the number of processes or threads, nor the batch's size. What
is held: four bytes a row of the store, a window of at most about 320 MB of rows as stored, and a
few decoded samples. Each worker process reads the window's row groups for itself, so threads
come first (the libraries that decode let Python go on), and processes are for transforms that keep
Python busy.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

from pipeline import depth as depth_cells
from pipeline import masks
from pipeline.errors import InputError, StoreError, UsageError
from pipeline.files import LOG, read_url
from pipeline.images import decode
from pipeline.label_space import LabelSpace, find_remap, label_space
from pipeline.pseudo.rows import confidence_map
from pipeline.pseudo.view import View
from pipeline.record import COLUMNS
from pipeline.samples import one_ahead
from pipeline.store import Store
from pipeline.training.augment import resized
from pipeline.training.data import Channels, check_size, computed_ahead, row_of
from pipeline.training.example import Example
from pipeline.training.loader import Piece, StoreLoader
from pipeline.training.order import WINDOW_BYTES, Draw, parts_of, windows

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import pyarrow.compute as pc
    from numpy.typing import NDArray

    from pipeline.label_space import LabelMap
    from pipeline.pseudo.view import SpaceView

    Values = dict[str, Any]

_WEIGHTS: Final = "weights"
_MASKED: Final = frozenset({"mask", "confidence", _WEIGHTS})
_ARRAYS: Final = _MASKED | {"image", "depth"}


class StoreDataset(IterableDataset[Any]):
    """The rows of one version of a label store, as samples; picklable.

    A sample is a dict of the columns asked for, or what `transform` makes of it:

    - `image`: uint8 [H, W, 3] RGB, upright where the mask is;
    - `mask`: [H, W], the position of each pixel's class in `classes`; `void` (255, or 65535 above
      255 classes) where there is none. uint8, int32 above 255 classes;
    - `confidence`: uint8 [H, W], 255 everywhere for truth;
    - `weights`: float32 [H, W] in 0..1, a pixel's weight in a loss as the view has it;
    - `depth`: float32 [H, W] in metres, 0 where nothing was measured;
    - any other column of the record as Python has it.

    `where` is an SQL condition on the columns or an Arrow expression. `version` is a number or a
    tag; the newest version is pinned when this is made. `label_space` names the classes to learn,
    where they are not those of the rows. `view` tells which soft labels count. With a `size`,
    height and width, images are averaged or interpolated and everything else is taken by nearest.
    Rows without a mask are left out where a mask is asked for. `rank` and `world` are those of
    torch.distributed where it runs, else 0 and 1; `even` gives all ranks the same number of rows.

    Rows are mixed in two ways: parts of up to 64 MiB come in random order, and what `window` bytes
    of them hold (256 MiB) is mixed row by row.

    A row that can't be read raises, or with `on_error="skip"` is left out, logged, and noted in
    `failures` (in `failures` of the loader, where one is used).

    Raises:
        NotAStore: there is no store.
        RemapError: no remap leads from the rows' classes to `label_space`.
        UsageError: a column, condition, view or rank makes no sense.
        StoreError: no row meets the condition.
    """

    def __init__(
        self,
        store: str | os.PathLike[str],
        *,
        columns: Sequence[str] = ("image", "mask"),
        where: pc.Expression | str | None = None,
        version: int | str | None = None,
        label_space: str | LabelSpace | None = None,
        view: str | View | None = None,
        size: tuple[int, int] | None = None,
        transform: Callable[[Values], Any] | None = None,
        shuffle: bool = True,
        seed: int = 0,
        rank: int | None = None,
        world: int | None = None,
        even: bool = False,
        window: int = WINDOW_BYTES,
        on_error: Literal["raise", "skip"] = "raise",
        options: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        opened = Store.open(store, version, options)
        self.store = Store(opened.url, opened.version, options)
        self.columns, self.where, self.size = tuple(columns), where, size
        self.view = View.parse(view) if isinstance(view, str) else view
        self.transform, self.window, self.on_error = transform, window, on_error
        _check(self.columns, self.view)
        ranks = _ranks() if rank is None or world is None else (rank, world)
        if not 0 <= ranks[0] < ranks[1]:
            raise UsageError(f"rank {ranks[0]} of {ranks[1]} ranks: ranks are 0 to world - 1")
        self.draw = Draw(seed, 0, *ranks, shuffle, even)
        masked = bool(_MASKED & set(self.columns))
        self.parts = parts_of(self.store, where, masked=masked)
        self.total = sum(len(part.rows) for part in self.parts)
        if not self.total:
            what = "row with a mask" if masked else "row"
            raise StoreError(
                f"{self.store.url}: version {self.version} has no {what} {where or ''}"
            )
        self.space = self._target(label_space) if masked else None
        space = self.space or next(iter(self.store.label_spaces.values()))
        self._channels = Channels(space)
        self._views: dict[str, SpaceView] = {}
        self.failures: dict[str, str] = {}

    def _target(self, asked: str | LabelSpace | None) -> LabelSpace:
        """Return the label space to learn, which all rows lead to."""
        if isinstance(asked, LabelSpace):
            target = asked
        elif asked is not None:
            known = self.store.label_spaces
            target = known[asked] if asked in known else label_space(asked)
        else:
            target = self._only_space()
        for space in self._spaces:
            find_remap(space, target)
            if self.view is not None:
                self.view.of(space)
        return target

    @cached_property
    def _spaces(self) -> list[LabelSpace]:
        known = list(self.store.label_spaces.values())
        return known if len(known) == 1 else self.store.used_spaces(self.where)

    def _only_space(self) -> LabelSpace:
        if len(self._spaces) == 1:
            return self._spaces[0]
        names = ", ".join(space.name for space in self._spaces)
        raise UsageError(
            f"{self.store.url}: the rows' classes are of several label spaces ({names}); say "
            "which to learn with label_space=, or choose rows with where="
        )

    # --- what it is -------------------------------------------------------------------------------

    @property
    def version(self) -> int:
        """The store's version that is read, whatever is committed meanwhile."""
        return self.store.version

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes: `mask` holds positions in it; empty without masks."""
        if self.space is None:
            return ()
        return tuple(self.space.by_id[i].name for i in self.space.train_ids)

    @property
    def void(self) -> int:
        """The value of pixels without a class: the `ignore_index` of a loss."""
        return self._channels.void

    def __len__(self) -> int:
        low, high = self.draw.share(self.total)
        return high - low

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next pass; a loader does this itself."""
        self.draw = replace(self.draw, epoch=epoch)

    # --- passes -----------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Any]:
        """Yield this rank's samples; in a worker of a DataLoader, that worker's part of them."""
        for piece in self.pieces():
            for error in piece.failures:
                self.noted(error, self.failures)
            yield from piece.samples

    def noted(self, error: InputError | OSError, failures: dict[str, str]) -> None:
        """Raise what a row failed by, or note it where such rows are to be left out."""
        if self.on_error == "raise":
            raise error
        LOG.warning("left out: %s", error)
        failures.setdefault(str(getattr(error, "path", error)), str(error))

    def nothing_readable(self, failures: dict[str, str]) -> StoreError:
        """Return the error of a share in which no row at all could be read."""
        first = next(iter(failures.values()), "")
        return StoreError(f"{self.store.url}: no row of this rank's can be read (first: {first})")

    def pieces(self, start: int = 0, batch: int = 1, threads: int = 1) -> Iterator[Piece]:
        """Yield batches of this rank's samples from a position on, in a worker every W-th batch.

        Batch k is worker k mod W's, and a DataLoader asks its workers in turn: so the order is the
        same for any number of them.
        """
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        rows = self._rows(start, batch, worker, workers)
        held: list[tuple[int, Any]] = []

        def work(row: tuple[int, Values], _: int) -> Any:
            return self.sample(row[1])

        for (number, _), future in computed_ahead(rows, work, threads, ahead=threads + batch - 1):
            if held and held[0][0] != number:
                yield Piece.of([result for _, result in held])
                held = []
            try:
                held.append((number, future.result()))
            except (InputError, OSError) as error:
                held.append((number, error))
        if held:
            yield Piece.of([result for _, result in held])

    def _rows(
        self, start: int, batch: int, worker: int, workers: int
    ) -> Iterator[tuple[int, Values]]:
        """Yield the number of its batch and each row as stored."""

        def read() -> Iterator[tuple[list[int], list[Values]]]:
            for window in windows(self.parts, self.draw, self.window):
                first = window.start - start
                numbers = np.arange(max(0, first), first + len(window.rows)) // batch
                mine = numbers % workers == worker
                places = np.flatnonzero(mine) + max(0, -first)
                if len(places):
                    found = window.read(self.store, places, self._needed)
                    yield numbers[mine].tolist(), found

        for numbers, found in one_ahead(read()):
            yield from zip(numbers, found, strict=True)

    @cached_property
    def _needed(self) -> list[str]:
        """The columns of the store that a sample is made of."""
        names = {name for name in self.columns if name in COLUMNS}
        if _ARRAYS & set(self.columns):
            names |= {"image_id", "image", "label_space", "extra"}
            names.add("mask" if _MASKED & set(self.columns) else "classes")
        if self.view is not None or {"confidence", _WEIGHTS} & set(self.columns):
            names |= {"confidence", "image_labels"}
        return [name for name in COLUMNS if name in names]

    # --- one sample -------------------------------------------------------------------------------

    def sample(self, values: Values) -> Any:
        """Return the sample of a row in Arrow's Python form.

        Raises:
            InputError: the image or a cell is missing or bad, or their sizes differ.
        """
        out = {name: values[name] for name in self.columns if name not in _ARRAYS}
        if _ARRAYS & set(self.columns):
            out |= self._arrays(values)
        ordered = {name: out[name] for name in self.columns}
        return ordered if self.transform is None else self.transform(ordered)

    def _arrays(self, values: Values) -> Values:
        out: Values = {}
        # Labels lie on the image as it is stored, unless the row says otherwise; without any, it is
        # shown as people see it.
        bare = values.get("mask", values.get("classes")) is None
        row = row_of({"mask": {"bytes": None}} | values)
        if _MASKED & set(self.columns):
            ids = masks.decode(row.cell, f"{row.image_id}: mask")
            if self.view is not None or {"confidence", _WEIGHTS} & set(self.columns):
                ids = self._judged(values, ids, out)
            labels = self._channels.lut(self.store.space(row.label_space))[ids]
            out["mask"] = labels.astype(np.int32) if labels.dtype == np.uint16 else labels
        if {"image", "depth"} & set(self.columns):
            data = read_url(row.path) if row.data is None else row.data
            out["image"] = decode(data, row.path, orient=row.upright or bare)
            if "mask" in out:
                check_size(row, out["image"], out["mask"])
        if "depth" in self.columns:
            out["depth"] = depth_cells.beside(row.depth, out["image"].shape[:2], row.image_id)
        out = {name: array for name, array in out.items() if name in self.columns}
        return out if self.size is None else _to_size(out, self.size)

    def _judged(self, values: Values, ids: LabelMap, out: Values) -> LabelMap:
        """Put confidence and weights into `out`; return the ids that the view keeps."""
        cell = (values["confidence"] or {}).get("bytes")
        name = values["image_id"]
        if cell is None:  # truth
            out["confidence"] = np.full(ids.shape, 255, np.uint8)
            ignored = self.store.space(values["label_space"]).ignore_index
            out[_WEIGHTS] = (ids != ignored).astype(np.float32)
            return ids
        sure = out["confidence"] = confidence_map(cell, ids.shape, name)
        if self.view is None:
            return ids
        space = values["label_space"]
        if space not in self._views:
            self._views[space] = self.view.of(self.store.space(space))
        present = values["image_labels"] or None
        if _WEIGHTS in self.columns:
            out[_WEIGHTS] = self._views[space].weights(ids, sure, present)
        return self._views[space].hard(ids, sure, present)

    def loader(
        self,
        batch: int,
        *,
        workers: int = 0,
        threads: int = 1,
        drop_last: bool = False,
        pin_memory: bool = False,
        context: str | None = None,
    ) -> StoreLoader:
        """Return stacked batches that know how far the loop is; arguments as of `StoreLoader`."""
        return StoreLoader(self, batch, workers, threads, drop_last, pin_memory, context)


def _check(columns: Sequence[str], view: View | None) -> None:
    unknown = [name for name in columns if name not in {*COLUMNS, _WEIGHTS}]
    if unknown or not columns:
        raise UsageError(
            f"columns={list(columns)}: choose from {', '.join(COLUMNS)} and {_WEIGHTS}"
        )
    if _WEIGHTS in columns and view is None:
        raise UsageError(f"column {_WEIGHTS!r} is a view's: say which one with view=")


def _ranks() -> tuple[int, int]:
    """Return this process's rank and how many there are."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def _to_size(arrays: Values, size: tuple[int, int]) -> Values:
    """Return the arrays at another height and width."""

    def nearest(array: NDArray[Any]) -> NDArray[Any]:
        import cv2

        out: NDArray[Any] = cv2.resize(array, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
        return out

    out = {name: nearest(array) for name, array in arrays.items() if name != "image"}
    if "image" in arrays:
        image = arrays["image"]
        out["image"] = resized(Example(image, np.zeros(image.shape[:2], np.uint8)), *size).image
    return out
