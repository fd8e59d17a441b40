"""Shares of counts: nan stands for a share of nothing, None for it in JSON."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.metrics.confusion import Counts, Floats


def ratio(part: Counts | Floats, whole: Counts | Floats) -> Floats:
    """Return part / whole of each element; nan where the whole is nothing."""
    out: Floats = np.full(np.broadcast_shapes(np.shape(part), np.shape(whole)), np.nan)
    np.divide(part, whole, out=out, where=whole > 0)
    return out


def means(values: Floats) -> Floats:
    """Return the means over the last axis of what is not nan, [...]; nan where all is."""
    there = ~np.isnan(values)
    return ratio(np.where(there, values, 0.0).sum(axis=-1), there.sum(axis=-1))


def mean(values: Floats) -> float:
    """Return the mean of the values [n] that are not nan; nan without any.

    The same to the last digit however many nan lie between the values, which `means` isn't.
    """
    found = values[~np.isnan(values)]
    return float(found.mean()) if found.size else math.nan


def known(value: float) -> float | None:
    """Return the value as JSON may hold it: None for nan."""
    return None if math.isnan(value) else float(value)


def by_name(names: Sequence[str], **columns: Floats | Counts) -> dict[str, dict[str, Any]]:
    """Return each class's figures under its name; the columns are [C], None stands for nan."""
    rows = zip(*(column.tolist() for column in columns.values()), strict=True)
    told = ([known(v) if isinstance(v, float) else v for v in row] for row in rows)
    return {
        name: dict(zip(columns, row, strict=True)) for name, row in zip(names, told, strict=True)
    }
