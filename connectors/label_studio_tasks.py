"""Label Studio's tasks: which image, which annotation counts, and the forms that exports have.

JSON has {"data": {...}, "annotations": [{"result": [...]}], ...} for each task; JSON_MIN has the
data and the results of one annotation side by side. Both come as one list, a task at a time.
"""

from __future__ import annotations

import posixpath
import re
from contextlib import closing
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qs, unquote, urlsplit

from connectors.json_text import JsonText
from connectors.tool_images import FOLDER
from connectors.tool_labels import colour_of, once
from pipeline.errors import LayoutError
from pipeline.images import IMAGE_SUFFIXES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from connectors.tool_labels import Labels
    from pipeline.files import Tree

OWN: Final = "segmill_image"
"""The key of a task's data that names the image below images/, whatever the tool makes of it."""
KINDS: Final = ("brushlabels", "polygonlabels", "rectanglelabels", "labels")
"""Where a result's value has its label, by the tag that drew it."""

_USUAL: Final = ("image", "img", "ocr", "url")
_UPLOADED: Final = re.compile(r"[0-9a-f]{8}-(.+)")
_BOOKS: Final = frozenset(
    ("id", "annotator", "annotation_id", "created_at", "updated_at", "lead_time", "agreement")
)


def tasks(tree: Tree, name: str) -> Iterator[tuple[Any, str]]:
    """Yield a file's tasks; where it breaks, None and the cause, and no more.

    Raises:
        LayoutError: it is no list, or breaks before its first task ends.
    """
    first = True
    with closing(tree.open(name)) as file:
        try:
            for value, _ in JsonText(file, tree.url_of(name)).values():
                yield value, ""
                first = False
        except LayoutError as error:
            if first:
                raise
            yield None, str(error)


def image_of(task: dict[str, Any]) -> str | None:
    """Return the text that names a task's image, None without one."""
    data = data_of(task)
    texts = {key: value for key, value in data.items() if isinstance(value, str)}
    named = [texts[key] for key in _USUAL if key in texts]
    named += [v for k, v in texts.items() if k != OWN and v.lower().endswith(IMAGE_SUFFIXES)]
    own = texts.get(OWN)
    return own if own else next(iter(named), None)


def data_of(task: dict[str, Any]) -> dict[str, Any]:
    """Return a task's data: all that is neither a result nor bookkeeping."""
    if isinstance(task.get("data"), dict):
        return dict(task["data"])
    return {k: v for k, v in task.items() if k not in _BOOKS and not _is_results(v)}


def names_of(text: str) -> list[str]:
    """Return the names below images/ that an image may have, the likeliest first.

    >>> names_of("/data/local-files/?d=out/images/val/a%20b.png")[0]
    'val/a b.png'
    >>> names_of("/data/upload/3/1f2e3d4c-a.png"), names_of("s3://bucket/x/a.png")[-1]
    (['data/upload/3/1f2e3d4c-a.png', 'a.png', '1f2e3d4c-a.png'], 'a.png')
    """
    try:
        parts = urlsplit(text) if "://" in text or text.startswith("/data/") else None
    except ValueError:  # no URL after all
        parts = None
    path = text
    if parts is not None:
        path = parse_qs(parts.query).get("d", [unquote(parts.path)])[0]
    _, folder, below = f"/{path}".rpartition(f"/{FOLDER}/")
    last = posixpath.basename(path)
    uploaded = _UPLOADED.fullmatch(last)
    names = [below if folder else path.lstrip("/") if parts else path]
    names += [uploaded[1]] if uploaded else []
    return list(dict.fromkeys([*names, last]))


def results_of(task: dict[str, Any]) -> list[Any] | None:
    """Return the results that count, in JSON's form; None where nobody annotated the image.

    Of several annotations a ground truth counts, else the one that was changed last; cancelled ones
    don't. Predictions are none.
    """
    if "annotations" not in task and not isinstance(task.get("data"), dict):
        found = [v for v in task.values() if _is_results(v)]
        empty = "annotation_id" in task or any(v == [] for v in task.values())
        return [_full(r) for values in found for r in values] if found or empty else None
    held = task.get("annotations")
    held = [a for a in held if isinstance(a, dict)] if isinstance(held, list) else []
    held = [a for a in held if not a.get("was_cancelled") and isinstance(a.get("result"), list)]
    if not held:
        return None
    ranked = [
        (bool(a.get("ground_truth")), str(a.get("updated_at") or a.get("created_at") or ""), at)
        for at, a in enumerate(held)
    ]
    return list(held[max(ranked)[2]]["result"])


def _is_results(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(v, dict) and "original_width" in v for v in value)
    )


def _full(value: dict[str, Any]) -> dict[str, Any]:
    """Bring a result of JSON_MIN into JSON's form."""
    kind = next((k for k in value if k.endswith("labels")), "")
    outer = {k: value[k] for k in ("original_width", "original_height", "image_rotation")
             if k in value}  # fmt: skip
    return {"type": kind, "value": {k: v for k, v in value.items() if k not in outer}} | outer


def label_of(result: Any) -> tuple[str, list[Any]] | None:
    """Return where a result has its labels, and these; None for what is no shape that is read."""
    if not isinstance(result, dict) or not isinstance(result.get("value"), dict):
        return None
    value = result["value"]
    shape = "rle" in value or "points" in value or ("x" in value and "rotation" in value)
    kind = next((k for k in KINDS if isinstance(value.get(k), list)), None)
    if kind is None or not shape or "radiusX" in value or value.get("closed") is False:
        return None
    turned = "points" not in value and "rle" not in value and value.get("rotation") != 0
    return None if turned else (kind, value[kind])


@lru_cache(maxsize=32)
def labels_of_config(tree: Tree, name: str, fingerprint: str) -> Labels:
    """Return the labels of a labelling configuration.

    Raises:
        LayoutError: it is not XML, or has none.
    """
    from defusedxml import DefusedXmlException
    from defusedxml.ElementTree import ParseError, fromstring

    del fingerprint  # tells a file's versions apart
    path = tree.url_of(name)
    try:
        root = fromstring(tree.read(name))
    except (ParseError, DefusedXmlException, ValueError, LookupError) as error:
        raise LayoutError(f"{path}: not an XML file that can be read ({error})") from None
    found = [
        (node.get("alias") or node.get("value") or "", colour_of(node.get("background")))
        for tag in root.iter()
        if str(tag.tag).lower() in KINDS
        for node in tag.iter("Label")
    ]
    labels = once((label, colour) for label, colour in found if label)
    if not labels:
        raise LayoutError(f"{path}: no <Label> in a tag of {', '.join(KINDS)}; export it again")
    return labels


@lru_cache(maxsize=32)
def labels_of_tasks(tree: Tree, name: str, fingerprint: str) -> Labels:
    """Return the labels that a file's shapes have, sorted."""
    del fingerprint
    found: set[str] = set()
    for task, _ in tasks(tree, name):
        for result in (results_of(task) or []) if isinstance(task, dict) else []:
            said = label_of(result)
            found.update(x for x in said[1] if isinstance(x, str)) if said else None
    return tuple((label, None) for label in sorted(found))
