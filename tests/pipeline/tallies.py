"""Images as tallies, without pixels: drawn from a population whose scores are known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline.label_space import LabelClass, LabelSpace

if TYPE_CHECKING:
    from numpy.typing import NDArray


def space_of(classes: int, *, space: str = "toy") -> LabelSpace:
    """Return a label space of `classes` classes c0, c1 ..."""
    listed = tuple(LabelClass(i, f"c{i}", (i, i, i)) for i in range(classes))
    return LabelSpace(space, listed, 255)


@dataclass(frozen=True)
class Population:
    """What images are drawn from: a class is in an image with `presence`, with gamma-distributed
    pixels; a beta-distributed share of them is right, the others are given to the classes by
    `spread`."""

    presence: NDArray[np.float64]
    pixels: NDArray[np.float64]
    right: NDArray[np.float64]
    wrong: NDArray[np.float64]
    spread: NDArray[np.float64]

    @classmethod
    def of(cls, classes: int, seed: int = 7) -> Population:
        """Return one whose second half of classes is in one to six of ten images."""
        rng = np.random.default_rng(seed)
        rare = np.arange(classes) > classes // 2
        return cls(
            np.where(rare, rng.uniform(0.1, 0.6, classes), 1.0),
            rng.uniform(500, 20_000, classes),
            rng.uniform(1, 8, classes),
            rng.uniform(0.5, 3, classes),
            rng.dirichlet(np.full(classes, 3.0)),
        )

    def draw(self, rng: np.random.Generator, images: int) -> NDArray[np.int64]:
        """Return tallies [n, 3, C]: right, truth, predicted."""
        shape = (images, len(self.pixels))
        truth = (rng.random(shape) < self.presence) * rng.gamma(2.0, self.pixels / 2.0, shape)
        right = truth * rng.beta(self.right, self.wrong, shape)
        lost = (truth - right).sum(axis=1, keepdims=True)
        tallies = np.stack([right, truth, right + lost * self.spread], axis=1)
        return np.rint(tallies).astype(np.int64)

    @property
    def iou(self) -> NDArray[np.float64]:
        """The IoU of each class over all images that there are."""
        truth = self.presence * self.pixels
        right = truth * self.right / (self.right + self.wrong)
        predicted = right + (truth - right).sum() * self.spread
        return right / (truth + predicted - right)

    @property
    def accuracy(self) -> float:
        """The pixel accuracy over all images that there are."""
        truth = self.presence * self.pixels
        return float((truth * self.right / (self.right + self.wrong)).sum() / truth.sum())


def keys_of(rng: np.random.Generator, images: int) -> NDArray[np.uint64]:
    """Return random keys."""
    return rng.integers(0, 2**64, images, np.uint64)
