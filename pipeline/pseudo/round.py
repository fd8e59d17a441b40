"""What follows from one round's labels: expected quality, lists for people, the files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from pipeline.metrics.shares import known
from pipeline.pseudo import audit, ranking
from pipeline.pseudo.quality import Quality, assess, image_schema, rarity

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import pyarrow as pa

    from pipeline.in_order import Mapper
    from pipeline.pseudo.audit import Drawn
    from pipeline.pseudo.calibrate import Calibration
    from pipeline.pseudo.quality import ImageQuality
    from pipeline.pseudo.ranking import Ranked
    from pipeline.store import Store
    from pipeline.trees.sinks import Sink

_RARE: Final = 2.0
"""A class whose pixels count this much more than their number (`rarity`) is rare."""


@dataclass(frozen=True, slots=True)
class Lists:
    """How many images people are to look at, and which."""

    by_hand: int
    scene_of: Callable[[ImageQuality], str | None]
    audit: int
    seed: str


@dataclass(frozen=True, slots=True)
class Judged:
    """A round's calibration with the bucket's quotas, and what may be expected of its labels."""

    calibration: Calibration
    quality: Quality
    ranked: Sequence[Ranked]
    drawn: Sequence[Drawn]

    def figures(self) -> dict[str, Any]:
        """Return the figures for the JSON summary."""
        c = self.calibration
        fields = ("why", "sure", "keep", "share", "precision", "lower", "images", "pixels")
        return {
            "target": c.goal.target,
            "temperature": known(c.temperature),
            "ece": {"before": known(c.ece_before), "after": known(c.ece_after)},
            "expected": self.quality.figures(c),
            "assessment_failed": self.quality.failed,
            "thresholds": {r.name: {f: getattr(r, f) for f in fields} for r in c.rules},
            "audit_images": len(self.drawn),
            "by_hand_images": len(self.ranked),
        }

    def write(self, sink: Sink) -> dict[str, str]:
        """Write thresholds and lists; return the files' names."""
        sink.write("thresholds.json", self.calibration.to_json().encode() + b"\n")
        sink.write("by_hand.csv", ranking.to_csv(self.ranked))
        sink.write("audit.csv", audit.to_csv(self.drawn))
        return {
            "thresholds": "thresholds.json",
            "by_hand": "by_hand.csv",
            "audit": "audit.csv",
        }


def judge(
    store: Store,
    calibration: Calibration,
    lists: Lists,
    runner: Mapper,
    *,
    where: str | None = None,
    on_images: Callable[[pa.RecordBatch], None] = lambda batch: None,
) -> Judged:
    """Assess a store's labels; errors as of `assess`.

    `on_images` gets the images' figures (`image_schema`), a batch at a time, by their ids.

    The quotas are of the store's own labels, so their levels are known after one pass, and the
    images' coverage is by the quotas of the held-out ones.
    """
    import pyarrow as pa

    total = Quality.empty(calibration)
    rare = rarity(calibration.shares) >= _RARE
    names = frozenset(r.name for r, few in zip(calibration.rules, rare, strict=True) if few)
    ranked, draw = ranking.Ranking(lists.by_hand), audit.Draw(lists.audit, names, lists.seed)
    schema = image_schema()
    for part in assess(store, calibration, runner, where):
        total.merge(part.sums)
        ranked.add(part.images)
        draw.add(part.images)
        rows = [{n: getattr(i, n) for n in schema.names} for i in part.images]
        on_images(pa.RecordBatch.from_pylist(rows, schema=schema))
    drawn = draw.sample() if lists.audit else []
    best = ranked.best(lists.scene_of)
    return Judged(calibration.for_bucket(total.levels), total, best, drawn)
