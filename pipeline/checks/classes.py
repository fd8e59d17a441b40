"""What the class counts say: classes never seen, seen in one split only, and rare ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pipeline.checks.findings import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pipeline.label_space import LabelSpace
    from pipeline.labels.class_counts import ClassCounts, GroupCounts

_RARE: Final = 0.0005
"""The share of a split's labelled pixels below which a class counts as rare."""
_NAMED: Final = 12
_SCORED: Final = ("val", "test")


def class_findings(counts: ClassCounts, spaces: Mapping[str, LabelSpace]) -> Iterator[Finding]:
    """Yield what is odd about the classes of each label space; one finding lists its classes."""
    by: dict[str, dict[str, GroupCounts]] = {}
    for (name, split), sums in counts.by("label_space", "split").items():
        by.setdefault(name, {})[split] = sums
    for name, splits in by.items():
        if name in spaces:
            yield from _of_space(spaces[name], splits)


def _of_space(space: LabelSpace, splits: Mapping[str, GroupCounts]) -> Iterator[Finding]:
    seen = {split: _seen(space, sums) for split, sums in splits.items()}
    everywhere = set().union(*seen.values())
    if not everywhere:
        return
    unseen = [i for i in space.train_ids if i not in everywhere]
    if unseen:
        yield Finding("class-unseen", None, f"{space.name}: {_list(space, unseen)}")
    scored = {s: ids for s, ids in seen.items() if s in _SCORED and ids}
    for split, ids in scored.items():
        missing = [i for i in space.train_ids if i in ids and i not in seen.get("train", ids)]
        if missing:
            what = f"{space.name}: {split} shows {_list(space, missing)}; train does not"
            yield Finding("class-untrained", None, what)
    if seen.get("train") and scored:
        only = [
            i for i in space.train_ids
            if i in seen["train"] and not any(i in ids for ids in scored.values())
        ]  # fmt: skip
        if only:
            what = f"{space.name}: train shows {_list(space, only)}; {' and '.join(scored)} not"
            yield Finding("class-unscored", None, what)
    for split, sums in splits.items():
        yield from _rare(space, split, sums)


def _seen(space: LabelSpace, sums: GroupCounts) -> set[int]:
    """Return the classes with a pixel or an object."""
    size = sums.classes.shape[1]
    return {i for i in space.train_ids if i < size and sums.classes[:, i].any()}


def _rare(space: LabelSpace, split: str, sums: GroupCounts) -> Iterator[Finding]:
    size = sums.classes.shape[1]
    pixels = {i: int(sums.pixels[i]) for i in space.train_ids if i < size}
    total = sum(pixels.values())
    rare = [i for i, n in sorted(pixels.items(), key=lambda p: p[1]) if 0 < n < _RARE * total]
    if rare:
        what = f"{space.name}: in {split or 'no split'}, each below {_RARE:.2%} of the pixels: "
        yield Finding("class-rare", None, what + _list(space, rare))


def _list(space: LabelSpace, ids: Sequence[int]) -> str:
    names = ", ".join(space.by_id[i].name for i in ids[:_NAMED])
    more = f" and {len(ids) - _NAMED} more" if len(ids) > _NAMED else ""
    return f"{len(ids)} of {len(space.train_ids)} classes ({names}{more})"
