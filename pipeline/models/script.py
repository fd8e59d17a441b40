"""`script:` models: TorchScript files, written by `torch.jit.save`.

Classes and preprocessing are told as `pipeline.models.described` has it; metadata are the
`_extra_files` that `save` takes. TorchScript is a program of torch's operators, no Python.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pipeline.errors import ModelError
from pipeline.models.described import KEYS, choice, input_of, read_description, space_of
from pipeline.models.loaded import LoadedModel
from pipeline.models.program import (
    TINY,
    checked,
    first_tensor,
    program_architecture,
    program_file,
)

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.label_space import LabelSpace
    from pipeline.models.uri import ModelUri


def load(uri: ModelUri, space: LabelSpace | None, *, pretrained: bool) -> LoadedModel:
    """Return the model of a TorchScript file on any file system.

    Raises:
        ModelError: it is no such program.
        UsageError: nothing says which classes it has.
    """
    path = program_file(uri, pretrained=pretrained, options=("output",))
    metadata: dict[str, Any] = dict.fromkeys(("segmill", *KEYS), "")
    try:
        program: Any = torch.jit.load(  # type: ignore[no-untyped-call]
            path, map_location="cpu", _extra_files=metadata
        )
    except (RuntimeError, ValueError) as error:
        cause = str(error).strip().splitlines()[0]
        raise ModelError(f"{path}: torch.jit cannot load it ({cause})") from None
    told = {k: v.decode() if isinstance(v, bytes) else v for k, v in metadata.items() if v}
    described = read_description(path, told)
    output = choice(uri, described, "output", ("logits", "probabilities"))
    known = space_of(uri, space, described)
    preprocessing = input_of(uri, described, (None, None))
    module = Script(path, program, probabilities=output == "probabilities")
    architecture = program_architecture("script", path, output=output)
    return LoadedModel(module, known, preprocessing, uri.text, "", architecture)


class Script(nn.Module):
    """A TorchScript program behind the contract of a module."""

    def __init__(self, path: str, program: Any, *, probabilities: bool) -> None:
        super().__init__()
        self._path, self._program, self._probabilities = path, program, probabilities

    def forward(self, image: Tensor) -> Tensor:
        """Return logits [N, C, h, w]."""
        out = checked(first_tensor(self._program(image)), self._path)
        return out.clamp_min(TINY).log() if self._probabilities else out
