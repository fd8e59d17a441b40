"""What a practised user writes by hand: a COCO JSON into VOC's masks, by pycocotools."""

import shutil
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools.coco import COCO

FOLDERS = ("JPEGImages", "SegmentationClass", "SegmentationObject", "ImageSets/Segmentation")
VOC = {  # COCO's category id to VOC's class
    5: 1, 2: 2, 16: 3, 9: 4, 44: 5, 6: 6, 3: 7, 17: 8, 62: 9, 21: 10, 67: 11, 18: 12, 19: 13,
    4: 14, 1: 15, 64: 16, 20: 17, 63: 18, 7: 19, 72: 20,
}  # fmt: skip


def palette() -> list[int]:
    colours = []
    for index in range(256):
        rgb, bits = [0, 0, 0], index
        for place in range(7, -1, -1):
            for channel in range(3):
                rgb[channel] |= (bits >> channel & 1) << place
            bits >>= 3
        colours += rgb
    return colours


def save(ids: np.ndarray, path: Path, colours: list[int]) -> None:
    picture = Image.fromarray(ids)
    picture.putpalette(colours)
    picture.save(path)


def main(source: Path, target: Path) -> None:
    for folder in (
        "JPEGImages",
        "SegmentationClass",
        "SegmentationObject",
        "ImageSets/Segmentation",
    ):
        (target / folder).mkdir(parents=True)
    coco, colours, names = COCO(source / "annotations/instances_train2017.json"), palette(), []
    for image in coco.loadImgs(sorted(coco.getImgIds())):
        shape = image["height"], image["width"]
        classes, objects = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
        found = coco.loadAnns(coco.getAnnIds(image["id"]))
        for k, annotation in enumerate(sorted(found, key=lambda a: -a["area"]), 1):
            if annotation["category_id"] in VOC and k < 255:
                region = coco.annToMask(annotation).astype(bool)
                classes[region], objects[region] = VOC[annotation["category_id"]], k
        name = Path(image["file_name"]).stem
        save(classes, target / f"SegmentationClass/{name}.png", colours)
        save(objects, target / f"SegmentationObject/{name}.png", colours)
        shutil.copyfile(
            source / "train2017" / image["file_name"], target / f"JPEGImages/{name}.jpg"
        )
        names.append(name)
    (target / "ImageSets/Segmentation/train.txt").write_text("\n".join(names) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]) / "VOCdevkit/VOC2012")
