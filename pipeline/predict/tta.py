"""Test-time augmentation: what scales and mirrors an image is seen in, as a user writes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from pipeline.errors import UsageError

_LEAST, _MOST = 0.1, 4.0
_FLIP: Final = "flip"


@dataclass(frozen=True, slots=True)
class Augmentation:
    """Scales of the network's input, ascending, and whether each is also seen mirrored."""

    scales: tuple[float, ...] = (1.0,)
    flip: bool = False

    def __post_init__(self) -> None:
        bad = [s for s in self.scales if not _LEAST <= s <= _MOST]
        if bad or not self.scales:
            raise UsageError(f"--tta takes scales from {_LEAST} to {_MOST:g}, not {bad}")
        object.__setattr__(self, "scales", tuple(sorted({float(s) for s in self.scales})))

    @classmethod
    def parse(cls, text: str) -> Augmentation:
        """Read scales and the word flip, with commas between; the scale is 1 unless named.

        >>> Augmentation.parse("flip,0.75,1")
        Augmentation(scales=(0.75, 1.0), flip=True)

        Raises:
            UsageError: a part is neither a scale nor the word flip.
        """
        parts = [part.strip() for part in text.split(",")]
        try:
            scales = tuple(float(part) for part in parts if part != _FLIP)
        except ValueError:
            raise UsageError(
                f"--tta takes flip and scales, like 0.75,1,1.25,flip, not {text!r}"
            ) from None
        return cls(scales or (1.0,), _FLIP in parts)

    def __str__(self) -> str:
        """Return what `parse` reads."""
        return ",".join([repr(s) for s in self.scales] + [_FLIP] * self.flip)

    @property
    def mirrored(self) -> tuple[bool, ...]:
        """Tell of each view of one scale whether it is mirrored."""
        return (False, True) if self.flip else (False,)
