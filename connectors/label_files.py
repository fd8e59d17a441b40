"""A dataset's label files: from bytes to a mask cell with its counts, and from a cell to bytes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np

from pipeline import masks
from pipeline.errors import SizeMismatch, UnknownColour, UsageError
from pipeline.label_space import LabelClass
from pipeline.labels import png

if TYPE_CHECKING:
    from pipeline.image_header import Header
    from pipeline.label_space import LabelMap, LabelSpace
    from pipeline.record import ClassPixels, Record

Colour = tuple[int, int, int]

STRAY_SHARE: Final = 0.001
"""Share of a colour mask's pixels that may have colours of no class; more is another palette."""

_COLOUR_MODES: Final = (2, 6)
_MOST_NAMED: Final = 8


@dataclass(frozen=True, slots=True)
class Label:
    """A label file as the store holds it; `stray` counts pixels of colours that no class has."""

    ids: LabelMap
    cell: bytes
    classes: tuple[ClassPixels, ...]
    stray: dict[Colour, int]


def read_label(data: bytes, space: LabelSpace, path: str) -> Label:
    """Read a label file of class ids: grey, palette, or in the space's colours; never by name.

    Raises:
        InputError: it is damaged, or holds ids or colours that the space does not define.
    """
    if data[:8] == png.SIGNATURE and len(data) > 25 and data[25] in _COLOUR_MODES:
        return read_colour_label(data, space, path)
    ids = masks.read_label(data, path)
    classes = masks.class_pixels(ids, space, path=path)
    # Rows a byte apart are a view of unfiltered rows: the file may be a mask cell already.
    maybe_cell = ids.dtype == space.dtype and ids.strides[0] != ids.shape[1] * ids.itemsize
    ids = ids if ids.dtype == space.dtype else ids.astype(space.dtype)
    palette = space.cell_palette()
    is_cell = maybe_cell and masks.wraps_cell(data, palette, path)
    return Label(ids, data if is_cell else masks.encode(ids, palette), classes, {})


def read_colour_label(data: bytes, space: LabelSpace, path: str) -> Label:
    """Read a label file in the colours of a space.

    Raises:
        UnknownColour: more than `STRAY_SHARE` of the pixels have colours that no class has.
    """
    ids, stray = masks.colours_to_ids(
        masks.read_colour_label(data, path), _with_ignore(space), path
    )
    if sum(stray.values()) > STRAY_SHARE * ids.size:
        ranked = sorted(stray, key=lambda colour: (-stray[colour], colour))
        named = ", ".join(f"{c} on {stray[c]} pixels" for c in ranked[:_MOST_NAMED])
        raise UnknownColour(
            path,
            f"{len(stray)} colours are not in label space {space.name!r}: {named}"
            + (", ..." if len(ranked) > _MOST_NAMED else ""),
            "give the classes of these colours, or replace the file",
        )
    classes = masks.class_pixels(ids, space, path=path)
    return Label(ids, masks.encode(ids, space.cell_palette()), classes, stray)


def _with_ignore(space: LabelSpace) -> LabelSpace:
    """Add the ignore index as a class where it is none, so that its colour is a known one."""
    if space.ignore_index in space.by_id or space.ignore_index > 255:
        return space
    at = 3 * space.ignore_index
    red, green, blue = space.palette()[at : at + 3]
    name = f"ignore {space.ignore_index}"
    ignored = LabelClass(space.ignore_index, name, (red, green, blue), void=True)
    return replace(space, classes=(*space.classes, ignored))


def labelled_size(ids: LabelMap, head: Header, path: str) -> tuple[int, int]:
    """Return the height and width that labels and image agree on: stored, else upright.

    Raises:
        SizeMismatch: they agree on neither.
    """
    height, width = ids.shape
    if (height, width) not in ((head.height, head.width), head.upright()):
        raise SizeMismatch(
            path,
            f"the mask has {width}x{height} pixels, its image {head.width}x{head.height}",
            "replace one of the two; a resized mask must be resized without interpolation",
        )
    return height, width


