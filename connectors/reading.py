"""The reader of a dataset: what a worker of `ingest` and `convert` holds."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from connectors import connector
from pipeline.errors import InputError
from pipeline.files import open_tree, read_url

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from connectors.base import Connector
    from pipeline.files import Tree
    from pipeline.record import Record, Sample


@dataclass(frozen=True, slots=True)
class ReaderFactory:
    """Makes a reader of one dataset in the process that will use it; picklable."""

    format: str
    source: str
    embed_images: bool = False

    def __call__(self) -> Reader:
        """Open the dataset and return a reader."""
        return Reader(connector(self.format), open_tree(self.source), self.embed_images)


@dataclass(frozen=True, slots=True)
class Reader:
    """Reads samples into records; a bad one becomes its error."""

    connector: Connector
    tree: Tree
    embed_images: bool

    def __call__(self, samples: Sequence[Sample]) -> Iterator[tuple[Sample, Record | InputError]]:
        """Yield each sample with its record or the error that stopped it."""
        for sample in samples:
            yield sample, self.read(sample)

    def read(self, sample: Sample) -> Record | InputError:
        """Read one sample, once more after a hiccup of the file system."""
        for attempt in (1, 2):
            try:
                record = self.connector.read(self.tree, sample)
                if self.embed_images and record.image.bytes is None:
                    data = read_url(sample.path)
                    record = replace(record, image=replace(record.image, bytes=data))
                return record
            except InputError as error:
                return error
            except OSError as error:
                if attempt == 2:
                    cause = f"cannot be read ({error.strerror or error})"
                    mend = "check its permissions and run this again"
                    return InputError(sample.path, cause, mend)
                time.sleep(0.2)
        raise AssertionError("unreachable")
