"""One kind of label made from the other, where a format has only that one.

Painting objects and cutting a mask into regions both lose something; writers count it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pipeline import masks
from pipeline.labels.regions import Regions
from pipeline.record import File

if TYPE_CHECKING:
    from pipeline.label_space import LabelSpace
    from pipeline.record import Record


def with_mask(record: Record, space: LabelSpace) -> Record:
    """Give a record that has objects but no mask the mask that they paint, larger ones first.

    Pixels of no object are the class `background` where the space has it, else void. A record that
    has a mask, or objects none of which has run lengths, is returned as it is; an image that is
    known to show no object is all background, where there is such a class.
    """
    if (record.mask and record.mask.bytes) or record.instances is None:
        return record
    ground = space.by_name.get("background")
    empty = not record.instances and ground is not None
    if not empty and not any(i.rle for i in record.instances):
        return record
    ids = masks.paint(
        record.instances,
        record.height,
        record.width,
        space,
        ground.id if ground else None,
        record.image_id,
    )
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
    found = (regions.instance(places[c], number, c) for number, c in enumerate(shown, 1))
    return replace(record, instances=tuple(found))
