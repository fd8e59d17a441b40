"""Records from one label space into another: masks, instances and image labels by look-up table."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from pipeline import masks
from pipeline.errors import RemapError, UsageError
from pipeline.label_space import LabelSpace, find_remap, label_space
from pipeline.loss import Loss
from pipeline.record import File

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pipeline.label_space import Remap
    from pipeline.record import Instance, Record


@dataclass(frozen=True, slots=True)
class Relabeller:
    """Brings records of several label spaces into one; picklable.

    `remaps` leads from each source space's name to the target.
    """

    target: LabelSpace
    remaps: dict[str, Remap] = field(default_factory=dict)

    @classmethod
    def to(cls, target: LabelSpace, sources: Iterable[LabelSpace]) -> Relabeller:
        """Find the remap from each source space.

        Raises:
            RemapError: one of them has none, or two of one name differ.
        """
        spaces = told_apart(sources)
        return cls(target, {s.name: find_remap(s, target) for s in spaces})

    def __call__(self, record: Record) -> tuple[Record, Loss]:
        """Return the record in the target's ids, and what that lost.

        The record is marked (`Record.relabelled`): what its `extra` has of labels is not its own.
        """
        remap = self.remaps[record.label_space]
        if remap.source == self.target:
            return record, Loss(pixels=sum(c.pixels for c in record.classes or ()))
        loss = remap.loss(record.classes or ())
        mask, classes = record.mask, record.classes
        if mask is not None and mask.bytes is not None:
            ids = remap.apply(masks.decode(mask.bytes, record.image_id))
            mask = File(mask.path, masks.encode(ids, self.target.cell_palette()))
            classes = masks.class_pixels(ids, self.target)
        instances = record.instances
        if instances is not None:
            instances = tuple(_instances(instances, remap, loss))
        labels = record.image_labels
        if labels is not None:
            kept = {int(remap.lut[i]) for i in labels} - {self.target.ignore_index}
            labels = tuple(sorted(kept))
        moved = replace(
            record,
            label_space=self.target.name,
            mask=mask,
            classes=classes,
            instances=instances,
            image_labels=labels,
        )
        return moved.as_relabelled(), loss


def _instances(instances: Iterable[Instance], remap: Remap, loss: Loss) -> list[Instance]:
    """Map the categories of objects; an object whose class has no counterpart is dropped."""
    kept = []
    for instance in instances:
        category = int(remap.lut[instance.category])
        if category == remap.target.ignore_index:
            name = remap.source.by_id[instance.category].name
            key = f"objects of class {name}"
            loss.attributes[key] = loss.attributes.get(key, 0) + 1
        else:
            kept.append(replace(instance, category=category))
    return kept


def told_apart(spaces: Iterable[LabelSpace]) -> list[LabelSpace]:
    """Return label spaces, each once: records name theirs, and the name must be of one alone.

    Raises:
        RemapError: two of one name differ.
    """
    found: dict[str, LabelSpace] = {}
    for space in spaces:
        if found.setdefault(space.name, space) != space:
            raise RemapError(
                f"two label spaces that differ are called {space.name!r}; give one of them another "
                "name where the dataset names it"
            )
    return list(found.values())


def target_space(choice: str, native: str | None, sources: Iterable[LabelSpace]) -> LabelSpace:
    """Return the label space that `--label-space native|keep|NAME` means for a format.

    Raises:
        UsageError: `keep`, and the sources have several label spaces.
        RemapError: `native`, and a source has no remap to the format's own space; or two sources of
            one name differ.
    """
    spaces = told_apart(sources)
    if choice == "native" and native is not None:
        target = label_space(native)
        for source in spaces:
            try:
                find_remap(source, target)
            except RemapError as error:
                hint = "--label-space keep writes the classes as they are"
                raise RemapError(f"{error}; {hint}") from None
        return target
    if choice in {"native", "keep"}:
        if not spaces:
            raise UsageError("there is no row to write; look at the store or the condition")
        if len(spaces) != 1:
            names = ", ".join(s.name for s in spaces)
            raise UsageError(f"--label-space NAME is needed: the labels are in several: {names}")
        return spaces[0]
    return label_space(choice)
