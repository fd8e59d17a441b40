"""Model URIs: `kind:name?option=value&...`."""

from __future__ import annotations

import ast
import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl

from pipeline.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

_WORDS: Final[Mapping[str, Any]] = {"true": True, "false": False, "none": None, "null": None}
_NOT_ARCHITECTURE: Final = frozenset({"classes", "label_space", "seed", "weights"})
_SUFFIXES: Final[Mapping[str, str]] = {".onnx": "onnx", ".pt2": "export"}
_OF_FILES: Final = ("export", "hf", "onnx", "run", "script")
"""Kinds whose name is a path or URL."""


@dataclass(frozen=True, slots=True)
class ModelUri:
    """A parsed model URI; `text` is as the user wrote it."""

    text: str
    kind: str
    name: str
    options: Mapping[str, Any]

    def integer(self, option: str) -> int | None:
        """Return an option that must be a whole number, None when it is absent."""
        value = self.options.get(option)
        if value is None or (isinstance(value, int) and not isinstance(value, bool)):
            return value
        raise UsageError(f"{self.text}: ?{option}= takes a whole number, not {value!r}")

    @property
    def seed(self) -> int:
        """The seed of the initial weights; 0 unless named, so that a URI is one model."""
        return self.integer("seed") or 0

    def only(self, *known: str) -> None:
        """Raise UsageError for an option that this kind of model does not have."""
        unknown = sorted(self.options.keys() - set(known))
        if unknown:
            raise UsageError(
                f"{self.text}: no option {', '.join(unknown)}; it takes: {', '.join(sorted(known))}"
            )

    def build_options(self) -> dict[str, Any]:
        """Return the options that shape the network."""
        return {k: v for k, v in self.options.items() if k not in _NOT_ARCHITECTURE}


def parse(text: str) -> ModelUri:
    """Split a model URI; a text without a kind is a file by its suffix, or a model directory.

    >>> parse("smp:Unet?encoder_name=resnet34&classes=11").options
    {'encoder_name': 'resnet34', 'classes': 11}
    """
    kind, colon, rest = text.partition(":")
    if not colon or rest.startswith("//"):  # a plain path, or a URL of one
        kind, rest = "", text
    # An ensemble's name is the URIs of its members, each with options of its own.
    name, _, query = (rest, "", "") if kind == "ensemble" else rest.partition("?")
    kind = kind or _SUFFIXES.get(os.path.splitext(name)[1].lower(), "run")
    if not name:
        raise UsageError(f"model URI {text!r} names no model: write KIND:NAME, like zoo:enet")
    options: dict[str, Any] = {}
    for option, value in parse_qsl(query):
        if option in options:
            raise UsageError(f"{text}: ?{option}= is given twice; leave one out")
        options[option] = _value(value)
    return ModelUri(text, kind, name, options)


def absolute(text: str) -> str:
    """Return a model URI, or a path of weights, with a local path in it made absolute.

    Actors work in other directories than the command that starts them.
    """
    kind, colon, rest = text.partition(":")
    if not colon or kind not in _OF_FILES:
        kind, colon, rest = "", "", text
    path, mark, query = rest.partition("?")
    return f"{kind}{colon}{os.path.abspath(path)}{mark}{query}" if os.path.exists(path) else text


def _value(text: str) -> Any:
    """Read a number, a truth value, None or a list of them; any other text is itself."""
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    try:
        value = ast.literal_eval(text)
        return json.loads(json.dumps(value))  # tuples become lists, as model.json would make them
    except (ValueError, SyntaxError, TypeError):
        return text
