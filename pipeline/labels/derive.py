"""One kind of label made from the other, where a format has only that one.

Painting objects and cutting a mask into regions both lose something; writers count it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pipeline import masks
from pipeline.errors import LabelOutOfRange
from pipeline.labels.regions import Regions
from pipeline.record import File

if TYPE_CHECKING:
    from pipeline.label_space import LabelMap, LabelSpace
    from pipeline.record import Record


def painted(
    record: Record, space: LabelSpace, drawing: masks.Drawing | None = None
) -> LabelMap | None:
    """Return the mask that the objects of a record without one paint, larger ones first: [H, W].

    Pixels of no object are the class `background` where the space has it, else void. None for a
    record that has a mask, or objects none of which has run lengths; an image that is known to show
    no object is all background, where there is such a class. `drawing` is of the record's objects,
    where the caller has it.

    Raises:
        LabelOutOfRange: an object's class is not in the space.
        BadAnnotation: run lengths are malformed, or of another size; or over 65,535 objects.
    """
    if (record.mask and record.mask.bytes) or record.instances is None:
        return None
    ground = space.by_name.get("background")
    empty = not record.instances and ground is not None
    if not empty and not any(i.rle for i in record.instances):
        return None
    drawing = drawing or masks.Drawing.of(
        record.instances, record.height, record.width, record.image_id
    )
    stray = {i.category for i in drawing.objects if i.rle} - {*space.by_id, space.ignore_index}
    if stray:
        raise LabelOutOfRange(
            record.image_id,
            f"objects of classes {sorted(stray)}, which label space {space.name!r} does not define",
            "fix the objects, or read them with the label space that they were made for",
        )
    fill = ground.id if ground else space.ignore_index
    return drawing.map((i.category for i in drawing.objects), fill, space.dtype)


def with_mask(record: Record, space: LabelSpace) -> Record:
    """Give a record that has objects but no mask the mask that they paint (see `painted`).

    Any other record is returned as it is.
    """
    ids = painted(record, space)
    if ids is None:
        return record
    cell = masks.encode(ids, space.cell_palette())
    return replace(record, mask=File(None, cell), classes=masks.class_pixels(ids, space))


def with_instances(record: Record, space: LabelSpace) -> Record:
    """Give a record that has a mask but no objects one object for each class's whole region.

    A mask does not tell objects of one class apart. Void classes, the ignore index and a class
    called `background` make none. Ids count from 1 in the order of the classes.
    """
    if record.instances is not None or record.mask is None or record.mask.bytes is None:
        return record
    ids = masks.decode(record.mask.bytes, record.image_id)
    if record.classes is None:
        masks.check_ids(ids, space, record.image_id)
    regions = Regions.of(ids)
    places = {number: place for place, number in enumerate(regions.numbers.tolist())}
    shown = [c for c in space.train_ids if c in places and space.by_id[c].name != "background"]
    found = [(places[c], number, c, False) for number, c in enumerate(shown, 1)]
    return replace(record, instances=regions.instances(found))
