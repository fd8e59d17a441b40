"""Which label space a model speaks: the one asked for, its own class names, or a numbered one."""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING

from pipeline.errors import ModelError, UsageError
from pipeline.label_space import LABEL_SPACES, LabelClass, LabelSpace, label_space, voc_colour

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.models.uri import ModelUri

_VOID_8_BIT, _VOID_16_BIT = 255, 65535


def read_space(name: str) -> LabelSpace:
    """Return a built-in label space, or the one in a JSON file (`LabelSpace.to_json`)."""
    if not name.endswith(".json"):
        return label_space(name)
    from pipeline.files import read_url

    return LabelSpace.from_json(read_url(name).decode())


def asked_space(uri: ModelUri, asked: str | LabelSpace | None) -> LabelSpace | None:
    """Return the label space that the caller or the URI names; the caller's word wins."""
    if isinstance(asked, LabelSpace):
        return asked
    name = asked or uri.options.get("label_space")
    return None if name is None else read_space(str(name))


def space_of_size(uri: ModelUri, asked: LabelSpace | None) -> LabelSpace:
    """Return the label space of a network that takes any number of classes."""
    count = uri.integer("classes")
    if asked is None and count is None:
        raise UsageError(
            f"{uri.text}: the number of classes is not known; add ?classes=N, or "
            "?label_space=NAME with one of: " + ", ".join(sorted(LABEL_SPACES))
        )
    if asked is None:
        return numbered_space(count or 0)
    if count is not None:
        check_count(uri.text, count, asked)
    return asked


def check_count(what: str, channels: int, space: LabelSpace) -> None:
    """Raise ModelError unless the model has one channel for each class that is not void."""
    if channels != len(space.train_ids):
        raise ModelError(
            f"{what}: the model has {channels} classes, label space {space.name!r} has "
            f"{len(space.train_ids)}; name the label space that it was trained on, or train it on "
            f"{space.name!r}"
        )


def numbered_space(count: int) -> LabelSpace:
    """Return the label space `classes-N`: ids 0 to N - 1 without meaning."""
    _check_number(f"classes-{count}", count)  # before a billion names are made up
    return own_space(f"classes-{count}", [f"class-{i}" for i in range(count)])


def own_space(name: str, names: Sequence[str]) -> LabelSpace:
    """Return a label space of a model's own class names, ids from 0."""
    _check_number(name, len(names))
    void = _VOID_8_BIT if len(names) <= _VOID_8_BIT else _VOID_16_BIT
    classes = tuple(LabelClass(i, text, voc_colour(i)) for i, text in enumerate(_distinct(names)))
    return LabelSpace(name, classes, void)


def _check_number(name: str, count: int) -> None:
    if not 0 < count < _VOID_16_BIT:
        raise UsageError(f"{name}: a model has 1 to {_VOID_16_BIT - 1} classes, not {count}")


def named_space(names: Sequence[str]) -> LabelSpace:
    """Return the built-in label space with just these class names in this order, or an own one.

    A class may go by any of its synonyms: ADE20K's "television receiver" is our "television,
    television receiver, ...". An own space is called by a hash of its names, not by where the model
    lies: that would change the digest of the same model.

    Raises:
        UsageError: the names are the placeholders LABEL_0, LABEL_1, ... of an untold list.
    """
    if all(name.upper() == f"LABEL_{i}" for i, name in enumerate(names)):
        raise UsageError(
            "the model does not name its classes (LABEL_0, ...); give --label-space NAME, or "
            "?classes=N for numbers without meaning"
        )
    wanted = [_synonyms(n) for n in names]
    for known in sorted(LABEL_SPACES):
        space = label_space(known)
        trained = [space.by_id[i].name for i in space.train_ids]
        if len(trained) == len(wanted) and all(map(_same, wanted, map(_synonyms, trained))):
            return space
    digest = hashlib.sha256("\n".join(names).encode()).hexdigest()[:8]
    return own_space(f"classes-{len(names)}-{digest}", names)


def _same(one: list[str], other: list[str]) -> bool:
    """Whether two classes are one: the first name of either is a name of the other."""
    return one[0] in other or other[0] in one


def _synonyms(name: str) -> list[str]:
    """Return a class name's synonyms in bare letters: `__background__` is `background`.

    >>> _synonyms("ashcan, trash can;bin")
    ['ashcan', 'trashcan', 'bin']
    """
    return [re.sub(r"[^a-z0-9]", "", part.lower()) for part in re.split(r"[,;]", name)]


def _distinct(names: Sequence[str]) -> list[str]:
    """Number the names that occur twice: some hub models call every class LABEL or the like."""
    seen: dict[str, int] = {}
    out = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        out.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return out
