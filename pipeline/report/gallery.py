"""A page to look at a store: image, mask and overlay of each row, filtered by class and confidence.

The page is `index.html`, `items.js` (one line a row) and `thumbs/`; it works from disk, and draws
only the cards that are looked at, so that thousands of rows are no burden.
"""

from __future__ import annotations

import json
from copy import copy
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from pipeline.errors import InputError
from pipeline.in_order import in_order
from pipeline.masks import decode, paint
from pipeline.record import Instance
from pipeline.report import pictures, render
from pipeline.tables.rows import list_rows, rows_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import pyarrow.compute as pc

    from pipeline.in_order import Chunk
    from pipeline.label_space import LabelMap, LabelSpace
    from pipeline.runner import Runner
    from pipeline.store import Store
    from pipeline.tables.rows import Listing, RowKey
    from pipeline.trees.sinks import Sink

_CHUNK: Final = 32
_COLUMNS: Final = (
    "image_id", "dataset", "split", "height", "width", "label_space", "classes", "instances",
    "provenance", "image.path", "image.bytes", "mask.bytes", "confidence.bytes",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class GallerySums:
    """What `write_gallery` did: rows chosen, shown whole, and shown with something missing."""

    rows: int
    """Rows that the filter left."""
    inputs: int
    done: int
    failed: int
    messages: tuple[str, ...]
    """Why pictures are missing: the first hundred."""


def write_gallery(
    store: Store,
    sink: Sink,
    *,
    runner: Runner,
    title: str,
    where: pc.Expression | str | None = None,
    limit: int = 500,
    sample: bool = False,
    side: int = 480,
    advance: Callable[[int], None] = lambda _: None,
) -> GallerySums:
    """Write the page and its thumbnails, the longer side of each at most `side` pixels.

    Of more than `limit` rows the first by image_id are shown; with `sample` a fixed random choice.
    A row whose image or mask is bad is shown without it and counted as failed.
    """
    listing = list_rows(store, where)
    chosen = _choose(listing, limit, sample=sample)
    keys = (
        key
        for first in range(0, len(chosen), _CHUNK)
        for key in listing.named(chosen[first : first + _CHUNK])
    )
    sums = _Sums()
    with sink.stream("items.js") as file:
        file.write(b"window.SEGMILL_ITEMS = [\n")
        plan = ThumbPlan(store, sink, side)
        for items in in_order(runner, plan, keys, _lost, _CHUNK):
            for item in items:
                sums.add(item)
                file.write(json.dumps(item, ensure_ascii=True).encode() + b",\n")
            advance(len(items))
        file.write(b"];\n")
    page = render(
        "gallery.html",
        title=title,
        shown=len(chosen),
        rows=listing.rows,
        sampled=sample and len(chosen) < listing.rows,
        spaces=[_space(store.space(name)) for name in listing.label_spaces()],
    )
    sink.write("index.html", page)
    return GallerySums(
        listing.rows, len(chosen), sums.done, len(chosen) - sums.done, tuple(sums.messages)
    )


def _choose(listing: Listing, limit: int, *, sample: bool) -> list[int]:
    """Return the rows to show, in the listing's order."""
    if not sample or listing.rows <= limit:
        return list(range(min(limit, listing.rows)))
    hashes = listing.hashes("dataset", "split", "image_id")
    return sorted(np.argsort(hashes, kind="stable")[:limit].tolist())


def _space(space: LabelSpace) -> dict[str, Any]:
    """Return what the page needs of a label space."""
    classes = {
        c.id: [c.name, "#{:02x}{:02x}{:02x}".format(*c.colour), c.id in space.train_ids]
        for c in space.classes
    }
    return {"name": space.name, "classes": classes}


@dataclass(slots=True)
class _Sums:
    done: int = 0
    messages: list[str] = field(default_factory=list)

    def add(self, item: Mapping[str, Any]) -> None:
        self.done += item["error"] is None
        if item["error"] is not None and len(self.messages) < 100:
            self.messages.append(f"{item['id']}: {item['error']}")


# --- the work on one chunk ------------------------------------------------------------------------


Items = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class ThumbPlan:
    """A picklable factory: makes the worker that draws chunks."""

    store: Store
    sink: Sink
    side: int

    def __call__(self) -> Callable[[Chunk[RowKey]], Items]:
        """Make the worker; it opens the store anew, so that threads share no reader."""
        return _ThumbWorker(copy(self.store), self.sink, self.side)


def _lost(chunk: Chunk[RowKey], error: InputError) -> Items:
    """Return the cards of rows that kill whoever draws them."""
    return [asdict(Item(k.image_id, k.dataset, error=str(error))) for k in chunk.items]


@dataclass(slots=True)
class Item:
    """One card: what the page's script knows of a row."""

    id: str
    dataset: str
    split: str = ""
    width: int = 4
    height: int = 3
    space: str = ""
    kind: str = ""
    image: str | None = None
    mask: str | None = None
    confidence: str | None = None
    mean: float | None = None
    """Mean confidence of the mask's pixels, 0..1."""
    classes: list[list[float]] = field(default_factory=list)
    """[id, share of the image's pixels, mean confidence or -1], the largest first."""
    error: str | None = None


@dataclass(frozen=True, slots=True)
class _ThumbWorker:
    store: Store
    sink: Sink
    side: int

    def __call__(self, chunk: Chunk[RowKey]) -> Items:
        numbers = {key: chunk.first + n for n, key in enumerate(chunk.items)}
        drawn: dict[RowKey, dict[str, Any]] = {}
        for key, values in rows_of(self.store, chunk.items, _COLUMNS):
            row = dict(zip(_COLUMNS, values, strict=True))
            drawn[key] = asdict(self._draw(numbers[key], row))
        return [drawn[key] for key in chunk.items]

    def _draw(self, number: int, row: Mapping[str, Any]) -> Item:
        """Write a row's thumbnails; what is bad is left out and told."""
        item = _item(row)
        stem = f"thumbs/{number // 1000:03d}/{number:06d}"
        space = self.store.space(row["label_space"])
        errors = []
        for name, draw in (("image", _image), ("mask", _mask), ("confidence", _confidence)):
            try:
                made = draw(row, space, self.side)
            except InputError as error:
                errors.append(" ".join(str(error).split()))
                continue
            if made is not None:
                suffix, data = made
                self.sink.write(stem + suffix, data)
                setattr(item, name, stem + suffix)
        item.error = "; ".join(errors) or None
        return item


def _item(row: Mapping[str, Any]) -> Item:
    """Return a row's card, without pictures."""
    pixels = max(1, row["height"] * row["width"])
    held = sorted(row["classes"] or (), key=lambda c: -c["pixels"])
    sure = [(c["pixels"], c["confidence"]) for c in held if c["confidence"] is not None]
    mean = sum(n * p for n, p in sure) / max(1, sum(n for n, _ in sure)) if sure else None
    return Item(
        id=row["image_id"],
        dataset=row["dataset"] or "",
        split=row["split"] or "",
        width=row["width"],
        height=row["height"],
        space=row["label_space"],
        kind=(row["provenance"] or {}).get("kind") or "",
        mean=None if mean is None else round(mean, 4),
        classes=[
            [c["id"], round(c["pixels"] / pixels, 5), round(-1 if s is None else s, 4)]
            for c in held
            for s in (c["confidence"],)
        ],
    )


def _image(row: Mapping[str, Any], _: LabelSpace, side: int) -> tuple[str, bytes]:
    from pipeline.files import read_url
    from pipeline.images import decode as decode_image

    path, data = row["image.path"], row["image.bytes"]
    held = data if data is not None else read_url(path or row["image_id"])
    return ".jpg", pictures.jpeg(pictures.shrink(decode_image(held, path or row["image_id"]), side))


def _mask(row: Mapping[str, Any], space: LabelSpace, side: int) -> tuple[str, bytes] | None:
    mask: LabelMap
    if row["mask.bytes"] is not None:
        mask = decode(row["mask.bytes"], f"{row['image_id']} (mask)")
    elif row["instances"]:
        objects = [
            Instance(i["id"], i["category"], None, i["area"], rle=i["rle"])
            for i in row["instances"]
        ]
        mask = paint(objects, row["height"], row["width"], space, path=row["image_id"])
    else:
        return None
    small = pictures.shrink_labels(mask, side)
    return ".png", pictures.labels_png(small, space, clear_void=True)


def _confidence(row: Mapping[str, Any], _: LabelSpace, side: int) -> tuple[str, bytes] | None:
    if row["confidence.bytes"] is None:
        return None
    cell = decode(row["confidence.bytes"], f"{row['image_id']} (confidence)")
    return "-p.jpg", pictures.jpeg(pictures.shrink_labels(cell, side // 2).astype(np.uint8))
