"""What `convert` and `export` share: when they stop, what they say."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobs.console import note, tolerated

if TYPE_CHECKING:
    from connectors.dataset import Conversion
    from jobs.console import Summary


def stop_after(max_errors: str) -> int | None:
    """Return the count of failures that ends a job early: with 0 and shares it goes to its end.

    >>> stop_after("20"), stop_after("0"), stop_after("1%")
    (20, None, None)
    """
    return None if max_errors.endswith("%") else tolerated(max_errors, 0) or None


def book(summary: Summary, total: Conversion, dst: str, *, strict: bool) -> None:
    """Book what writing a dataset came to: the sum, the loss, and the failures beside it."""
    from pipeline.files import open_sink

    summary.done, summary.failed = total.done, total.failed
    summary.paths["dataset"] = open_sink(dst).url
    summary.figures["loss"] = total.loss.to_dict()
    summary.figures["resumed"] = total.resumed
    if total.resumed:
        note(f"{total.resumed} inputs were written before this run was taken up again")
    for line in total.loss.lines():
        note(f"lost: {line}")
    if total.errors:
        summary.paths["errors"] = total.errors
        for message in total.told:
            note(message)
    if strict and total.loss.any:
        summary.gate = "--strict: the conversion loses something, see above"
