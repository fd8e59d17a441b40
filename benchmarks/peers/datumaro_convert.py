"""Datumaro's own way from one format to another: import, transform nothing, export with images."""

import sys

from datumaro.components.dataset import Dataset


def main(source: str, source_format: str, target: str, target_format: str) -> None:
    dataset = Dataset.import_from(source, source_format)
    dataset.export(target, target_format, save_media=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
