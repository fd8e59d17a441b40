"""The classes of a full ADE20K release: from index_ade20k.pkl, index_ade20k.mat, or a scan.

Class numbers are positions in the index's `objectnames`, from 1. A label space of them is called
`ade20k-full-` and a hash of the classes, as releases and parts of them differ; the remap table
`ade20k-full_to_ade20k-150` serves them all.

A pickle can run code when it is loaded. Here it is read by an unpickler that builds lists, dicts,
texts and numbers, takes the bytes of arrays apart itself, and refuses whatever else it names.
"""

from __future__ import annotations

import base64
import hashlib
import io
import pickle
import zlib
from functools import lru_cache
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from connectors.ade20k_files import SPLIT_OF, groups
from connectors.ade20k_layers import TOP_NUMBER, numbering, read_layer
from connectors.ade20k_notes import atr_lines, json_objects
from connectors.class_table import classes_of, write_classes
from pipeline.errors import InputError, LayoutError
from pipeline.label_space import LabelClass, LabelSpace, voc_colour

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from connectors.ade20k_files import Group
    from pipeline.files import Tree
    from pipeline.trees.sinks import Sink

PICKLE: Final = "index_ade20k.pkl"
MATLAB: Final = "index_ade20k.mat"
CLASS_TABLE: Final = "classes.tsv"
FAMILY: Final = "ade20k-full"

_OTHER: Final = "other (unlabelled)"
_HELD: Final = 1 << 26  # bytes of an array that are kept: names fit, presence matrices do not
_ADVICE: Final = "get the file again, or remove it: the classes then come from the annotation files"


def space_of(names: dict[int, str]) -> LabelSpace:
    """Return the label space of class numbers and names; a name that comes twice gets its number.

    >>> space_of({312: "building"}).ids
    (0, 312)
    """
    seen, classes = {_OTHER}, [LabelClass(0, _OTHER, (0, 0, 0), void=True)]
    for number in sorted(names):
        name = names[number].encode("utf-8", "replace").decode("utf-8")  # JSON may hold half a pair
        while name in seen:
            name = f"{name} #{number}"
        seen.add(name)
        classes.append(LabelClass(number, name, voc_colour(number)))
    text = repr([(c.id, c.name) for c in classes])
    mark = hashlib.blake2b(text.encode(), digest_size=4).hexdigest()
    return LabelSpace(f"{FAMILY}-{mark}", tuple(classes), 0)


def names_of(space: LabelSpace) -> list[str]:
    """Return `objectnames` for a space: the name of each class number from 1, "" for none."""
    to_number = numbering(space).to_number
    numbers = {int(to_number[c.id]): c.name for c in space.classes if c.id != space.ignore_index}
    return [numbers.get(n, "") for n in range(1, max(numbers, default=0) + 1)]


def space_in(tree: Tree, base: str, root: str) -> LabelSpace:
    """Return the label space of a release: its class table's, its index's, or that of a scan.

    A scan reads every annotation file, and in the 2017 layout the masks, once a process and state
    of the files: some 3 milliseconds for each .json, 100 for each _atr.txt with its masks.

    Raises:
        LayoutError: a table or an index is damaged, or would run code.
    """
    if tree.exists(root + CLASS_TABLE):
        return _from_table(tree, root + CLASS_TABLE, tree.entry(root + CLASS_TABLE).fingerprint)
    for name, read in ((PICKLE, _from_pickle), (MATLAB, _from_matlab)):
        if tree.exists(root + name):
            return read(tree, root + name, tree.entry(root + name).fingerprint)
    return _from_scan(tree, base, _state(tree, base))


@lru_cache(maxsize=8)
def _from_table(tree: Tree, name: str, fingerprint: str) -> LabelSpace:
    return classes_of(tree, name)


@lru_cache(maxsize=8)
def _from_pickle(tree: Tree, name: str, fingerprint: str) -> LabelSpace:
    with tree.open(name) as file:
        index = read_pickle(file, tree.url_of(name))
    return _from_names(index.get("objectnames"), tree.url_of(name))


