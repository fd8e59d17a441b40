"""What a night's labels are made of, and what changed since the last ones.

    tonight = Composition.of_store(store)
    changes.add(lut, old.ids, settled.ids)      # for each image that both nights label

Sums add up over images and workers to exactly the same, in any order; the figures are shares.

A model that confirms its own errors drifts slowly (confirmation bias: Arazo et al. 2020): fewer
classes, more ignored pixels. Whether it is too much, `pipeline.refresh.limits` says.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

import numpy as np

from pipeline.metrics.agreement import AgreementGathering
from pipeline.metrics.histogram import joint_histogram
from pipeline.metrics.shares import by_name, known, ratio
from pipeline.training.data import Channels

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pyarrow as pa

    from pipeline.label_space import LabelMap, LabelSpace
    from pipeline.metrics.confusion import Counts, Floats
    from pipeline.refresh.hysteresis import Settled
    from pipeline.store import Store

CHANGED_NIGHT: Final = "changed_night"
"""The key of a row's `extra`: the number of the night in which its labels last changed."""
FLIPPED: Final = "flipped_pixels"
"""The key of a row's `extra`: pixels that took another label, over all nights."""
MOST: Final = 24
"""Images that are kept as examples, those that changed most."""
_MOVES: Final = 20
_COLUMNS: Final = ("height", "width", "label_space", "classes", "extra")


# --- what labels are made of ----------------------------------------------------------------------


