"""What a practised user writes by hand: VOC's masks into one COCO JSON, by pycocotools."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

# fmt: off
NAMES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
)
# fmt: on


def main(source: Path, target: Path) -> None:
    out = target / "train2017"
    out.mkdir(parents=True)
    (target / "annotations").mkdir()
    images, annotations = [], []
    ids = (source / "ImageSets/Segmentation/train.txt").read_text().split()
    for number, name in enumerate(ids, 1):
        photo = source / f"JPEGImages/{name}.jpg"
        shutil.copyfile(photo, out / photo.name)
        classes = np.array(Image.open(source / f"SegmentationClass/{name}.png"))
        objects = np.array(Image.open(source / f"SegmentationObject/{name}.png"))
        height, width = classes.shape
        images.append({"id": number, "file_name": photo.name, "height": height, "width": width})
        for k in np.unique(objects):
            if k in (0, 255):
                continue
            region = objects == k
            rle = coco_mask.encode(np.asfortranarray(region.astype(np.uint8)))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": int(np.bincount(classes[region]).argmax()),
                    "iscrowd": 0,
                    "area": float(coco_mask.area(rle)),
                    "bbox": coco_mask.toBbox(rle).tolist(),
                    "segmentation": {
                        "size": rle["size"],
                        "counts": rle["counts"].decode(),
                    },
                }
            )
    categories = [{"id": i, "name": n} for i, n in enumerate(NAMES, 1)]
    document = {"images": images, "annotations": annotations, "categories": categories}
    (target / "annotations/instances_train2017.json").write_text(json.dumps(document))


if __name__ == "__main__":
    main(Path(sys.argv[1]) / "VOCdevkit/VOC2012", Path(sys.argv[2]))
