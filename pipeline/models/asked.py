"""What a model's URI says of its input and of the objects to keep: it wins over the model's word.

?size=512x1024 resizes to that, ?size=native not at all, ?edge=520 or ?edge=800,1333 to a shorter
side; ?mean=0.5,0.5,0.5&std=0.5,0.5,0.5 normalise pixels in 0..1; ?multiple=32 pads.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from pipeline.errors import UsageError
from pipeline.models.loaded import Objects, Preprocessing, ShortestEdge

if TYPE_CHECKING:
    from pipeline.models.uri import ModelUri

INPUT: Final = ("edge", "mean", "multiple", "size", "std")
"""Options that `asked_input` reads."""
CLASSES: Final = ("classes", "label_space")
"""Options that name the classes."""
OBJECTS: Final = ("most", "score")
"""Options that `asked_objects` reads."""
_SIZE: Final = re.compile(r"(\d+)x(\d+)")


def asked_input(uri: ModelUri, own: Preprocessing) -> Preprocessing:
    """Return the model's own preprocessing, changed where the URI says so.

    Raises:
        UsageError: an option is malformed.
    """
    mean, std = _triple(uri, "mean") or own.mean, _triple(uri, "std") or own.std
    if min(std) <= 0:
        raise UsageError(f"{uri.text}: ?std= takes numbers above 0")
    changed = replace(own, mean=mean, std=std)
    multiple = uri.integer("multiple")
    if multiple is not None:
        if multiple < 1:
            raise UsageError(f"{uri.text}: ?multiple= is at least 1")
        changed = replace(changed, multiple=multiple)
    if uri.options.get("size") is not None and uri.options.get("edge") is not None:
        raise UsageError(f"{uri.text}: ?size= and ?edge= exclude one another")
    if uri.options.get("size") is not None:
        return replace(changed, size=_size(uri), edge=None)
    if uri.options.get("edge") is not None:
        return replace(changed, size=None, edge=_edge(uri))
    return changed


def asked_objects(uri: ModelUri, task: Any) -> Objects | None:
    """Return what to keep of a model's objects; None for the task "semantic".

    Raises:
        UsageError: the task or an option is not one.
    """
    if task not in {"semantic", "instance", "panoptic"}:
        raise UsageError(f"{uri.text}: ?task= is semantic, instance or panoptic, not {task!r}")
    if task == "semantic":
        unused = sorted(set(OBJECTS) & uri.options.keys())
        if unused:
            raise UsageError(
                f"{uri.text}: ?{unused[0]}= is for models that find objects; add ?task=instance"
            )
        return None
    score, most = uri.options.get("score", 0.5), uri.integer("most")
    if isinstance(score, bool) or not isinstance(score, int | float) or not 0 <= score <= 1:
        raise UsageError(f"{uri.text}: ?score= is in 0..1, not {score!r}")
    if most is not None and not 0 < most <= 65_535:
        raise UsageError(f"{uri.text}: ?most= is in 1..65535, not {most}")
    return Objects(task, float(score), most or Objects("instance").most)


def _triple(uri: ModelUri, option: str) -> tuple[float, ...] | None:
    """Read one number for all channels, or one for each."""
    value = uri.options.get(option)
    if value is None:
        return None
    values = value if isinstance(value, list) else [value] * 3
    if len(values) != 3 or not all(type(v) in {int, float} for v in values):
        raise UsageError(f"{uri.text}: ?{option}= takes one number or three, like 0.5,0.5,0.5")
    return tuple(float(v) for v in values)


def _size(uri: ModelUri) -> tuple[int, int] | None:
    text = str(uri.options["size"]).lower()
    found = _SIZE.fullmatch(text)
    if text != "native" and (found is None or not int(found[1]) * int(found[2])):
        raise UsageError(f"{uri.text}: ?size= is HxW, like 512x1024, or native")
    return None if found is None else (int(found[1]), int(found[2]))


def _edge(uri: ModelUri) -> ShortestEdge:
    value = uri.options["edge"]
    values = value if isinstance(value, list) else [value]
    if not 1 <= len(values) <= 2 or not all(type(v) is int and v > 0 for v in values):
        raise UsageError(f"{uri.text}: ?edge= is SHORTEST or SHORTEST,LONGEST, like 800,1333")
    return ShortestEdge(*values)