@lru_cache(maxsize=8)
def _from_matlab(tree: Tree, name: str, fingerprint: str) -> LabelSpace:
    from scipy.io import loadmat

    path = tree.url_of(name)
    try:
        found = loadmat(io.BytesIO(tree.read(name)), variable_names=["index"])
        cells = found["index"]["objectnames"][0, 0].ravel()
        names = [str(cell.ravel()[0]) if cell.size else "" for cell in cells]
    except Exception as error:  # scipy raises whatever a damaged file leads it to
        raise LayoutError(f"{path}: not the index of ADE20K ({error!r}); {_ADVICE}") from None
    return _from_names(names, path)


def _from_names(names: Any, path: str) -> LabelSpace:
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise LayoutError(f"{path}: objectnames is no list of names; {_ADVICE}")
    if len(names) > TOP_NUMBER:
        raise LayoutError(f"{path}: {len(names)} objectnames are more than masks hold; {_ADVICE}")
    return space_of({n: name for n, name in enumerate(names, 1) if name})


# The pickle


def read_pickle(file: Any, path: str) -> dict[str, Any]:
    """Return an index as plain data; arrays of one dimension become lists, other arrays None.

    Memory is that of the file, for the time of the call.

    Raises:
        LayoutError: it is damaged, no dict, or names anything but plain data.
    """
    try:
        index = _Plain(file).load()
        if isinstance(index, dict):
            return {str(k): v.tolist() if isinstance(v, _Array) else v for k, v in index.items()}
    except Exception as error:  # a damaged pickle raises nearly anything
        raise LayoutError(f"{path}: cannot be read as plain data ({error}); {_ADVICE}") from None
    raise LayoutError(f"{path}: holds no dict; {_ADVICE}")


class _Plain(pickle.Unpickler):
    """Builds containers, texts and numbers; nothing of numpy, and nothing else, is called."""

    def find_class(self, module: str, name: str) -> Any:
        found = _ALLOWED.get((module.replace("numpy._core.", "numpy.core."), name))
        if found is None:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is no plain data")
        return found


class _Call:
    """A function that a pickle may call, and may not change."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *values: Any) -> Any:
        return self._function(*values)

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError("it changes a function")


class _Dtype:
    """A numpy type by its code, such as i8, U20 or O; what else a pickle says of it is skipped."""

    __slots__ = ("code", "order")

    def __init__(self, code: str, *_: object) -> None:
        self.code, self.order = str(code), "<"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = ">" if state[1] == ">" else "<"

    def values(self, data: bytes) -> list[Any]:
        if self.code.lstrip("<>|=")[:1] not in tuple("biufUS?"):
            raise pickle.UnpicklingError(f"it holds an array of type {self.code!r}")
        kind = np.dtype(self.order + self.code.lstrip("<>|="))
        found = np.frombuffer(data, kind)
        plain: list[Any] = found.tolist()
        return plain


class _Array:
    """An array's parts as its pickle gives them; nothing is made of the big ones."""

    __slots__ = ("_dtype", "_shape", "_values")

    def __init__(self, *_: object) -> None:
        self._shape: tuple[int, ...] = ()
        self._values: Any = b""
        self._dtype = _Dtype("u1")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        *_, shape, dtype, _, values = state
        self._shape, self._dtype = tuple(shape), dtype
        self._values = None if isinstance(values, bytes) and len(values) > _HELD else values

    def tolist(self) -> list[Any] | None:
        """Return the values of an array of one dimension; None for others, and for big ones."""
        if self._values is None or len(self._shape) != 1:
            return None
        if isinstance(self._values, list):
            return self._values
        return self._dtype.values(self._values)


def _from_buffer(data: bytes, dtype: _Dtype, shape: tuple[int, ...], _: str) -> _Array:
    array = _Array()
    array.__setstate__((1, shape, dtype, False, bytes(data) if len(data) <= _HELD else None))
    return array


def _latin_bytes(text: str, codec: str) -> bytes:
    if codec not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"it encodes text as {codec!r}")
    return text.encode("latin-1")


_ALLOWED: Final[dict[tuple[str, str], Any]] = {
    ("numpy.core.multiarray", "_reconstruct"): _Call(lambda *_: _Array()),
    ("numpy.core.multiarray", "scalar"): _Call(lambda dtype, data: dtype.values(data)[0]),
    ("numpy.core.numeric", "_frombuffer"): _Call(_from_buffer),
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _Call(_latin_bytes),
    ("collections", "OrderedDict"): dict,
    **{(m, t.__name__): t for m in ("builtins", "__builtin__") for t in (list, tuple, dict, set)},
}


