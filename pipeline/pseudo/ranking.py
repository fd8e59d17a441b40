"""Which images are worth labelling by hand: many wrong pixels of rare classes, each scene once.

The worth of an image is what `quality` expects to be wrong in it, rare classes counted more.
Neighbouring frames are worth the same and teach the same: of a scene only the best is listed. What
a scene is, a column and a regular expression say (`pipeline.metrics.units.Units`), or the picture
itself: a difference hash of 64 bits, alike where few bits differ.
"""

from __future__ import annotations

import csv
import heapq
import io
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np

from pipeline.errors import InputError
from pipeline.files import read_url
from pipeline.images import decode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from numpy.typing import NDArray

    from pipeline.pseudo.quality import ImageQuality

_SPARE: Final = 10
"""Candidates kept for each place: most are neighbours of one another."""
_ALIKE_BITS: Final = 12
"""Bits of 64 in which the hashes of neighbouring frames may differ; unrelated ones differ in 32."""
_COLUMNS: Final = ("image", "image_id", "dataset", "split", "rank", "worth", "expected_accuracy",
                   "expected_miou", "rarest_class", "missed_classes", "scene")  # fmt: skip


@dataclass(slots=True)
class Ranking:
    """The best `count` images so far and some more, whatever the number of images seen."""

    count: int
    _held: list[tuple[float, int, ImageQuality]] = field(default_factory=list)
    _seen: int = 0

    def add(self, images: Iterable[ImageQuality]) -> None:
        """Take note of images."""
        for image in images:
            self._seen += 1
            entry = (image.worth, -self._seen, image)  # of equals the first one counts
            if len(self._held) < self.count * _SPARE:
                heapq.heappush(self._held, entry)
            elif self._held:
                heapq.heappushpop(self._held, entry)

    def best(self, scene_of: Callable[[ImageQuality], str | None]) -> list[Ranked]:
        """Return the images worth most, one a scene.

        `scene_of` names the scene of an image, None for one like no other; it is asked from the
        best on, until enough are found.
        """
        found: list[Ranked] = []
        scenes: set[str] = set()
        for _, _, image in sorted(self._held, key=lambda e: e[:2], reverse=True):
            if len(found) == self.count:
                break
            scene = scene_of(image)
            if scene is not None and scene in scenes:
                continue
            scenes.add(scene or "")
            found.append(Ranked(len(found) + 1, image, scene or ""))
        return found


@dataclass(frozen=True, slots=True)
class Ranked:
    """An image worth labelling by hand."""

    rank: int
    image: ImageQuality
    scene: str


def to_csv(ranked: Sequence[Ranked]) -> bytes:
    """Return the list as labelling tools import it: a row an image, `image` its path or URL."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(_COLUMNS)
    for r in ranked:
        i = r.image
        shares = ["" if v is None else f"{v:.4f}" for v in (i.accuracy, i.miou)]
        names = [i.path, i.image_id, i.dataset, i.split]
        table.writerow(
            [*names, r.rank, f"{i.worth:.6f}", *shares, i.rarest, ";".join(i.missed), r.scene]
        )
    return text.getvalue().encode("utf-8", "surrogateescape")


# --- scenes ---------------------------------------------------------------------------------------


@dataclass(slots=True)
class Lookalikes:
    """Names the scene of an image by the first one listed that looks like it.

    An image that cannot be read is like no other.
    """

    read: Callable[[str], bytes] = read_url
    _seen: list[tuple[int, str]] = field(default_factory=list)

    def __call__(self, image: ImageQuality) -> str | None:
        """Return the scene's name: the path of its first image."""
        try:
            mine = difference_hash(decode(self.read(image.path), image.path))
        except (InputError, OSError):
            return None
        for other, path in self._seen:
            if (mine ^ other).bit_count() <= _ALIKE_BITS:
                return path
        self._seen.append((mine, image.path))
        return image.path


def difference_hash(rgb: NDArray[np.uint8]) -> int:
    """Return 64 bits of RGB [H, W, 3]: in which of 8 x 8 places brightness rises to the right."""
    import cv2

    grey = cv2.cvtColor(np.ascontiguousarray(rgb), cv2.COLOR_RGB2GRAY)
    small = cv2.resize(grey, (9, 8), interpolation=cv2.INTER_AREA).astype(np.int16)
    bits = np.packbits((small[:, 1:] > small[:, :-1]).ravel())
    return int.from_bytes(bits.tobytes(), "big")


@dataclass(frozen=True, slots=True)
class Named:
    """Names the scene of an image by a regular expression on its id or path.

    The scene is the expression's first group, or all that it finds.
    """

    pattern: str
    column: str = "image_id"

    @classmethod
    def parse(cls, text: str) -> Named:
        r"""Read `image_id:REGEX` or `path:REGEX`.

        Raises:
            UsageError: it is neither.
        """
        import re

        from pipeline.errors import UsageError

        column, _, pattern = text.partition(":")
        if column not in ("image_id", "path") or not pattern:
            raise UsageError(f"--scene takes image_id:REGEX or path:REGEX, not {text!r}")
        try:
            re.compile(pattern)
        except re.error as error:
            raise UsageError(f"--scene {text!r}: no regular expression: {error}") from None
        return cls(pattern, column)

    def __call__(self, image: ImageQuality) -> str | None:
        """Return the scene's name, None where nothing is found."""
        import re

        found = re.search(self.pattern, getattr(image, self.column))
        return None if found is None else found.group(1 if found.re.groups else 0)
