"""The identities of rows and labels as numbers, for millions at a time.

The hash is multilinear over 32-bit words (Lemire and Kaser, "Strongly universal string hashing is
fast", 2014): a lane is the upper half of sum(m[i] * word[i]) mod 2^64, the text's length being a
word as well. Two texts agree in one lane with a chance of 2^-32 over the choice of the multipliers,
and lanes are independent. A row (dataset, path) gets four lanes, 128 bits: among the two billion
rows of a billion images listed and held, two agree with a chance of 10^-20. A label (fingerprint,
digest) gets two lanes, 64 bits: it is compared with that of the same row only, so a change of a
billion images stays unseen with a chance of 10^-10.

The multipliers are fixed, so that all processes agree; the hash is no guard against someone who
looks for two names that collide. NumPy does a million paths in a third of a second, where a call
of a hash function for each takes four times as long before its text is even put together.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

if TYPE_CHECKING:
    from collections.abc import Collection

    from numpy.typing import NDArray

    Words = NDArray[np.uint64]

_ROW_LANES: Final = 4
_LABEL_LANES: Final = 2
_BLOCK: Final = 8192
_LONG: Final = 1024
"""Bytes of a text above which it is hashed by itself, not in columns as wide as the longest."""
_UPPER: Final = np.uint64(0xFFFF_FFFF_0000_0000)
_HALF: Final = np.uint64(32)


class Keys(NamedTuple):
    """Identities of some samples or rows: uint64 [n] each."""

    high: Words
    low: Words
    label: Words
    """Of fingerprint and digest; it says something beside an equal row only."""


def keys_of(dataset: pa.Array, path: pa.Array, fingerprint: pa.Array, digest: pa.Array) -> Keys:
    """Return the identities of columns of text; a null is the empty text."""
    high, low = row_numbers(dataset, path)
    sums = _sums(fingerprint, "fingerprint", _LABEL_LANES)
    sums += _sums(digest, "digest", _LABEL_LANES)
    return Keys(high, low, _joined(sums[0], sums[1]))


def batch_keys(batch: pa.RecordBatch) -> Keys:
    """Return the identities of a batch of samples (`pipeline.samples`)."""
    return keys_of(batch["dataset"], batch["path"], batch["fingerprint"], batch["digest"])


def row_numbers(dataset: pa.Array, path: pa.Array) -> tuple[Words, Words]:
    """Return the upper and the lower half of each row's identity."""
    sums = _sums(path, "path", _ROW_LANES)
    sums += _sums(dataset, "dataset", _ROW_LANES)
    return _joined(sums[0], sums[1]), _joined(sums[2], sums[3])


def row_keys(dataset: pa.Array, path: pa.Array) -> list[bytes]:
    """Return `row_key` of each row."""
    return as_bytes(*row_numbers(dataset, path))


def row_key(dataset: str, path: str) -> bytes:
    """Return the 16-byte identity of a row."""
    sums = _text_sums(path, "path", _ROW_LANES) + _text_sums(dataset, "dataset", _ROW_LANES)
    return as_bytes(_joined(sums[:1], sums[1:2]), _joined(sums[2:3], sums[3:]))[0]


def as_bytes(high: Words, low: Words) -> list[bytes]:
    """Return identities as 16 bytes each, which sort as the numbers do."""
    text = np.stack([high, low], axis=1).astype(">u8").tobytes()
    return [text[at : at + 16] for at in range(0, len(text), 16)]


def as_numbers(keys: Collection[bytes]) -> tuple[Words, Words]:
    """Return both halves of 16-byte identities."""
    halves = np.frombuffer(b"".join(keys), ">u8").astype(np.uint64).reshape(-1, 2)
    return halves[:, 0], halves[:, 1]


def text_numbers(column: pa.Array) -> Words:
    """Return 64 bits of each text; two that agree may still differ."""
    sums = _sums(column, "text", _LABEL_LANES)
    return _joined(sums[0], sums[1])


def spread(path: pa.Array, purpose: str) -> Words:
    """Return 64 bits of each path, evenly spread and for each purpose others: to choose by.

    The sums alone would take neighbours in a numbered series at even distances; the finaliser of
    SplitMix64 (Steele and others, 2014) does away with that.
    """
    sums = _sums(path, f"choice of {purpose}", _ROW_LANES)
    mixed = _joined(sums[0], sums[1]) ^ _joined(sums[3], sums[2])
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return np.asarray(mixed ^ (mixed >> np.uint64(31)))


def _joined(upper: Words, lower: Words) -> Words:
    return np.asarray((upper & _UPPER) | (lower >> _HALF))


@lru_cache(maxsize=256)
def _multipliers(field: str, words: int) -> Words:
    """Return multipliers, uint64 [words, lanes]; more words begin with the same."""
    text = hashlib.shake_256(f"segmill {field}".encode()).digest(8 * words * _ROW_LANES)
    return np.frombuffer(text, "<u8").astype(np.uint64).reshape(words, _ROW_LANES)


def _text_sums(text: str, field: str, lanes: int) -> Words:
    """Return the sums of one text, uint64 [lanes]."""
    data = text.encode("utf-8", "surrogateescape")
    words = np.frombuffer(data + bytes(-len(data) % 4), "<u4").astype(np.uint64)
    factors = _multipliers(field, 1 << words.size.bit_length())[:, :lanes]
    sums = np.uint64(len(data)) * factors[0] + (words[:, None] * factors[1 : words.size + 1]).sum(0)
    return np.asarray(sums, np.uint64)


def _sums(column: pa.Array, field: str, lanes: int) -> Words:
    """Return the sums of a column of text, uint64 [lanes, n]."""
    if pa.types.is_dictionary(column.type):
        values = pa.concat_arrays([column.dictionary.cast(pa.string()), pa.array([""])])
        codes = column.indices.fill_null(len(values) - 1).to_numpy(zero_copy_only=False)
        return _sums(values, field, lanes)[:, codes]
    column = column.fill_null("") if column.null_count else column
    lengths = pc.binary_length(column).to_numpy(zero_copy_only=False).astype(np.int64)
    long = np.flatnonzero(lengths > _LONG)
    short = pc.if_else(pa.array(lengths > _LONG), "", column) if long.size else column
    sums = np.empty((lanes, len(column)), np.uint64)
    for start in range(0, len(column), _BLOCK):
        block = slice(start, start + _BLOCK)
        counts = np.where(lengths[block] > _LONG, 0, lengths[block])
        sums[:, block] = _block_sums(short[block], counts, field, lanes)
    for row in long.tolist():
        sums[:, row] = _text_sums(column[row].as_py(), field, lanes)
    return sums


def _block_sums(block: pa.Array, lengths: NDArray[np.int64], field: str, lanes: int) -> Words:
    """Return the sums of short texts, made equally long by zero bytes, which add nothing."""
    width = -(-int(lengths.max()) // 4) * 4
    factors = _multipliers(field, _LONG // 4 + 1)[:, :lanes, None]
    sums = lengths.astype(np.uint64) * factors[0]
    if width:
        padded = pc.ascii_rpad(block, width, "\0")
        words = np.frombuffer(padded.buffers()[-1], "<u4", offset=padded.offset * width)
        words = words[: len(block) * width // 4].reshape(len(block), width // 4)
        for number, column in enumerate(words.T.astype(np.uint64), 1):
            sums += column * factors[number]
    return np.asarray(sums)