class _Streamed:
    """Pickles as a list whose items are taken one by one."""

    def __init__(self, items: Iterable[str]) -> None:
        self._items = items

    def __reduce__(self) -> tuple[Any, ...]:
        return list, (), None, iter(self._items)


def write_index(
    sink: Sink, root: str, space: LabelSpace, rows: Callable[[], Iterable[tuple[str, str, str]]]
) -> None:
    """Write index_ade20k.pkl, streaming: a dict of the lists filename, folder, scene, objectnames.

    `rows` gives (filename, folder, scene) of each image, anew each time. The matrices of the
    releases, classes by images, are left out: dense, they would outgrow the annotations. A space
    that the names alone do not give back is written as `classes.tsv` too.
    """
    names = names_of(space)
    with sink.stream(root + PICKLE) as file:
        pickler = pickle.Pickler(file, protocol=2)
        pickler.fast = True  # no memo: it would hold every text
        columns = ("filename", "folder", "scene")
        index: dict[str, Any] = {
            name: _Streamed(map(itemgetter(at), rows())) for at, name in enumerate(columns)
        }
        pickler.dump(index | {"objectnames": names})
    if space_of({n: name for n, name in enumerate(names, 1) if name}) != space:
        write_classes(sink, root, space)
    else:
        sink.remove(root + CLASS_TABLE)  # an earlier run's


# The scan


def _state(tree: Tree, base: str) -> str:
    """Return a hash that changes with the annotation files."""
    mark = hashlib.blake2b(digest_size=16)
    for folder in SPLIT_OF:
        if tree.isdir(base + folder):
            for entry in tree.walk(base + folder, (".json", ".txt")):
                mark.update(f"{entry.name}\0{entry.fingerprint}\0".encode())
    return mark.hexdigest()


@lru_cache(maxsize=8)
def _from_scan(tree: Tree, base: str, state: str) -> LabelSpace:
    names: dict[int, str] = {}
    for folder in SPLIT_OF:
        if tree.isdir(base + folder):
            for group in groups(tree, base + folder):
                try:
                    for number, name in _named(tree, group):
                        names.setdefault(number, name)
                except InputError:
                    continue  # reading that image says what is wrong with it
    return space_of(names)


def _named(tree: Tree, group: Group) -> Iterator[tuple[int, str]]:
    """Yield the class numbers and names of one image's annotation."""
    if group.note == "json":
        path = f"{group.stem}.json"
        for item in json_objects(tree.read_text(path), tree.url_of(path)):
            if 0 < item.number <= TOP_NUMBER and item.name:
                yield item.number, item.name
    elif group.note == "atr":
        path = f"{group.stem}_atr.txt"
        lines = atr_lines(tree.read_text(path), tree.url_of(path))
        for level in (0, *group.levels):
            name = f"{group.stem}_parts_{level}.png" if level else f"{group.stem}_seg.png"
            layer = read_layer(tree.read(name), tree.url_of(name))
            codes = layer.numbers.astype(np.uint32) << 8 | np.take(layer.ranks, layer.blue)
            present = np.flatnonzero(np.bincount(codes.ravel()))
            for number, rank in sorted((int(c) >> 8, int(c) & 255) for c in present):
                if number:
                    yield number, lines.get((level, rank)) or f"class {number}"


# The class numbers that a sample's reader has to know, as a short text


def pack_numbers(space: LabelSpace) -> str:
    """Return the class ids of a space as text for a sample's payload: 600 characters at most."""
    bits = np.zeros(space.max_id + 1, dtype=np.uint8)
    bits[list(space.ids)] = 1
    return base64.b85encode(zlib.compress(np.packbits(bits).tobytes(), 9)).decode("ascii")


@lru_cache(maxsize=8)
def unpack_numbers(name: str, text: str) -> LabelSpace:
    """Return a space of that name with the same ids, where classes are called by their number."""
    bits = np.unpackbits(np.frombuffer(zlib.decompress(base64.b85decode(text)), np.uint8))
    classes = tuple(
        LabelClass(i, str(i), voc_colour(i), void=not i) for i in np.flatnonzero(bits).tolist()
    )
    return LabelSpace(name, classes, 0)
