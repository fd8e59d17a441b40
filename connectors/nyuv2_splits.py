"""Who is train and who is test among NYU Depth v2's 1449 labelled images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from pipeline.errors import LayoutError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from pipeline.files import Tree

OFFICIAL: Final = 1449
"""Images of the labelled part: 795 train, 654 test."""

KEYS: Final = {
    "trainNdxs": "train",
    "testNdxs": "test",
    "valNdxs": "val",
    "unlabelledNdxs": "unlabelled",
}
"""The lists of splits.mat, numbers from 1; the release has the first two."""

_LARGEST: Final = 1 << 26
_MEND: Final = "fetch splits.mat of the dataset again, or take it away to use the built-in split"

# Bit n, from the top of the first byte, is set when image n + 1 is in trainNdxs of splits.mat
# (Silberman, Hoiem, Kohli, Fergus 2012; cs.nyu.edu/~silberman/datasets/nyu_depth_v2.html).
_TRAIN: Final = bytes.fromhex(
    "3f7837e00019fe41ffe1e01ffffff1f0437fff1ffc40e000003c0fe3ffffffbffefc7c07fe03f8c7f001fffcc00fff"
    "fe03c7ffc3fff81f00fff83007ffffffe04003c71ff1c0001fc1fc3fc1e707ff03e79e3ce06078331f8073e0c3fcff"
    "fc0000001ffe0f83f1ff00038f03f1ffffffff8ff1f8e1ff1ffc31807ffc1f0f8ff1fe39fe673fffc00e008087f1c0"
    "1cfe00038198c0fe0f000e0f831ffc38007fc0f001180f9fff0c0fc70fe67ffe01807c03f0f87f0000"
)


def official_split(number: int) -> str:
    """Return the split of an image by its number, 1..1449.

    >>> official_split(1), official_split(3)
    ('test', 'train')
    """
    place = number - 1
    return "train" if _TRAIN[place >> 3] >> (7 - (place & 7)) & 1 else "test"


def splits_file(names: list[str], mat: str) -> str | None:
    """Return which of a directory's files holds the splits of its .mat: splits.mat, or like it."""
    found = [n for n in names if n.startswith("splits") and n.endswith(".mat") and n != mat]
    if "splits.mat" in found:
        return "splits.mat"
    return found[0] if len(found) == 1 else None


def splits_of(tree: Tree, name: str | None, images: int, path: str) -> Iterator[str]:
    """Yield the split of each of a .mat's images, by splits.mat (`name`) or by the official list.

    Raises:
        LayoutError: splits.mat is damaged, names an image that is not there, or is missing while
            the file does not hold the official 1449 images.
    """
    if name is None:
        if images != OFFICIAL:
            raise LayoutError(
                f"{path}: it holds {images} images, not the official {OFFICIAL}, and no splits.mat "
                "lies beside it; put one there with trainNdxs and testNdxs, numbers from 1"
            )
        return (official_split(number) for number in range(1, OFFICIAL + 1))
    lists = _lists(tree, name)
    order = list(KEYS.values())
    found = np.full(images, order.index("unlabelled"), np.uint8)
    taken = np.zeros(images, np.bool_)
    for key, numbers in lists.items():
        bad = numbers[(numbers < 1) | (numbers > images)]
        if len(bad):
            raise LayoutError(
                f"{tree.url_of(name)}: {key} names image {bad[0]}, the dataset has 1..{images}; "
                f"{_MEND}"
            )
        rows = numbers - 1
        if taken[rows].any() or len(np.unique(rows)) < len(rows):
            raise LayoutError(f"{tree.url_of(name)}: {key} names an image twice; {_MEND}")
        taken[rows] = True
        found[rows] = order.index(KEYS[key])
    return (order[at] for at in found.tolist())


def _lists(tree: Tree, name: str) -> dict[str, NDArray[np.int64]]:
    """Return the lists of a MATLAB v5 file."""
    import io

    from scipy.io import loadmat

    path = tree.url_of(name)
    if tree.entry(name).size > _LARGEST:
        raise LayoutError(f"{path}: too large for lists of numbers; {_MEND}")
    try:
        held = loadmat(io.BytesIO(tree.read(name)), variable_names=list(KEYS))
    except Exception as error:  # SciPy raises whatever a damaged file makes it trip over
        raise LayoutError(f"{path}: not a MATLAB v5 file ({error}); {_MEND}") from None
    lists = {}
    for key in KEYS:
        values = np.asarray(held.get(key, np.zeros(0, np.uint16)))
        numbers = values.ravel()
        whole = numbers.dtype.kind in "uif" and bool((numbers == np.floor(numbers)).all())
        if not whole or (key not in held and KEYS[key] in ("train", "test")):
            raise LayoutError(f"{path}: no list of whole numbers called {key}; {_MEND}")
        lists[key] = numbers.astype(np.int64)
    return lists


def splits_mat(splits: list[str]) -> bytes:
    """Return a splits.mat for images in this order, in columns as the release has them."""
    import io

    from scipy.io import savemat

    held = np.array(splits)
    kind = np.uint16 if len(splits) < 65536 else np.uint32
    columns = {}
    for key, split in KEYS.items():
        numbers = np.flatnonzero(held == split) + 1
        if len(numbers) or split in ("train", "test"):
            columns[key] = numbers.astype(kind)[:, None]
    data = io.BytesIO()
    savemat(data, columns)
    # SciPy's header has the time in it; equal datasets are to be equal files.
    text = b"MATLAB 5.0 MAT-file, written by segmill"
    return text.ljust(116) + data.getvalue()[116:]
