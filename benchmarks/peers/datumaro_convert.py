"""Datumaro's own way from one format to another: import, transform nothing, export with images.

A fifth argument is the suffix that images are written with; without it they keep their own.
"""

import sys

from datumaro.components.dataset import Dataset


def main(
    source: str, source_format: str, target: str, target_format: str, image_ext: str | None = None
) -> None:
    dataset = Dataset.import_from(source, source_format)
    dataset.export(target, target_format, save_media=True, image_ext=image_ext)


if __name__ == "__main__":
    main(*sys.argv[1:])
