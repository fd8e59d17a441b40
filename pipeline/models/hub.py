"""Where a transformers model lies, and what to say when it cannot be had."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any, Final

from huggingface_hub import constants

from pipeline.errors import ModelError
from pipeline.models.fetched import local_folder

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pipeline.models.uri import ModelUri

_FILES: Final = (".json", ".txt", ".model", ".safetensors")
"""What is fetched of a directory in a bucket: no pickled weights."""


@dataclass(frozen=True, slots=True)
class Source:
    """A directory here, or a name on the hub, and what `from_pretrained` takes beside it."""

    name: str
    local: bool
    options: Mapping[str, Any] = field(default_factory=dict)


def source_of(uri: ModelUri) -> Source:
    """Return where a model lies; a directory of a bucket is fetched.

    Raises:
        ModelError: it is written as a path, and nothing is there.
    """
    if "://" in uri.name:
        return Source(local_folder(uri.name, _FILES), True, {"local_files_only": True})
    name = os.path.expanduser(uri.name)
    if os.path.isdir(name):
        return Source(name, True, {"local_files_only": True})
    if name.startswith((".", "/")) or name.count("/") > 1 or os.path.exists(name):
        raise ModelError(
            f"{uri.text}: no such directory; give one written by save_pretrained, or OWNER/NAME of "
            "the hub"
        )
    revision = uri.options.get("revision")
    return Source(name, False, {} if revision is None else {"revision": str(revision)})


def explained(uri: ModelUri, source: Source, error: Exception) -> ModelError:
    """Return one line for what transformers raised while it loaded a model."""
    lines = str(error).strip().splitlines()
    cause = lines[0] if lines else type(error).__name__
    if "trust_remote_code" in str(error):
        return ModelError(
            f"{uri.text}: its code lies beside the weights, and is not run; only models that are "
            "part of transformers can be loaded"
        )
    if isinstance(error, UnpicklingError):
        return ModelError(
            f"{uri.text}: its weights hold Python objects beside tensors, which are not loaded "
            "since they can run code; save them as safetensors"
        )
    if source.local:
        return ModelError(
            f"{uri.text}: holds no whole model ({cause}); give a directory written by "
            "save_pretrained"
        )
    if _was_answered(error):
        return ModelError(
            f"{uri.text}: the hub at {constants.ENDPOINT} has no such model, or shows it to "
            f"members only ({cause}); check the name, or set HF_TOKEN"
        )
    state = (
        "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "it cannot be reached from here"
    )
    mend = "unset HF_HUB_OFFLINE, or " if constants.HF_HUB_OFFLINE else ""
    return ModelError(
        f"{uri.text}: not in the cache {constants.HF_HUB_CACHE}, and the hub at "
        f"{constants.ENDPOINT} was not asked or did not answer: {state} ({cause}); {mend}run "
        f"`hf download {source.name}` where the hub can be reached and bring its directory here: "
        "hf:DIRECTORY"
    )


def _was_answered(error: BaseException | None) -> bool:
    """Whether the hub said no: it does not have the model, or hides it."""
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    while error is not None:
        if isinstance(error, LocalEntryNotFoundError):
            return False
        if isinstance(error, HfHubHTTPError):
            status = getattr(error.response, "status_code", 0)
            return status in {401, 403, 404}
        error = error.__cause__ or error.__context__
    return False
