"""The reader of a dataset: what a worker of `ingest` and `convert` holds."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

from connectors import connector
from pipeline.errors import InputError
from pipeline.files import read_url
from pipeline.trees.ahead import Ahead, fetched_once, is_far
from pipeline.trees.union import open_source

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

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
        return Reader(connector(self.format), open_source(self.source), self.embed_images)


@dataclass(frozen=True, slots=True)
class LaterFactory:
    """Makes what reads samples of one dataset when they are written; picklable."""

    format: str
    source: str

    def __call__(
        self,
    ) -> Callable[[Sequence[Sample]], Iterator[tuple[Sample, Callable[[], Record | InputError]]]]:
        """Open the dataset and return the function."""
        return ReaderFactory(self.format, self.source)().later


@dataclass(frozen=True, slots=True)
class Reader:
    """Reads samples into records; a bad one becomes its error."""

    connector: Connector
    tree: Tree
    embed_images: bool
    _ahead: Ahead = field(default_factory=Ahead, compare=False)

    def __call__(self, samples: Sequence[Sample]) -> Iterator[tuple[Sample, Record | InputError]]:
        """Yield each sample with its record or the error that stopped it."""
        far = bool(samples) and is_far(samples[0].path)
        yield from zip(samples, self._ahead.map(self.read, samples, far=far), strict=True)

    def later(
        self, samples: Sequence[Sample]
    ) -> Iterator[tuple[Sample, Callable[[], Record | InputError]]]:
        """Yield each sample with what reads it."""
        for sample in samples:
            yield sample, partial(self.read, sample)

    def read(self, sample: Sample) -> Record | InputError:
        """Read one sample, once more after a hiccup of the file system."""
        for attempt in (1, 2):
            try:
                return self._embedded(sample) if self.embed_images else self._read(sample)
            except InputError as error:
                return error
            except OSError as error:
                if attempt == 2:
                    cause = f"cannot be read ({error.strerror or error})"
                    mend = "check its permissions and run this again"
                    return InputError(sample.path, cause, mend)
                time.sleep(0.2)
        raise AssertionError("unreachable")

    def _read(self, sample: Sample) -> Record:
        return self.connector.read(self.tree, sample)

    def _embedded(self, sample: Sample) -> Record:
        with fetched_once():
            record = self._read(sample)
            if record.image.bytes is not None:
                return record
            return replace(record, image=replace(record.image, bytes=read_url(sample.path)))
