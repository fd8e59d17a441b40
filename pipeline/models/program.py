"""What exported programs have in common: the file is the model, weights and all."""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING, Any, Final

import torch

from pipeline.errors import ModelError, UsageError
from pipeline.models.asked import CLASSES, INPUT
from pipeline.models.described import CONFIG, PROCESSOR
from pipeline.models.fetched import local_file
from pipeline.models.loaded import Architecture

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from pipeline.models.uri import ModelUri

TINY: Final = 1e-6
"""Below every probability that matters; keeps the logarithm finite."""


def program_file(
    uri: ModelUri, *, pretrained: bool, options: Sequence[str] = (), parts: Sequence[str] = ()
) -> str:
    """Return a program's path on this machine, fetched with what lies beside it.

    `options` are those of its kind alone; `parts` end the names of files that are part of it.

    Raises:
        UsageError: other weights are asked for, or an unknown option.
        ModelError: the file cannot be had.
    """
    uri.only(*INPUT, *CLASSES, *options)
    if not pretrained:
        raise UsageError(f"{uri.text}: an exported model holds its weights; leave --weights out")
    name = os.path.basename(uri.name)
    return local_file(uri.name, [f"{name}.json", CONFIG, PROCESSOR, *(name + p for p in parts)])


def program_architecture(
    kind: str, path: str, parts: Sequence[str] = (), **options: str
) -> Architecture:
    """Return the identity of a program: the digest of its bytes, not where it lies."""
    sha = hashlib.sha256()
    for part in ("", *parts):
        if part and not os.path.exists(path + part):
            continue
        with open(path + part, "rb") as file:
            sha.update(hashlib.file_digest(file, "sha256").digest())
    return Architecture(kind, "program", {"sha256": sha.hexdigest(), **options})


def checked(logits: Tensor, what: str) -> Tensor:
    """Return a program's output if it is logits [N, C, h, w].

    Raises:
        ModelError: it is not; class ids without scores are named as such.
    """
    if logits.dim() == 4 and logits.is_floating_point():
        return logits
    ids = " (class ids?)" if not logits.is_floating_point() else ""
    raise ModelError(
        f"{what}: its output is {str(logits.dtype).removeprefix('torch.')} {list(logits.shape)}"
        f"{ids}, not logits [N, C, h, w]; export it without the arg-max"
    )


def first_tensor(found: Any) -> Tensor:
    """Return the logits among a program's outputs: the first, or the one called out or logits."""
    if isinstance(found, dict):
        found = found.get("logits", found.get("out", next(iter(found.values()), None)))
    while isinstance(found, list | tuple) and found:
        found = found[0]
    if not torch.is_tensor(found):
        raise ModelError(f"the program returns {type(found).__name__}, not logits")
    return found
