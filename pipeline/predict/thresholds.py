"""The least confidence at which a pixel keeps its class; below it the pixel becomes void."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.errors import UnknownName, UsageError

if TYPE_CHECKING:
    from pipeline.label_space import LabelSpace


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Least probabilities, 0..1: of every class, and of classes by name, which goes before."""

    every: float = 0.0
    classes: tuple[tuple[str, float], ...] = ()

    def __post_init__(self) -> None:
        for name, least in [("", self.every), *self.classes]:
            if not 0 <= least <= 1:  # NaN fails too
                of = f" for {name!r}" if name else ""
                raise UsageError(f"--min-confidence is from 0 to 1, not {least:g}{of}")
        names = [name for name, _ in self.classes]
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice:
            raise UsageError(f"--min-confidence names {', '.join(twice)} more than once")
        object.__setattr__(self, "classes", tuple(sorted(self.classes)))

    @classmethod
    def parse(cls, text: str) -> Thresholds:
        """Read `0.6`, `Car=0.7,Road=0.9`, both with a comma between, or a file of such lines.

        In a file a class name may hold commas; empty lines and lines that begin with # are left
        out.

        Raises:
            UsageError: a part is no probability, or the file is not text.
        """
        parts = text.split(",")
        if os.path.isfile(text):
            try:
                with open(text, encoding="utf-8") as file:
                    parts = [line for line in file if line.strip() and line.strip()[0] != "#"]
            except (OSError, UnicodeDecodeError) as error:
                raise UsageError(f"--min-confidence {text}: cannot be read: {error}") from None
        named: list[tuple[str, float]] = []
        every: list[float] = []
        for part in parts:
            name, equals, least = part.rpartition("=")
            try:
                value = float(least)
            except ValueError:
                raise UsageError(
                    "--min-confidence takes a probability, NAME=PROBABILITY, several with commas, "
                    f"or a file of such lines, not {part.strip()!r}"
                ) from None
            if equals:
                named.append((name.strip(), value))
            else:
                every.append(value)
        if len(every) > 1:
            raise UsageError(f"--min-confidence has one value for all classes, not {len(every)}")
        return cls(every[0] if every else 0.0, tuple(named))

    def __str__(self) -> str:
        """Return every threshold, in one order: equal texts mean equal labels."""
        return repr((float(self.every), [(name, float(least)) for name, least in self.classes]))

    def __bool__(self) -> bool:
        """Tell whether any pixel can become void."""
        return self.every > 0 or any(least > 0 for _, least in self.classes)

    def by_channel(self, space: LabelSpace) -> list[float]:
        """Return the least probability of each of a model's channels.

        Raises:
            UnknownName: a class is not one that a model of this label space predicts.
        """
        names = [space.by_id[i].name for i in space.train_ids]
        for name, _ in self.classes:
            if name not in names:
                raise UnknownName(f"class of {space.name}", name, names)
        least = dict(self.classes)
        return [least.get(name, self.every) for name in names]
