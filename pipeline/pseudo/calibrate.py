"""What held-out truth makes of a model's confidence: probabilities, thresholds and quotas, a file.

    calibration = calibrate(gather(truth, pred, LocalRunner()))
    calibration.save("thresholds.json")

For each class the least confidence is sought whose precision is high enough even at the lower end
of its interval (`bounds`). A class that has none would be starved, and so would one of which hardly
a pixel passes: of those the surest share is kept instead (class-balanced self-training, Zou et al.,
ECCV 2018), at the weight of its calibrated confidence. `segmill ... --view FILE` reads the file.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

from pipeline.errors import UsageError
from pipeline.label_space import LabelSpace
from pipeline.metrics.scores import known
from pipeline.pseudo import fit
from pipeline.pseudo.bounds import BOUNDS, Bound, lower_bounds, smallest_level
from pipeline.pseudo.held_out import LEVELS, at_or_above

if TYPE_CHECKING:
    from pipeline.metrics.confusion import Counts, Floats
    from pipeline.pseudo.held_out import HeldOut

FORMAT: Final = "segmill-calibration"
VERSION: Final = 1
TARGET: Final = 0.95
QUOTA: Final = 0.5
FEWEST_IMAGES: Final = 5
_DIGITS: Final = 6

Why = Literal["precision", "starved", "unmet", "few", "unseen"]
"""Why a class's pixels are kept as they are: `precision` holds the promise. Of the rest the quota
is kept: `starved` would keep less than that by its threshold, `unmet` has no threshold that
reaches the target, `few` too little held-out truth, `unseen` was not predicted there at all."""


@dataclass(frozen=True, slots=True)
class Goal:
    """What is asked of the thresholds.

    Raises:
        UsageError: a share is out of its range, or there is no such bound.
    """

    target: float = TARGET
    quota: float = QUOTA
    bound: Bound = "design"
    fewest_images: int = FEWEST_IMAGES

    def __post_init__(self) -> None:
        if not 0 < self.target < 1:
            raise UsageError(f"--target is a precision between 0 and 1, not {self.target:g}")
        if not 0 <= self.quota <= 1:
            raise UsageError(f"--quota is a share from 0 to 1, not {self.quota:g}")
        if self.bound not in BOUNDS:
            raise UsageError(f"--bound takes {', '.join(BOUNDS)}, not {self.bound!r}")


@dataclass(frozen=True, slots=True)
class ClassRule:
    """What is kept of the pixels predicted as one class; levels are confidences, round(255 p)."""

    name: str
    why: Why
    sure: int | None
    """The least level that reaches the target: pixels from there on are labels without a doubt."""
    keep: int
    """The least level that is kept; 256 keeps nothing. Between it and `sure`, by weight."""
    share: float
    """Of the class's pixels, the share that was kept where the levels come from."""
    precision: float | None
    """Held-out precision of what is kept."""
    lower: float | None
    """Its lower bound."""
    images: int
    pixels: int
    """Held-out pixels predicted as the class."""


