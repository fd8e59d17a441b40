"""Inputs that failed: one row each in the errors table beside the labels."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from pipeline.record import Sample

SCHEMA: Final = pa.schema(
    [
        ("path", pa.string()),
        ("image_id", pa.string()),
        ("dataset", pa.string()),
        ("split", pa.string()),
        ("stage", pa.string()),
        ("error", pa.string()),
        ("message", pa.string()),
        ("run", pa.string()),
        ("at", pa.timestamp("us", tz="UTC")),
    ]
)


@dataclass(frozen=True, slots=True)
class Failure:
    """Why one input has no label: the stage, the error's class, and a message with the mend."""

    path: str
    image_id: str
    dataset: str
    split: str
    stage: str
    error: str
    message: str

    @classmethod
    def of(cls, sample: Sample, stage: str, error: BaseException) -> Failure:
        """Return the failure of one sample."""
        return cls(
            path=sample.path,
            image_id=sample.image_id,
            dataset=sample.dataset,
            split=sample.split,
            stage=stage,
            error=type(error).__name__,
            message=" ".join(str(error).split()) or type(error).__name__,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the failure as plain data."""
        return asdict(self)


def to_table(failures: Iterable[Failure], run: str, at: datetime) -> pa.Table:
    """Return the failures of a run as rows of `SCHEMA`, in a fixed order."""
    rows = sorted((f.to_dict() for f in failures), key=lambda r: (r["image_id"], r["path"]))
    return pa.Table.from_pylist([row | {"run": run, "at": at} for row in rows], schema=SCHEMA)
