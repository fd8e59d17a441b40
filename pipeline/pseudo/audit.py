"""A random sample for people to label, and what it says of all labels: without bias.

Images are drawn at random within strata: by the rarest class that is predicted and by the expected
accuracy, so that poor and rare images are in the sample for sure. Every image of a stratum has the
same chance, and each one drawn stands for N/n of them. IoU and precision are ratios of estimated
totals (Horvitz and Thompson 1952); their intervals come from the rescaled bootstrap of stratified
samples (Rao and Wu 1988), which leaves nothing open where a stratum was labelled whole.
"""

from __future__ import annotations

import csv
import hashlib
import heapq
import io
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from pipeline.errors import UsageError
from pipeline.metrics import sums
from pipeline.metrics.scores import by_name, known, ratio
from pipeline.metrics.tally_measure import INTERSECTION, PREDICTED

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from pipeline.metrics.confusion import Counts, Floats
    from pipeline.pseudo.quality import ImageQuality

POOR: Final = 0.8
"""Below this expected accuracy an image is in the poor stratum of its kind."""
FEWEST: Final = 2
"""Images of a stratum that are drawn at least: one alone tells nothing of its spread."""
REPLICATES: Final = 1000
LEVEL: Final = 0.95
_COLUMNS: Final = ("image", "image_id", "dataset", "split", "stratum", "stratum_images")


@dataclass(frozen=True, slots=True)
class Drawn:
    """An image of the sample, its stratum, and how many images that holds."""

    image: ImageQuality
    stratum: str
    stratum_images: int


@dataclass(slots=True)
class Draw:
    """A stratified random sample in one pass: in each stratum the images of the least hashes.

    Another `seed` (a night's name) draws other images; the same one the same, in whatever order
    they come. Memory grows with the size of the sample and the number of strata.
    """

    size: int
    rare: frozenset[str]
    """Names of the rare classes."""
    seed: str
    sizes: dict[str, int] = field(default_factory=dict)
    _held: dict[str, list[tuple[int, int, ImageQuality]]] = field(default_factory=dict)
    _seen: int = 0

    def add(self, images: Iterable[ImageQuality]) -> None:
        """Take note of images."""
        for image in images:
            self._seen += 1
            name = self.stratum(image)
            self.sizes[name] = self.sizes.get(name, 0) + 1
            held = self._held.setdefault(name, [])
            entry = (-self._hash(image), self._seen, image)
            if len(held) < max(self.size, FEWEST):
                heapq.heappush(held, entry)
            else:
                heapq.heappushpop(held, entry)

    def stratum(self, image: ImageQuality) -> str:
        """Return the stratum of an image."""
        kind = "rare" if image.rarest in self.rare else "common"
        poor = image.accuracy is None or image.accuracy < POOR
        return f"{kind}, {'poor' if poor else 'good'}"

    def _hash(self, image: ImageQuality) -> int:
        text = f"{self.seed}\0{image.dataset}\0{image.image_id}\0{image.path}"
        digest = hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8)
        return int.from_bytes(digest.digest(), "big")

    def sample(self) -> list[Drawn]:
        """Return the sample, strata by name: shares as their sizes, two at least of each."""
        counts = allocate(self.sizes, self.size)
        found = []
        for name in sorted(self._held):
            chosen = sorted(self._held[name], reverse=True)[: counts[name]]
            found += [Drawn(image, name, self.sizes[name]) for _, _, image in chosen]
        return found


def allocate(sizes: Mapping[str, int], size: int) -> dict[str, int]:
    """Return how many of each stratum to draw: in proportion, `FEWEST` of each at least, or all.

    >>> allocate({"a": 90, "b": 10, "c": 1}, 10)
    {'a': 8, 'b': 2, 'c': 1}
    """
    whole = max(1, sum(sizes.values()))
    # Largest strata pay for the least share of the small ones, so that the sum holds if it can.
    counts = {n: min(s, max(FEWEST, int(size * s / whole))) for n, s in sizes.items()}
    order = sorted(sizes, key=lambda n: (-sizes[n], n))
    while sum(counts.values()) > size and any(counts[n] > FEWEST for n in order):
        counts[max(order, key=lambda n: counts[n])] -= 1
    spare = size - sum(counts.values())
    for name in order:
        more = min(max(spare, 0), sizes[name] - counts[name]) if spare > 0 else 0
        counts[name] += more
        spare -= more
    return counts


