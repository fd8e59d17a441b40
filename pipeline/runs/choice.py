"""Which of the listed images a run is about: a share of them, one of several parts, the first few.

Images are chosen by a hash of their path, the same everywhere and for good: of a bucket that grows
each image stays in its part, and one that is in the 1 % is in the 2 %.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa

from pipeline.errors import UsageError
from pipeline.runs.keys import spread

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_HALF: Final = np.uint64(32)


@dataclass(frozen=True, slots=True)
class Choice:
    """What of a listing is taken: first by `sample`, then by `part`, and of that `limit` images."""

    limit: int | None = None
    part: tuple[int, int] = (1, 1)
    """Number and count: (1, 4) is the first of four."""
    sample: Fraction = Fraction(1)

    @classmethod
    def parse(
        cls, limit: int | None = None, shard: str | None = None, sample: str | None = None
    ) -> Choice:
        """Read the options of a command.

        Raises:
            UsageError: one of them is none, like --shard 5/4 or --sample 200%.
        """
        return cls(limit, _part(shard), _share(sample))

    @property
    def identity(self) -> list[str]:
        """What of the choice makes another run: nothing when all is taken."""
        if self == Choice():
            return []
        return [f"limit {self.limit}", "part {}/{}".format(*self.part), f"sample {self.sample}"]

    def of(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield the chosen samples, in their order; what follows the last is not listed."""
        left = self.limit
        if left == 0:
            return
        for batch in batches:
            chosen = self._chosen(batch)
            if left is not None:
                chosen = chosen.slice(0, min(left, chosen.num_rows))  # Arrow's are 64 bits
                left -= chosen.num_rows
            if chosen.num_rows:
                yield chosen
            if left == 0:
                return

    def _chosen(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        number, count = self.part
        taken = np.ones(batch.num_rows, bool)
        if self.sample < 1:
            limit = int(self.sample * 2**64)
            taken &= spread(batch["path"], "sample") < np.uint64(limit)
        if count > 1:
            # The upper half by multiplication: as even as a remainder, and without a division.
            upper = spread(batch["path"], "part") >> _HALF
            taken &= (upper * np.uint64(count)) >> _HALF == np.uint64(number - 1)
        return batch if taken.all() else batch.filter(pa.array(taken))


def _part(text: str | None) -> tuple[int, int]:
    if text is None:
        return 1, 1
    match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise UsageError(f"--shard is I/N with 1 <= I <= N, like 1/4 to 4/4, not {text!r}")
    return int(match[1]), int(match[2])


def _share(text: str | None) -> Fraction:
    if text is None:
        return Fraction(1)
    match = re.fullmatch(r"([0-9]{1,3}(?:\.[0-9]{1,9})?)%", text)
    share = Fraction(match[1]) / 100 if match else Fraction(0)
    if not 0 < share <= 1:
        raise UsageError(f"--sample is a share above 0 and up to 100%, like 1%, not {text!r}")
    return share