@dataclass(slots=True, eq=False)
class Composition:
    """Pixels of labels by class, how sure they are, and how old; sums over rows."""

    names: tuple[str, ...]
    pixels: Counts
    """int64 [C]."""
    levels: Counts
    """Sums of round(255 p), int64 [C]."""
    ignored: int = 0
    """Pixels without a label."""
    images: int = 0
    unmasked: int = 0
    """Rows without class counts; in no other figure."""
    changed: dict[int, int] = field(default_factory=dict)
    """Images by the night in which their labels last changed."""

    @classmethod
    def empty(cls, space: LabelSpace) -> Composition:
        """Return sums over no rows."""
        names = space.class_names
        return cls(names, np.zeros(len(names), np.int64), np.zeros(len(names), np.int64))

    @classmethod
    def of_store(cls, store: Store, space: LabelSpace, where: str | None = None) -> Composition:
        """Return what a snapshot's rows are made of, from its columns: no mask is read.

        Raises:
            UsageError: `where` is no condition.
            RemapError: a row's label space does not lead to `space`.
        """
        found, channels = cls.empty(space), Channels(space)
        for batch in store.scan(list(_COLUMNS), where, 16384):
            found.add_batch(batch, store, channels)
        return found

    def add_batch(self, batch: pa.RecordBatch, store: Store, channels: Channels) -> None:
        """Add rows of a store: columns height, width, label_space, classes and extra."""
        import pyarrow as pa
        import pyarrow.compute as pc

        there = pc.is_valid(batch["classes"])
        self.unmasked += batch.num_rows - (pc.sum(there).as_py() or 0)
        rows = pa.Table.from_batches([batch]).filter(there).combine_chunks()
        self.images += rows.num_rows
        size = pc.multiply(rows["height"].cast(pa.int64()), rows["width"].cast(pa.int64()))
        self.ignored += pc.sum(size).as_py() or 0
        for name in pc.unique(rows["label_space"]).to_pylist():
            part = rows.filter(pc.equal(rows["label_space"], name))["classes"].combine_chunks()
            self._add_counts(pc.list_flatten(part), channels.lut(store.space(name)))
        told = pc.struct_field(
            pc.extract_regex(rows["extra"], rf'"{CHANGED_NIGHT}": ?(?P<night>\d+)'), "night"
        )
        for entry in pc.value_counts(pc.drop_null(told)).to_pylist():
            self._note(int(entry["values"]), entry["counts"])

    def _add_counts(self, counts: Any, lut: LabelMap) -> None:
        ids, pixels, sure = (counts.field(n) for n in ("id", "pixels", "confidence"))
        place = lut[ids.to_numpy(zero_copy_only=False)].astype(np.int64)
        n = pixels.to_numpy(zero_copy_only=False)
        # A mean of 32 bits and its count give back a whole number, the same in any order of rows.
        p = sure.fill_null(1.0).to_numpy(zero_copy_only=False).astype(np.float64)
        labelled = place < len(self.names)
        place, n, level = (
            place[labelled],
            n[labelled],
            np.rint(255 * p * n).astype(np.int64)[labelled],
        )
        np.add.at(self.pixels, place, n)
        np.add.at(self.levels, place, level)
        self.ignored -= int(n.sum())

    def _note(self, night: int, images: int) -> None:
        self.changed[night] = self.changed.get(night, 0) + images

    def merge(self, other: Self) -> None:
        """Add the sums over other rows."""
        self.pixels += other.pixels
        self.levels += other.levels
        for name in ("ignored", "images", "unmasked"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for night, images in other.changed.items():
            self._note(night, images)

    @property
    def shares(self) -> Floats:
        """Each class's share of the labelled pixels [C]; nan without any."""
        return ratio(self.pixels, self.pixels.sum())

    def figures(self, night: int | None = None) -> dict[str, Any]:
        """Return the figures for JSON; the ages of labels where tonight's number is given."""
        return {
            "images": self.images,
            "pixels": int(self.pixels.sum()) + self.ignored,
            **self.headline(),
            "classes": by_name(
                self.names,
                pixels=self.pixels,
                share=self.shares,
                confidence=ratio(self.levels / 255, self.pixels),
            ),
            "ages": {} if night is None else self.ages(night),
        }

    def headline(self) -> dict[str, float | None]:
        """Return ignored share, mean confidence, and the class shares' entropy; each 0..1."""
        labelled = int(self.pixels.sum())
        total = labelled + self.ignored
        return {
            "ignored_share": self.ignored / total if total else None,
            "mean_confidence": int(self.levels.sum()) / 255 / labelled if labelled else None,
            "entropy": known(entropy(self.shares)),
        }

    def ages(self, night: int) -> dict[str, int]:
        """Return images by the nights since their labels last changed: {"0": 12, "3": 40}."""
        held = sorted((max(0, night - changed), n) for changed, n in self.changed.items())
        return {str(age): sum(n for a, n in held if a == age) for age, _ in held}

    # --- the file ---------------------------------------------------------------------------------

    def to_json(self) -> dict[str, Any]:
        """Return what `from_json` reads: whole numbers alone."""
        return {
            "names": list(self.names),
            "pixels": self.pixels.tolist(),
            "levels": self.levels.tolist(),
            "ignored": self.ignored,
            "images": self.images,
            "unmasked": self.unmasked,
            "changed": {str(k): v for k, v in sorted(self.changed.items())},
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Composition:
        """Read what `to_json` wrote."""
        return cls(
            tuple(value["names"]),
            np.array(value["pixels"], np.int64),
            np.array(value["levels"], np.int64),
            value["ignored"],
            value["images"],
            value["unmasked"],
            {int(k): v for k, v in value["changed"].items()},
        )


def entropy(shares: Floats) -> float:
    """Return the entropy of shares [C] as a share of ln C, its most; nan without any, or for C < 2.

    >>> round(entropy(np.array([0.5, 0.5, 0.0, 0.0])), 4)
    0.5
    """
    held = shares[shares > 0]
    if not held.size or len(shares) < 2:
        return math.nan
    return float(-(held * np.log(held)).sum() / math.log(len(shares)))


def total_variation(one: Floats, other: Floats) -> float:
    """Return the distance of two rows of shares, 0..1: what would have to move; nan if unknown.

    >>> round(total_variation(np.array([0.5, 0.5]), np.array([0.2, 0.8])), 4)
    0.3
    """
    return float(np.abs(one - other).sum() / 2)


def noted(extra: Mapping[str, Any], night: int, settled: Settled | None) -> dict[str, Any]:
    """Return a row's `extra` with the night of its last change, and its flips so far.

    `settled` is None for an image that had no label before.
    """
    flips = 0 if settled is None else int(np.count_nonzero(settled.flipped))
    before = extra.get(CHANGED_NIGHT)
    changed = before if settled is not None and not settled.changed else night
    return {
        **extra,
        CHANGED_NIGHT: night if changed is None else changed,
        FLIPPED: int(extra.get(FLIPPED, 0)) + flips,
    }


# --- what changed ---------------------------------------------------------------------------------


class Example(NamedTuple):
    """An image whose labels changed; sorts by how much."""

    share: float
    """Of its pixels, those that changed."""
    image_id: str
    dataset: str
    path: str


@dataclass(slots=True, eq=False)
class Changes:
    """From last night's labels to tonight's, of images that both have; sums over images."""

    names: tuple[str, ...]
    moved: Counts
    """Pixels by last night's class and tonight's, int64 [C + 1, C + 1]; the last is "no label"."""
    images: int = 0
    changed: int = 0
    """Images with a changed pixel."""
    held: int = 0
    """Pixels that hysteresis kept."""
    most: list[Example] = field(default_factory=list)

    @classmethod
    def empty(cls, space: LabelSpace) -> Changes:
        """Return sums over no images."""
        names = space.class_names
        return cls(names, np.zeros((len(names) + 1,) * 2, np.int64))

    def add(self, lut: LabelMap, old: LabelMap, new: LabelMap, example: Example | None = None,
            *, held: int = 0) -> float:  # fmt: skip
        """Add one image: ids [H, W] of both nights; return the share of its pixels that changed.

        `lut` gives the class position of an id (`Channels(space).lut(space)`). The `share` of
        `example` is filled in.
        """
        count = len(self.names)
        positions = [np.minimum(lut[ids], np.array(count, lut.dtype)) for ids in (old, new)]
        moved = joint_histogram(positions[0], positions[1], (count + 1, count + 1))
        different = int(moved.sum() - np.trace(moved))
        share = different / old.size
        self.moved += moved
        self.images += 1
        self.changed += different > 0
        self.held += held
        if example is not None and different:
            self._keep([example._replace(share=share)])
        return share

    def merge(self, other: Self) -> None:
        """Add the sums over other images."""
        self.moved += other.moved
        for name in ("images", "changed", "held"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self._keep(other.most)

    def _keep(self, more: Sequence[Example]) -> None:
        # By name among equals: the same examples whatever the order.
        self.most = sorted([*self.most, *more], key=lambda e: (-e.share, *e[1:]))[:MOST]

    @property
    def churn(self) -> float:
        """The share of the pixels whose label is another one; nan without any."""
        total = int(self.moved.sum())
        return (total - int(np.trace(self.moved))) / total if total else math.nan

    @property
    def before(self) -> Floats:
        """Last night's class shares of these images [C]; nan without a label."""
        pixels = self.moved.sum(axis=1)[:-1]
        return ratio(pixels, pixels.sum())

    @property
    def after(self) -> Floats:
        """Tonight's class shares of the same images [C]; nan without a label."""
        pixels = self.moved.sum(axis=0)[:-1]
        return ratio(pixels, pixels.sum())

    def figures(self) -> dict[str, Any]:
        """Return the figures for JSON; `churn` of the classes as scoring tells it.

        `flips` are pixels that went from one class to another, `gained` and `lost` those that had
        no label before, or have none now.
        """
        diagonal = np.diagonal(self.moved)
        kept = np.stack([diagonal, self.moved.sum(0) - diagonal, self.moved.sum(1) - diagonal])
        agreement = AgreementGathering(self.names, kept, self.images, self.changed).figures()
        classes = self.moved[:-1, :-1]
        return {
            "images": self.images,
            "images_changed": self.changed,
            "churn": known(self.churn),
            "flips": int(classes.sum() - np.trace(classes)),
            "gained": int(self.moved[-1, :-1].sum()),
            "lost": int(self.moved[:-1, -1].sum()),
            "held": self.held,
            "distance": known(total_variation(self.before, self.after)),
            "classes": agreement["churn"],
            "moves": self.moves(),
            "most": [example._asdict() for example in self.most],
        }

    def moves(self) -> list[dict[str, Any]]:
        """Return the most frequent changes from one class to another, most pixels first."""
        names = (*self.names, "no label")
        off = self.moved.copy()
        np.fill_diagonal(off, 0)
        order = np.argsort(-off, axis=None, kind="stable")[:_MOVES]
        pairs = [divmod(int(k), len(names)) for k in order if off.flat[k]]
        return [{"from": names[i], "to": names[j], "pixels": int(off[i, j])} for i, j in pairs]
