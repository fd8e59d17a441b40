"""Checkpoints: all that a killed run needs to go on as if it had not been killed."""

from __future__ import annotations

import io
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final

import torch

from pipeline.errors import InputError, ModelError, UsageError
from pipeline.files import open_sink, read_url

if TYPE_CHECKING:
    from collections.abc import Mapping

FILE: Final = "checkpoint.pt"


@dataclass(slots=True)
class Progress:
    """How far a run has come, beside its weights."""

    epoch: int = 0
    """Epochs that are over."""
    step: int = 0
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)
    best_miou: float | None = None
    best_epoch: int | None = None
    failures: dict[str, str] = field(default_factory=dict)
    finished: bool = False


def save(url: str, identity: Mapping[str, Any], progress: Progress, tensors: Any) -> None:
    """Write a checkpoint into a run's directory, whole or not at all."""
    state = {"identity": dict(identity), "progress": asdict(progress), "tensors": tensors}
    with open_sink(url).stream(FILE) as file:
        torch.save(state, file)


def copy(url: str, folder: str) -> None:
    """Copy a run's checkpoint into a local folder."""
    source = open_sink(url)
    if source.exists(FILE):
        open_sink(folder).write(FILE, read_url(source.url_of(FILE)))


def discard(url: str) -> None:
    """Forget a run's checkpoint, so that the next run in its directory starts anew."""
    if open_sink(url).exists(FILE):
        open_sink(url).write(FILE, b"")


def load(url: str, identity: Mapping[str, Any]) -> tuple[Progress, Any] | None:
    """Return a run's progress and tensors; None where no run has left a checkpoint.

    Raises:
        UsageError: the directory holds another run: says what differs.
        ModelError: the checkpoint is damaged.
    """
    if not open_sink(url).exists(FILE):
        return None
    try:
        data = read_url(open_sink(url).url_of(FILE))
        if not data:  # discarded
            return None
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        known = state["identity"]
        progress, tensors = Progress(**state["progress"]), state["tensors"]
    except (InputError, OSError, RuntimeError, EOFError, KeyError, TypeError) as error:
        raise ModelError(f"{url}/{FILE}: damaged ({error}); start anew with --no-resume") from None
    differs = _differences(known, identity)
    if differs:
        raise UsageError(
            f"{url}: holds a run that differs in {'; '.join(differs)}; name another --out, or "
            "start anew with --no-resume"
        )
    return progress, tensors


def _differences(known: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    """Name what differs, with both values; of a nested mapping, its keys."""
    out = []
    for key in sorted({*known, *asked}):
        old, new = known.get(key), asked.get(key)
        if old == new:
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            out += [f"{key}: {text}" for text in _differences(old, new)]
        else:
            out.append(f"{key} ({old!r}, now {new!r})")
    return out
