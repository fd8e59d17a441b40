"""Dataset formats: one file each, which knows files and never Ray."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final, cast

from pipeline.errors import UnknownName

if TYPE_CHECKING:
    from collections.abc import Mapping

    from connectors.base import Connector

CONNECTORS: Final[Mapping[str, str]] = {
    "ade20k": "connectors.ade20k:ADE20K",
    "ade20k-full": "connectors.ade20k_full:ADE20K_FULL",
    "camvid": "connectors.camvid:CAMVID",
    "camvid-11": "connectors.camvid:CAMVID_11",
    "cityscapes": "connectors.cityscapes:CITYSCAPES",
    "coco-instances": "connectors.coco:COCO_INSTANCES",
    "coco-panoptic": "connectors.coco_panoptic:COCO_PANOPTIC",
    "coco-stuff": "connectors.coco_stuff:COCO_STUFF",
    "cvat": "connectors.cvat:CVAT",
    "label-studio": "connectors.label_studio:LABEL_STUDIO",
    "maskdir": "connectors.maskdir:MASKDIR",
    "nyuv2": "connectors.nyuv2:NYUV2",
    "nyuv2-mat": "connectors.nyuv2:NYUV2_MAT",
    "sunrgbd": "connectors.sunrgbd:SUNRGBD",
    "voc": "connectors.voc:VOC",
    "yolo-seg": "connectors.yolo_seg:YOLO_SEG",
}


def connector(name: str) -> Connector:
    """Import the connector of the format called name.

    Raises:
        UnknownName: no such format.
    """
    if name not in CONNECTORS:
        raise UnknownName("format", name, CONNECTORS)
    module, _, constant = CONNECTORS[name].partition(":")
    return cast("Connector", getattr(import_module(module), constant))
