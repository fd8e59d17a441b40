"""What an exported model says of itself: class names and preprocessing.

Asked in this order, first word wins: the URI's options; `FILE.json` beside the file; the file's own
metadata; `config.json` and `preprocessor_config.json` in its folder, as Optimum writes them.

FILE.json and metadata hold any of: "label_space" (a built-in name, or the thing itself),
"id2label" or "names" (a list, or numbers to names), "preprocessing" (mean, std, size, multiple,
edge), "layout" ("nchw" or "nhwc"), "output" ("logits" or "probabilities").
"""

from __future__ import annotations

import ast
import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from pipeline.errors import ModelError, SegmillError, UsageError
from pipeline.label_space import LabelSpace
from pipeline.models.asked import asked_input
from pipeline.models.classes import named_space, numbered_space, read_space
from pipeline.models.loaded import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from pipeline.models.processors import MULTIPLE, preprocessing_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pipeline.models.uri import ModelUri

KEYS: Final = ("id2label", "label_space", "layout", "names", "output", "preprocessing")
"""Keys of FILE.json and of a file's metadata."""
CONFIG: Final = "config.json"
PROCESSOR: Final = "preprocessor_config.json"


@dataclass(frozen=True, slots=True)
class Description:
    """What is said of an exported model; empty where nothing is."""

    source: str
    said: Mapping[str, Any]
    config: Mapping[str, Any]
    processor: Mapping[str, Any] | None


def read_description(path: str, metadata: Mapping[str, str]) -> Description:
    """Collect what lies beside a model file and in its metadata, whose values are JSON or text.

    Raises:
        ModelError: a file beside it is damaged.
    """
    own = {key: _value(metadata[key]) for key in KEYS if key in metadata}
    if "segmill" in metadata and isinstance(together := _value(metadata["segmill"]), dict):
        own |= together
    beside = _json(f"{path}.json") or {}
    folder = os.path.dirname(path)
    config = _json(os.path.join(folder, CONFIG)) or {}
    return Description(path, own | beside, config, _json(os.path.join(folder, PROCESSOR)))


def space_of(uri: ModelUri, asked: LabelSpace | None, described: Description) -> LabelSpace:
    """Return the label space asked for, or the one that the model comes with.

    Raises:
        UsageError: neither says.
    """
    if asked is not None:
        return asked
    told = described.said.get("label_space")
    if told is not None:
        return _told_space(told, described.source)
    count = uri.integer("classes")
    if count is not None:
        return numbered_space(count)
    for names in (
        described.said.get("id2label"),
        described.said.get("names"),
        described.config.get("id2label"),
    ):
        if names:
            return named_space(_names(names, described.source))
    raise UsageError(
        f"{uri.text}: nothing says which classes it has; give --label-space NAME, or write "
        f'{{"id2label": {{"0": "road", ...}}}} into {described.source}.json'
    )


def input_of(
    uri: ModelUri, described: Description, shape: tuple[int | None, int | None]
) -> Preprocessing:
    """Return how pixels become the input; `shape` is height and width that the file fixes.

    Raises:
        UsageError: the URI's options are malformed.
        ModelError: the description is.
    """
    told = described.said.get("preprocessing")
    if described.processor is not None:
        own = preprocessing_of(described.processor, described.config)
    else:
        own = Preprocessing(IMAGENET_MEAN, IMAGENET_STD, multiple=MULTIPLE)
    if told is not None:
        try:
            own = Preprocessing.from_dict(own.to_dict() | dict(told))
        except (TypeError, ValueError, KeyError, IndexError) as error:
            raise ModelError(
                f"{described.source}: its preprocessing is malformed: {error}"
            ) from None
    own = asked_input(uri, own)
    if shape[0] is None or shape[1] is None:
        return own
    return Preprocessing(own.mean, own.std, (shape[0], shape[1]))


def choice(uri: ModelUri, described: Description, key: str, known: tuple[str, ...]) -> str:
    """Return an option of the URI or the description; the first of the known ones by default."""
    value = str(uri.options.get(key) or described.said.get(key) or known[0]).lower()
    if value not in known:
        raise UsageError(f"{uri.text}: {key} is {' or '.join(known)}, not {value!r}")
    return value


def _told_space(told: Any, source: str) -> LabelSpace:
    try:
        if isinstance(told, str):
            return read_space(told)
        return LabelSpace.from_json(json.dumps(told))
    except (SegmillError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{source}: its label space is malformed: {error}") from None


def _names(told: Any, source: str) -> list[str]:
    """Return class names in the order of the channels."""
    if isinstance(told, list):
        return [str(name) for name in told]
    try:
        by_number = {int(number): str(name) for number, name in dict(told).items()}
    except (TypeError, ValueError):
        raise ModelError(f"{source}: its class names are no list, nor numbers to names") from None
    if sorted(by_number) != list(range(len(by_number))):
        raise ModelError(f"{source}: its class names are not numbered from 0 without a gap")
    return [by_number[i] for i in range(len(by_number))]


def _json(path: str) -> dict[str, Any] | None:
    try:
        with open(path, encoding="utf-8") as file:
            told = json.load(file)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: cannot be read: {error}") from None
    if not isinstance(told, dict):
        raise ModelError(f"{path}: holds no JSON object")
    return told


def _value(text: str) -> Any:
    """Read metadata: JSON, a Python literal as some exporters write it, or plain text."""
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError):
            continue
    return text