def extra_of(label: Label, head: Header) -> dict[str, object]:
    """Return what a record's extra says of its label file: stray colours, and an upright grid.

    Truth lies on the stored pixel grid; `orientation` says that it lies on the image turned by it.
    """
    extra: dict[str, object] = {}
    if label.stray:
        extra["unknown_colours"] = {
            ",".join(map(str, colour)): label.stray[colour] for colour in sorted(label.stray)
        }
    if label.ids.shape != (head.height, head.width):
        extra["orientation"] = head.orientation
    return extra


def cell_png(record: Record, space: LabelSpace) -> bytes | None:
    """Return a record's mask as a cell of the space, palette or 16-bit; None without a mask."""
    if record.mask is None or record.mask.bytes is None:
        return None
    return masks.recode(record.mask.bytes, space.cell_palette(), record.image_id)


def palette_png(record: Record, space: LabelSpace) -> bytes | None:
    """Return a record's mask as an 8-bit PNG with the space's palette; None without a mask."""
    cell = _narrow_cell(record, space)
    return None if cell is None else masks.recode(cell, space.palette(), record.image_id)


def grey_png(record: Record, space: LabelSpace) -> bytes | None:
    """Return a record's mask as an 8-bit grey PNG; None without a mask."""
    cell = _narrow_cell(record, space)
    if cell is None:
        return None
    file = png.parse(cell, record.image_id)
    if file.plain and file.depth == 8 and file.colour == png.PALETTE:
        return png.assemble(file, png.GREY, None)  # the same pixels, not deflated again
    return masks.recode(cell, None, record.image_id)


def needs_eight_bits(space: LabelSpace) -> None:
    """Make sure that the ids of a space fit the masks of a format that has 8 bits.

    Raises:
        UsageError: they do not.
    """
    if space.max_id > 255:
        raise UsageError(
            f"label space {space.name!r} has ids up to {space.max_id}, masks of this format hold 8 "
            "bits; choose another --label-space, or --format maskdir"
        )


def _narrow_cell(record: Record, space: LabelSpace) -> bytes | None:
    """Return a record's mask cell, checked to fit 8 bits."""
    needs_eight_bits(space)
    if record.mask is None or record.mask.bytes is None:
        return None
    if len(record.mask.bytes) > 24 and record.mask.bytes[24] == 16:  # IHDR's bit depth
        ids = masks.decode(record.mask.bytes, record.image_id).astype(np.uint8)
        return masks.encode(ids, space.palette())
    return record.mask.bytes


def colour_png(record: Record, space: LabelSpace) -> bytes | None:
    """Return a record's mask as an RGB PNG in the space's colours; None without a mask."""
    if record.mask is None or record.mask.bytes is None:
        return None
    import cv2

    ids = masks.decode(record.mask.bytes, record.image_id)
    pixels = np.take(_blue_green_red(space), ids, axis=0)
    done, data = cv2.imencode(".png", pixels)
    if not done:
        raise UsageError(f"{record.image_id}: OpenCV cannot write a colour mask")
    return bytes(data)


def _blue_green_red(space: LabelSpace) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
    """Return the colour of every id, [256 or 65536, 3], in OpenCV's order.

    Raises:
        UsageError: two ids have one colour, so that the mask could not be read back.
    """
    table = np.zeros((256 if space.dtype is np.uint8 else 65536, 3), dtype=np.uint8)
    owners: dict[Colour, str] = {}
    for c in _with_ignore(space).classes:
        if c.colour in owners:
            raise UsageError(
                f"label space {space.name!r}: {c.name!r} and {owners[c.colour]!r} have the same "
                f"colour {c.colour}, a colour mask cannot tell them apart; use --format maskdir"
            )
        owners[c.colour] = c.name
        table[c.id] = c.colour[::-1]
    return table
