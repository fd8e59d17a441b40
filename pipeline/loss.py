"""What a conversion from one label space or format to another could not keep."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Loss:
    """What a conversion could not keep; losses of records add up to that of the dataset.

    `pixels` is how many pixels were converted, void ones included. `to_void` has the pixels of each
    source class that has no counterpart; `merged` the source classes, present in the data, that now
    share a target class; `attributes` counts whatever else the format cannot express.
    """

    pixels: int = 0
    to_void: dict[str, int] = field(default_factory=dict)
    merged: dict[str, list[str]] = field(default_factory=dict)
    attributes: dict[str, int] = field(default_factory=dict)

    def __iadd__(self, other: Loss) -> Loss:
        self.pixels += other.pixels
        for mine, theirs in ((self.to_void, other.to_void), (self.attributes, other.attributes)):
            for name, count in theirs.items():
                mine[name] = mine.get(name, 0) + count
        for target, sources in other.merged.items():
            self.merged[target] = sorted({*self.merged.get(target, ()), *sources})
        return self

    def __add__(self, other: Loss) -> Loss:
        total = Loss()
        total += self
        total += other
        return total

    def _merged(self) -> dict[str, list[str]]:
        """Leave out targets that only one class of the data reached: nothing was mixed there."""
        return {target: s for target, s in sorted(self.merged.items()) if len(s) > 1}

    @property
    def any(self) -> bool:
        """Return whether anything was lost."""
        return bool(self.to_void or self.attributes or self._merged())

    @property
    def void_share(self) -> float:
        """Return the share of all pixels that had a class and turned into void, 0..1."""
        return sum(self.to_void.values()) / self.pixels if self.pixels else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return the loss for a JSON summary."""
        return {
            "pixels": self.pixels,
            "void_share": round(self.void_share, 6),
            "to_void": dict(sorted(self.to_void.items())),
            "merged": self._merged(),
            "attributes": dict(sorted(self.attributes.items())),
        }

    def lines(self) -> list[str]:
        """Return the loss as lines for people; none when nothing was lost."""
        lines = []
        if self.to_void:
            lines.append(f"{self.void_share:.2%} of pixels turned into void:")
            ranked = sorted(self.to_void.items(), key=lambda item: (-item[1], item[0]))
            lines += [f"  {name}: {pixels:,} pixels" for name, pixels in ranked]
        for target, sources in self._merged().items():
            lines.append(f"merged into {target}: {', '.join(sources)}")
        for name, count in sorted(self.attributes.items()):
            lines.append(f"not expressible: {name} ({count:,})")
        return lines