def to_csv(drawn: Sequence[Drawn]) -> bytes:
    """Return the list as labelling tools import it, with what the estimate needs."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(_COLUMNS)
    for d in drawn:
        i = d.image
        table.writerow([i.path, i.image_id, i.dataset, i.split, d.stratum, d.stratum_images])
    return text.getvalue().encode("utf-8", "surrogateescape")


def read_csv(text: str, path: str) -> dict[str, tuple[str, int]]:
    """Return the stratum and its number of images for each image of a list, by its path.

    Raises:
        UsageError: it is no such list.
    """
    try:
        rows = list(csv.DictReader(io.StringIO(text)))
        return {row["image"]: (row["stratum"], int(row["stratum_images"])) for row in rows}
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{path}: no list of an audit ({error!r})") from None


# --- what the sample says -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Estimate:
    """Scores of all labels, estimated; each interval [low, high] holds the true value 19 of 20."""

    names: tuple[str, ...]
    total: Counts
    """Estimated tallies of all images, int64 [3, C]."""
    replicates: Counts
    """int64 [B, 3, C]."""
    images: int
    strata: int

    def figures(self) -> dict[str, Any]:
        """Return the figures for JSON."""
        point, moved = sums.headline(self.total), sums.headline(self.replicates)
        found: dict[str, Any] = {"images": self.images, "strata": self.strata, "level": LEVEL}
        for name in ("miou", "pixel_accuracy"):
            found[name] = known(float(point[name]))
            found[f"{name}_interval"] = self._interval(moved[name])
        iou, precision = (
            [f(t) for t in (self.total, self.replicates)] for f in (sums.iou, _precision)
        )
        found["classes"] = by_name(self.names, iou=iou[0], precision=precision[0])
        for c, name in enumerate(self.names):
            found["classes"][name] |= {
                "iou_interval": self._interval(iou[1][:, c]),
                "precision_interval": self._interval(precision[1][:, c]),
            }
        return found

    def _interval(self, values: Floats) -> list[float] | None:
        """Return percentiles, widened by Student's t for few images."""
        from scipy.special import ndtr, stdtrit

        held = values[~np.isnan(values)]
        freedom = self.images - self.strata
        if not held.size or freedom < 1:
            return None
        reach = float(ndtr(stdtrit(freedom, (1 + LEVEL) / 2)))
        return [float(v) for v in np.quantile(held, [1 - reach, reach])]


def _precision(tallies: Counts) -> Floats:
    return ratio(tallies[..., INTERSECTION, :], tallies[..., PREDICTED, :])


def estimate(
    tallies: Counts, strata: Sequence[str], sizes: Mapping[str, int], names: Sequence[str]
) -> Estimate:
    """Estimate the scores of all images from a labelled sample.

    `tallies` [n, 3, C] are each image's (`pipeline.metrics.tally_measure`), `strata` [n] their
    strata, `sizes` how many images each stratum holds. Where fewer were labelled than drawn, those
    that were stand for the others too: leave none out because it is hard.

    Raises:
        UsageError: a stratum that holds images has none that is labelled.
    """
    labels = np.array(strata, dtype=object)
    bare = sorted(name for name, size in sizes.items() if size and name not in set(strata))
    if bare or not len(tallies):
        raise UsageError(f"the audit has no labelled image in: {', '.join(bare) or 'any stratum'}")
    data = tallies.astype(np.float64)
    total = np.zeros(data.shape[1:])
    replicates = np.zeros((REPLICATES, *data.shape[1:]))
    rng = np.random.default_rng(0)
    for name in sorted(set(strata)):
        mine = np.flatnonzero(labels == name)
        size = max(len(mine), sizes[name])
        each = size / len(mine)
        total += each * data[mine].sum(axis=0)
        weights = each * _rescaled(len(mine), size, rng)
        replicates += np.tensordot(weights, data[mine], axes=1)
    whole, moved = (np.rint(t).astype(np.int64) for t in (total, replicates))
    return Estimate(tuple(names), whole, moved, len(data), len(set(strata)))


def _rescaled(n: int, size: int, rng: np.random.Generator) -> Floats:
    """Return bootstrap weights [B, n] of n of `size` images drawn without replacement; mean 1."""
    if n < FEWEST or size <= n:
        return np.ones((REPLICATES, n))
    counts = rng.multinomial(n - 1, np.full(n, 1 / n), size=REPLICATES)
    left = np.sqrt(1 - n / size)
    rescaled: Floats = 1 - left + left * (n / (n - 1)) * counts
    return rescaled