@dataclass(frozen=True, slots=True, eq=False)
class Calibration:
    """What `calibrate` found; the file's content."""

    space: LabelSpace
    goal: Goal
    rules: tuple[ClassRule, ...]
    """In the order of `space.train_ids`."""
    maps: Floats
    """Share of right pixels by class and confidence, [C, 256]."""
    wrong: Floats
    """Of a class's wrong pixels, the share of each true class, [C, C]."""
    shares: Floats
    """Of the held-out truth's pixels, the share of each class, [C]."""
    temperature: float
    ece_before: float
    ece_after: float
    images: int
    facts: dict[str, str] = field(default_factory=dict)
    """How it was made: stores, versions, models."""

    def listed(self, *why: Why) -> list[str]:
        """Return the names of the classes that are kept for one of these reasons."""
        return [rule.name for rule in self.rules if rule.why in why]

    def for_bucket(self, pixels: Counts) -> Calibration:
        """Return the same with quotas of other predictions' pixels by class and level [C, 256].

        The promised thresholds stay: a share of the bucket's own pixels is what a quota means.
        """
        rules = [
            rule if rule.why == "precision" else _with_quota(rule, row, self.goal.quota)
            for rule, row in zip(self.rules, pixels, strict=True)
        ]
        return replace(self, rules=tuple(rules))

    # --- the file ---------------------------------------------------------------------------------

    def to_json(self) -> str:
        """Return the file's text: the same calibration, the same text."""
        value = {
            "format": FORMAT,
            "version": VERSION,
            "label_space": json.loads(self.space.to_json()),
            "goal": {name: getattr(self.goal, name) for name in Goal.__slots__},
            "temperature": known(self.temperature),
            "ece_before": known(self.ece_before),
            "ece_after": known(self.ece_after),
            "images": self.images,
            "facts": self.facts,
            "classes": [
                {name: getattr(rule, name) for name in ClassRule.__slots__}
                | {"truth_share": float(share), "map": row, "wrong": wrong}
                for rule, share, row, wrong in zip(
                    self.rules,
                    self.shares,
                    np.round(self.maps, _DIGITS).tolist(),
                    np.round(self.wrong, _DIGITS).tolist(),
                    strict=True,
                )
            ],
        }
        return json.dumps(value, indent=1)

    @classmethod
    def from_json(cls, text: str | bytes, path: str = "calibration") -> Calibration:
        """Read what `to_json` wrote.

        Raises:
            UsageError: it is no such file, a newer one, or one that was damaged.
        """
        try:
            value = json.loads(text)
            if value["format"] != FORMAT or value["version"] > VERSION:
                raise ValueError(f"format {value['format']!r}, version {value['version']!r}")
            return cls._read(value)
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(
                f"{path}: no calibration that this segmill reads ({error!r}); `segmill "
                "pseudo-label` writes one"
            ) from None

    @classmethod
    def _read(cls, value: dict[str, Any]) -> Calibration:
        space = LabelSpace.from_json(json.dumps(value["label_space"]))
        rows = value["classes"]
        rules = tuple(ClassRule(**{n: row[n] for n in ClassRule.__slots__}) for row in rows)
        count = len(space.train_ids)
        maps, wrong = (np.array([r[n] for r in rows], np.float64) for n in ("map", "wrong"))
        if maps.shape != (count, LEVELS) or wrong.shape != (count, count):
            raise ValueError(f"{len(rows)} classes, {maps.shape} confidences")
        if not all(0 <= rule.keep <= LEVELS for rule in rules):
            raise ValueError("a level is not in 0..256")
        plain = (value[n] for n in ("temperature", "ece_before", "ece_after"))
        numbers = [math.nan if v is None else float(v) for v in plain]
        return cls(
            space=space,
            goal=Goal(**value["goal"]),
            rules=rules,
            maps=maps,
            wrong=wrong,
            shares=np.array([r["truth_share"] for r in rows], np.float64),
            temperature=numbers[0],
            ece_before=numbers[1],
            ece_after=numbers[2],
            images=int(value["images"]),
            facts=dict(value["facts"]),
        )


def calibrate(held: HeldOut, goal: Goal | None = None) -> Calibration:
    """Return what the held-out sums say."""
    goal = goal or Goal()
    before, after = fit.calibration_error(held.folds)
    truth = held.truth.astype(np.float64)
    return Calibration(
        space=held.space,
        goal=goal,
        rules=tuple(_rules(held, goal)),
        maps=fit.maps(held.right, held.pixels),
        wrong=fit.wrong_shares(held.confusion),
        shares=truth / max(1.0, float(truth.sum())),
        temperature=fit.temperature(held.right, held.pixels),
        ece_before=before,
        ece_after=after,
        images=held.images,
    )


def _rules(held: HeldOut, goal: Goal) -> list[ClassRule]:
    lower = lower_bounds(held, goal.bound)
    sure = smallest_level(lower, held.pixels, goal.target)
    right, pixels = at_or_above(held.right), at_or_above(held.pixels)
    names = [held.space.by_id[i].name for i in held.space.train_ids]
    rules = []
    for c, name in enumerate(names):
        images = int(held.holding[c, 0])
        level = sure[c] if images >= goal.fewest_images else None
        why = _why(pixels[c], level, images, goal)
        keep = level if why == "precision" and level is not None else None
        keep = quota_level(held.pixels[c], goal.quota) if keep is None else keep
        n = int(pixels[c, keep]) if keep < LEVELS else 0
        rules.append(
            ClassRule(
                name=name,
                why=why,
                sure=level,
                keep=keep,
                share=n / max(1, int(pixels[c, 0])),
                precision=int(right[c, keep]) / n if n else None,
                lower=float(lower[c, keep]) if n else None,
                images=images,
                pixels=int(pixels[c, 0]),
            )
        )
    return rules


def _why(above: Counts, sure: int | None, images: int, goal: Goal) -> Why:
    if not above[0]:
        return "unseen"
    if images < goal.fewest_images:
        return "few"
    if sure is None:
        return "unmet"
    return "precision" if above[sure] >= goal.quota * above[0] else "starved"


def quota_level(pixels: Counts, quota: float) -> int:
    """Return the highest level at or above which the share `quota` of counts [256] lies.

    256 where there is no pixel, or nothing is to be kept. Pixels of one level stay together, so
    that somewhat more may be kept.

    >>> quota_level(np.array([5, 3, 2] + [0] * 253), 0.5)
    1
    """
    above = at_or_above(pixels)
    if not above[0] or quota <= 0:
        return LEVELS
    return int(np.flatnonzero(above >= quota * above[0])[-1])


def _with_quota(rule: ClassRule, pixels: Counts, quota: float) -> ClassRule:
    keep, above = quota_level(pixels, quota), at_or_above(pixels)
    share = float(above[keep] / above[0]) if keep < LEVELS else 0.0
    # What it was on held-out truth was of other levels.
    return replace(rule, keep=keep, share=share, precision=None, lower=None)
