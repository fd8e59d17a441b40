"""Hugging Face datasets: images and masks of a VOC folder into one Parquet file."""

import sys
from pathlib import Path

from datasets import Dataset, Features, Image, Value


def main(source: Path, target: Path) -> None:
    names = (source / "ImageSets/Segmentation/train.txt").read_text().split()
    columns = {
        "image_id": names,
        "image": [str(source / f"JPEGImages/{n}.jpg") for n in names],
        "mask": [str(source / f"SegmentationClass/{n}.png") for n in names],
    }
    features = Features({"image_id": Value("string"), "image": Image(), "mask": Image()})
    target.parent.mkdir(parents=True, exist_ok=True)
    Dataset.from_dict(columns, features=features).to_parquet(target)


if __name__ == "__main__":
    main(Path(sys.argv[1]) / "VOCdevkit/VOC2012", Path(sys.argv[2]))
