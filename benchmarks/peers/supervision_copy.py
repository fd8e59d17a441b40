"""supervision: COCO with masks in, COCO with masks out."""

import sys
from pathlib import Path

import supervision as sv


def main(source: Path, target: Path) -> None:
    dataset = sv.DetectionDataset.from_coco(
        str(source / "train2017"),
        str(source / "annotations/instances_train2017.json"),
        force_masks=True,
    )
    dataset.as_coco(
        images_directory_path=str(target / "train2017"),
        annotations_path=str(target / "annotations/instances_train2017.json"),
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
