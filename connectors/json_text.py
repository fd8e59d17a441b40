"""A JSON file as a stream: its values one at a time, each with its own text.

with closing(tree.open(name)) as file:
    for value, text in JsonText(file, tree.url_of(name)).values(): ...
"""

from __future__ import annotations

import codecs
import json
import re
from typing import TYPE_CHECKING, Any, Final

from pipeline.errors import LayoutError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO

BLOCK: Final = 1 << 20
LIMIT: Final = 64 << 20
"""Characters of one value; more is a broken file."""

_SPACE: Final = re.compile(r"[ \t\n\r]*")
_LOOSE: Final = re.compile(r'("(?:[^"\\]|\\.)*+")|[ \t\n\r]+')
_NUMBER_TAIL: Final = 4  # "1.5e+": a number that ends this near to the buffer's end may go on
_MEND: Final = "fetch the file again, or correct it there"


class JsonText:
    """A file's text in a rolling buffer."""

    def __init__(self, file: BinaryIO, path: str, block: int = BLOCK) -> None:
        self._file, self._path, self._block = file, path, block
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._decode = json.JSONDecoder().raw_decode
        self._text, self._at, self._dropped, self._ended = "", 0, 0, False

    def offset(self) -> int:
        """Return the byte at which the reading stands."""
        return self._dropped + len(self._text[: self._at].encode())

    def wrong(self, cause: str) -> LayoutError:
        """Return the error that says what is wrong here."""
        return LayoutError(f"{self._path}: byte {self.offset()}: {cause}; {_MEND}")

    def _more(self, least: int = 0) -> bool:
        """Read on; tell whether anything came."""
        gone, self._text = self._text[: self._at], self._text[self._at :]
        self._dropped += len(gone) if gone.isascii() else len(gone.encode())
        self._at = 0
        parts, size = [self._text], 0
        while size <= least:
            data = self._file.read(max(self._block, least))
            try:
                part = self._decoder.decode(data, final=not data)
            except UnicodeDecodeError:
                raise self.wrong("what follows is not UTF-8") from None
            parts.append(part)
            size += len(part)
            if not data:
                self._ended = True
                break
        if self._dropped == 0 and not self._text and parts[-1].startswith("\ufeff"):
            parts[-1], self._dropped = parts[-1][1:], 3
        self._text = "".join(parts)
        return size > 0

    def peek(self) -> str:
        """Return the next character that is no space, "" at the file's end."""
        while True:
            match = _SPACE.match(self._text, self._at)
            self._at = match.end() if match else self._at
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def take(self, wanted: str) -> str:
        """Step over the next character, which must be one of `wanted`."""
        found = self.peek()
        if not found or found not in wanted:
            named = " or ".join(repr(mark) for mark in wanted)
            raise self.wrong(f"{named} expected, not {found!r}" if found else "the file is cut off")
        self._at += 1
        return found

    def value(self) -> tuple[Any, str]:
        """Read one value; return it and its text."""
        self.peek()
        while True:
            try:
                value, end = self._decode(self._text, self._at)
            except RecursionError:
                raise self.wrong("lists in lists without end") from None
            except ValueError as error:
                held = len(self._text) - self._at
                if held > LIMIT:
                    raise self.wrong(f"no JSON value of up to {LIMIT} characters") from None
                if self._more(held):
                    continue
                cause = getattr(error, "msg", str(error))
                raise self.wrong(f"not JSON, or cut off ({cause})") from None
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if number and len(self._text) - end < _NUMBER_TAIL and not self._ended:
                self._more(_NUMBER_TAIL)
                continue
            text, self._at = self._text[self._at : end], end
            return value, _LOOSE.sub(r"\1", text) if "\n" in text else text

    def values(self) -> Iterator[tuple[Any, str]]:
        """Read the values of an array, one at a time."""
        self.take("[")
        if self.peek() == "]":
            self.take("]")
            return
        while True:
            yield self.value()
            if self.take(",]") == "]":
                return

    def fields(self) -> Iterator[str]:
        """Read the keys of an object; the caller reads the value of each."""
        self.take("{")
        if self.peek() == "}":
            self.take("}")
            return
        while True:
            if self.peek() != '"':
                raise self.wrong("a key expected")
            key, _ = self.value()
            self.take(":")
            yield key
            if self.take(",}") == "}":
                return
