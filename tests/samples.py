"""Records, samples and images that tests make."""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np

from pipeline import masks
from pipeline.errors import CorruptImage
from pipeline.label_space import label_space
from pipeline.record import ClassPixels, File, Provenance, Record, Sample
from pipeline.streetscenes import scene

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from pipeline.errors import InputError

SPACE = label_space("camvid-11")


def sample(name: str, fingerprint: str = "f0", digest: str = "d0", dataset: str = "toy") -> Sample:
    return Sample(name, f"/images/{name}.png", fingerprint, digest, dataset, "train")


def record_of(listed: Sample, value: int = 3, shape: tuple[int, int] = (4, 6)) -> Record:
    """A record whose mask holds one class."""
    ids = np.full(shape, value, np.uint8)
    return Record(
        image_id=listed.image_id,
        dataset=listed.dataset,
        split=listed.split,
        image=File(listed.path),
        fingerprint=listed.fingerprint,
        height=shape[0],
        width=shape[1],
        label_space=SPACE.name,
        mask=File(bytes=masks.encode(ids, SPACE.palette())),
        classes=(ClassPixels(value, ids.size),),
        provenance=Provenance("truth", "toy", listed.digest),
    )


class Counting:
    """A labeller factory whose label is the number `value`; it counts and may fail or die.

    Picklable, so that it runs on Ray as well; `log` is a file that gets a line a labelled sample.
    """

    def __init__(
        self,
        value: int = 3,
        bad: frozenset[str] = frozenset(),
        log: str | None = None,
        fatal: Callable[[str], None] | None = None,
    ) -> None:
        self.value, self.bad, self.log, self.fatal = value, bad, log, fatal

    def __call__(self) -> Counting:
        return self

    def label(self, samples: Sequence[Sample]) -> Iterator[tuple[Sample, Record | InputError]]:
        for listed in samples:
            if self.fatal is not None:
                self.fatal(listed.image_id)
            if self.log:
                with open(self.log, "a") as log:
                    log.write(listed.image_id + "\n")
            if listed.image_id in self.bad:
                yield listed, CorruptImage(listed.path, "is torn", "fetch it again")
            else:
                yield listed, record_of(listed, self.value)


class Labelling(Counting):
    """The same as a factory of callables, as `execute` takes it."""

    def __call__(self, samples: Sequence[Sample] | None = None) -> object:  # type: ignore[override]
        return self if samples is None else self.label(samples)


def write_scenes(root: Path, count: int, *, height: int = 72, width: int = 96) -> None:
    """Write JPEGs of generated street scenes."""
    root.mkdir(parents=True, exist_ok=True)
    for seed in range(count):
        rgb, _ = scene(seed, height, width)
        cv2.imwrite(str(root / f"{seed:04d}.jpg"), rgb[..., ::-1])
