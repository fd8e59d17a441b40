"""MATLAB's v5 files: reading that a damaged file cannot crash, and writing that streams.

scipy's reader is not used: some damaged files end its process (a segmentation fault, which no
handler catches), and it would build an object for every number of a struct of 10,335 images, where
one field of it is wanted.
"""

from __future__ import annotations

import shutil
import struct
import tempfile
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from pipeline.errors import CorruptMask

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import TracebackType
    from typing import BinaryIO

    from numpy.typing import NDArray

HEAD: Final = 128
LIMIT: Final = 1 << 30
"""Most bytes that the variables of one file may inflate to."""

_INT8, _INT32, _UINT16, _UINT32, _DOUBLE, _MATRIX, _COMPRESSED = 1, 5, 4, 6, 9, 14, 15
_CELL, _STRUCT, _CHAR, _FLOAT64 = 1, 2, 4, 6
_TEXTS: Final = {
    1: "latin-1",
    2: "latin-1",
    4: "utf-16-le",
    16: "utf-8",
    17: "utf-16-le",
    18: "utf-32-le",
}
_STORED: Final = {
    1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8",
}  # fmt: skip
_CLASSES: Final = {
    6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8",
}  # fmt: skip
_COMPLEX: Final = 0x800
_FIELD: Final = 32
_HDF5: Final = b"\x89HDF\r\n\x1a\n"


def header() -> bytes:
    """Return the first 128 bytes of a file; without a date, so that equal data are equal bytes."""
    return b"MATLAB 5.0 MAT-file, written by segmill".ljust(124) + b"\x00\x01IM"


def inflated(data: bytes, path: str, limit: int = LIMIT) -> bytes:
    """Return a v5 file with its variables inflated, so that no reader meets a bomb.

    Raises:
        CorruptMask: it is no v5 file, cut off, damaged, or larger than the limit.
    """
    order = {b"IM": "<", b"MI": ">"}.get(data[126:128])
    if order is None or _HDF5 in data[:1024] or data[:10] == b"MATLAB 7.3":
        kind = "a MATLAB v7.3 (HDF5) file" if _HDF5 in data[:1024] else "no MATLAB file"
        raise _corrupt(path, f"{kind}, where a MATLAB v5 file is expected")
    parts, at, total = [data[:HEAD]], HEAD, 0
    while at < len(data):
        if at + 8 > len(data):
            raise _corrupt(path, "the file is cut off")
        kind, size = struct.unpack_from(order + "II", data, at)
        stop = at + 8 + size
        if stop > len(data):
            raise _corrupt(path, "the file is cut off")
        if kind == _COMPRESSED:
            part = _inflate(data[at + 8 : stop], path, limit - total)
        else:
            part = data[at:stop]
        total += len(part)
        parts.append(part)
        at = stop
    return b"".join(parts)


def _inflate(data: bytes, path: str, limit: int) -> bytes:
    stream = zlib.decompressobj()
    try:
        part = stream.decompress(data, max(limit, 1))
    except zlib.error as error:
        raise _corrupt(path, f"a variable does not inflate ({error})") from None
    if not stream.eof:
        cause = "inflates to too much" if stream.unconsumed_tail else "is cut off"
        raise _corrupt(path, f"a variable {cause}")
    return part


def _corrupt(path: str, cause: str) -> CorruptMask:
    return CorruptMask(path, cause, "replace the file")


@dataclass(frozen=True, slots=True)
class Matrix:
    """One array of a file: its class, its size, its name, and what follows the name."""

    kind: int
    shape: tuple[int, ...]
    name: str
    body: memoryview


def variables(data: bytes, path: str, limit: int = LIMIT) -> Iterator[Matrix]:
    """Yield the variables of a little-endian v5 file.

    Raises:
        CorruptMask: it is damaged, or of another kind.
    """
    view = memoryview(inflated(data, path, limit))
    if bytes(view[126:128]) != b"IM":
        raise _corrupt(path, "a big-endian MATLAB file")
    try:
        for kind, body in _elements(view[HEAD:]):
            if kind == _MATRIX:
                yield _matrix(body)
    except (struct.error, ValueError) as error:
        raise _corrupt(path, f"not a whole MATLAB file ({error})") from None


def _elements(view: memoryview) -> Iterator[tuple[int, memoryview]]:
    at = 0
    while at < len(view):
        kind, size = struct.unpack_from("<II", view, at)
        if kind >> 16:  # up to four bytes lie in the tag itself
            yield kind & 0xFFFF, view[at + 4 : at + 4 + min(kind >> 16, 4)]
            at += 8
            continue
        body = view[at + 8 : at + 8 + size]
        if len(body) != size:
            raise ValueError("an element is cut off")
        yield kind, body
        at += 8 + size + (-size % 8)


