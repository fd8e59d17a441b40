"""What Datumaro reads of a dataset: its masks, by image, as arrays and JSON beside each other."""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
from datumaro.components.annotation import AnnotationType
from datumaro.components.dataset import Dataset


def main(source: str, source_format: str, target: Path) -> None:
    dataset = Dataset.import_from(source, source_format)
    names = [category.name for category in dataset.categories()[AnnotationType.label]]
    maps, items = {}, {}
    for number, item in enumerate(dataset):
        classes = np.full(item.media.size, -1, np.int16)
        objects = []
        for annotation in sorted(item.annotations, key=lambda a: a.z_order):
            if annotation.type != AnnotationType.mask:
                continue
            region = np.asarray(annotation.image, dtype=bool)
            classes[region] = annotation.label
            shown = hashlib.sha1(np.packbits(region).tobytes()).hexdigest()
            objects.append([names[annotation.label], int(region.sum()), shown])
        maps[str(number)] = classes
        items[Path(item.media.path).name] = {"map": str(number), "objects": objects}
    np.savez_compressed(target / "maps.npz", **maps)
    (target / "said.json").write_text(json.dumps({"names": names, "items": items}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
