"""Decoded images kept from one epoch to the next, as many as fit into so many bytes.

Nothing is put out: a pass over rows in random order would hit a cache of the last ones used no more
often than one of the first. What is kept is what decoding gave, so the batches are the same.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.training.example import Example


@dataclass
class Cache:
    """Examples by name, up to `most` bytes; for many threads."""

    most: int
    held: int = 0
    _kept: dict[str, Example] = field(default_factory=dict, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def get(self, name: str, make: Callable[[], Example]) -> Example:
        """Return the example of a name, made if it is not kept; its arrays are not to be changed.

        Two threads that ask for the same at the same time may both make it.
        """
        found = self._kept.get(name)
        if found is not None:
            return found
        made = make()
        with self._lock:
            if name not in self._kept and self.held + made.nbytes <= self.most:
                for array in made.arrays:
                    array.flags.writeable = False
                self._kept[name] = made
                self.held += made.nbytes
        return made