def _matrix(view: memoryview) -> Matrix:
    if not len(view):
        return Matrix(_FLOAT64, (0, 0), "", view)
    parts = _elements(view)
    try:
        (flags,) = struct.unpack_from("<I", next(parts)[1])
        dims, name = next(parts)[1], next(parts)[1]
    except (StopIteration, struct.error):
        raise ValueError("an array without a head") from None
    shape = struct.unpack(f"<{len(dims) // 4}i", dims[: len(dims) // 4 * 4])
    kind = -1 if flags & _COMPLEX else flags & 0xFF
    return Matrix(kind, shape, str(name, "latin-1"), _behind(view, 3))


def _behind(view: memoryview, elements: int) -> memoryview:
    at = 0
    for _ in range(elements):
        kind, size = struct.unpack_from("<II", view, at)
        at += 8 if kind >> 16 else 8 + size + (-size % 8)
    return view[at:]


def texts(matrix: Matrix) -> Iterator[str]:
    """Yield the strings in a cell array, and those in cells in it.

    Raises:
        ValueError: it is no cell array of strings.
    """
    if matrix.kind != _CELL:
        raise ValueError(f"{matrix.name!r} is no cell array")
    for _, body in _elements(matrix.body):
        yield text(_matrix(body))


def fields(matrix: Matrix, name: str) -> Iterator[Matrix]:
    """Yield one field of each element of a struct array; the others are skipped, not read.

    Raises:
        ValueError: it is no struct array with that field.
    """
    if matrix.kind != _STRUCT:
        raise ValueError(f"{matrix.name!r} is no struct array")
    parts = _elements(matrix.body)
    width, packed = (bytes(next(parts, (0, b""))[1]) for _ in range(2))
    step = int.from_bytes(width[:4], "little")
    if step < 1 or not packed:
        raise ValueError("a struct array without field names")
    names = [packed[i : i + step].split(b"\0")[0] for i in range(0, len(packed), step)]
    wanted = names.index(name.encode())
    for at, (_, body) in enumerate(parts):
        if at % len(names) == wanted:
            yield _matrix(body)


def text(matrix: Matrix) -> str:
    """Return a string; of a cell array, its first one.

    Raises:
        ValueError: it is no string.
    """
    if matrix.kind == _CELL:
        return next(texts(matrix), "")
    if matrix.kind != _CHAR:
        raise ValueError("an array that is no string")
    kind, data = next(_elements(matrix.body), (_INT8, memoryview(b"")))
    if len(matrix.shape) != 2 or matrix.shape[0] > 1:
        raise ValueError("several lines of letters, where a string is expected")
    return str(data, _TEXTS.get(kind, "latin-1"), "replace")


def numbers(matrix: Matrix) -> NDArray[Any]:
    """Return an array of numbers, of the size and type that MATLAB shows.

    Raises:
        ValueError: it is none, or holds more or fewer numbers than its size says.
    """
    if matrix.kind not in _CLASSES:
        raise ValueError(f"{matrix.name!r} is no array of real numbers")
    kind, data = next(_elements(matrix.body), (_INT8, memoryview(b"")))
    stored = np.dtype(_STORED.get(kind, "V1")).newbyteorder("<")
    if stored.kind == "V" or len(data) % stored.itemsize:
        raise ValueError(f"{matrix.name!r} holds numbers of no known type")
    values = np.frombuffer(data, stored).reshape(matrix.shape, order="F")
    return values.astype(_CLASSES[matrix.kind], copy=False)


def _element(kind: int, data: bytes) -> bytes:
    return struct.pack("<II", kind, len(data)) + data + bytes(-len(data) % 8)


def _top(kind: int, dims: Sequence[int], name: str = "") -> bytes:
    return b"".join(
        (
            _element(_UINT32, struct.pack("<II", kind, 0)),
            _element(_INT32, struct.pack(f"<{len(dims)}i", *dims)),
            _element(_INT8, name.encode("latin-1")),
        )
    )


def chars(value: str) -> bytes:
    """Return a string as an element of a cell or struct array."""
    data = value.encode("utf-16-le")
    head = _top(_CHAR, (min(len(data), 1), len(data) // 2))
    return _element(_MATRIX, head + _element(_UINT16, data))


def doubles(values: Sequence[float], rows: int, columns: int) -> bytes:
    """Return numbers, given row by row, as an element of a cell or struct array."""
    by_column = [values[r * columns + c] for c in range(columns) for r in range(rows)]
    data = struct.pack(f"<{len(by_column)}d", *by_column)
    return _element(_MATRIX, _top(_FLOAT64, (rows, columns)) + _element(_DOUBLE, data))


class Variable:
    """A cell or struct array that grows on disk, as its size comes before its elements."""

    def __init__(self, name: str, names: Sequence[str] = ()) -> None:
        self._name, self._fields, self.count = name, tuple(names), 0
        self._file = tempfile.TemporaryFile(prefix="segmill-mat-")  # noqa: SIM115 - see __exit__

    def __enter__(self) -> Variable:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def add(self, *elements: bytes) -> None:
        """Append a cell, or one struct's fields in order."""
        self._file.write(b"".join(elements))
        self.count += 1

    def write(self, target: BinaryIO, name: str | None = None) -> None:
        """Write the variable; as a struct's field when it has no name."""
        head = _top(
            _STRUCT if self._fields else _CELL,
            (1, self.count),
            self._name if name is None else name,
        )
        if self._fields:
            packed = b"".join(f.encode().ljust(_FIELD, b"\0") for f in self._fields)
            head += _element(_INT32, struct.pack("<i", _FIELD)) + _element(_INT8, packed)
        size = len(head) + self._file.tell()
        target.write(struct.pack("<II", _MATRIX, size) + head)
        self._file.seek(0)
        shutil.copyfileobj(self._file, target, 1 << 20)

    def size(self) -> int:
        """Return the bytes that `write` will write without a name."""
        return 8 + len(_top(_CELL, (1, self.count))) + self._file.tell()


def write_struct(target: BinaryIO, name: str, parts: dict[str, Variable]) -> None:
    """Write a 1x1 struct whose fields are cell arrays."""
    packed = b"".join(f.encode().ljust(_FIELD, b"\0") for f in parts)
    head = _top(_STRUCT, (1, 1), name)
    head += _element(_INT32, struct.pack("<i", _FIELD)) + _element(_INT8, packed)
    size = len(head) + sum(part.size() for part in parts.values())
    target.write(struct.pack("<II", _MATRIX, size) + head)
    for part in parts.values():
        part.write(target, "")
