"""`export:` models: programs written by `torch.export.save` (.pt2), sizes fixed or dynamic.

Classes and preprocessing are told as `pipeline.models.described` has it; metadata are the
`extra_files` that `save` takes. The program's graph is run, no Python of it.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import nn

from pipeline.errors import ModelError
from pipeline.models.classes import check_count
from pipeline.models.described import KEYS, choice, input_of, read_description, space_of
from pipeline.models.device_errors import device_lost, no_memory
from pipeline.models.loaded import LoadedModel
from pipeline.models.program import (
    TINY,
    checked,
    first_tensor,
    program_architecture,
    program_file,
)
from pipeline.models.pt2 import check_archive, tensors_only

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.label_space import LabelSpace
    from pipeline.models.uri import ModelUri

_MOVING: Final = threading.Lock()


def load(uri: ModelUri, space: LabelSpace | None, *, pretrained: bool) -> LoadedModel:
    """Return the model of a .pt2 file on any file system.

    Raises:
        ModelError: it is no such program, needs a pickle, or does not turn an image into logits.
        UsageError: nothing says which classes it has.
    """
    path = program_file(uri, pretrained=pretrained, options=("output",))
    program, metadata = _opened(path)
    described = read_description(path, metadata)
    output = choice(uri, described, "output", ("logits", "probabilities"))
    taken, given = _shapes(program, uri.text)
    known = space_of(uri, space, described)
    if given[1] is not None:
        check_count(uri.text, given[1], known)
    preprocessing = input_of(uri, described, (taken[2], taken[3]))
    module = Program(path, program, taken[0], probabilities=output == "probabilities")
    architecture = program_architecture("export", path, output=output)
    return LoadedModel(module, known, preprocessing, uri.text, "", architecture)


class Program(nn.Module):
    """An exported program behind the contract of a module; it moves to the input's device."""

    def __init__(self, path: str, program: Any, batch: int | None, *, probabilities: bool) -> None:
        super().__init__()
        self._path, self._batch, self._probabilities = path, batch, probabilities
        self._on = torch.device("cpu")
        # In a list, so that .eval() and .to(), which programs refuse, do not reach them.
        self._held = [program, program.module()]

    def forward(self, image: Tensor) -> Tensor:
        """Return logits [N, C, h, w]; a program with a fixed batch takes the images in turns."""
        self._move(image.device)
        step = self._batch or len(image)
        found = torch.cat([self._run(part, step) for part in torch.split(image, step)])
        out = checked(found, self._path)
        return out.clamp_min(TINY).log() if self._probabilities else out

    def _run(self, images: Tensor, step: int) -> Tensor:
        """Run one batch, filled up to the size that the program takes."""
        short = step - len(images)
        filled = torch.cat([images, images[-1:].expand(short, -1, -1, -1)]) if short else images
        try:
            found = self._held[1](filled.contiguous())
        except (AssertionError, RuntimeError) as error:
            if no_memory(error) or device_lost(error):
                raise
            cause = str(error).strip().splitlines()[0]
            raise ModelError(
                f"{self._path}: fails on an input {list(filled.shape)}: {cause}; give the sizes "
                "that it takes with ?size=HxW or ?multiple=N"
            ) from error
        return first_tensor(found)[: len(images)]

    def _move(self, device: torch.device) -> None:
        from torch.export.passes import move_to_device_pass

        with _MOVING:  # threads share the model
            if device != self._on:
                program = move_to_device_pass(self._held[0], str(device))
                self._held, self._on = [program, program.module()], device


def _opened(path: str) -> tuple[Any, dict[str, str]]:
    """Load a program and its metadata without unpickling Python objects."""
    check_archive(path)
    metadata = dict.fromkeys(("segmill", *KEYS), "")
    try:
        with tensors_only():
            program = torch.export.load(path, extra_files=metadata)
    except Exception as error:  # many classes: zip, JSON, pickle, an operator that is not there
        text = str(error).strip()
        cause = text.splitlines()[0] if text else type(error).__name__
        if "weights_only" in text or "weights only" in text.lower():
            raise ModelError(
                f"{path}: holds Python objects, which are not loaded since they can run code; "
                "export it with plain tensors"
            ) from None
        raise ModelError(f"{path}: torch.export cannot load it ({cause})") from None
    return program, {key: str(value) for key, value in metadata.items() if value}


def _shapes(program: Any, what: str) -> tuple[list[int | None], list[int | None]]:
    """Return the shapes of the one input and of the first output, None where they are dynamic."""
    signature = program.graph_signature
    by_name = {node.name: node for node in program.graph.nodes}
    if len(signature.user_inputs) != 1:
        raise ModelError(f"{what}: takes {len(signature.user_inputs)} inputs; export it with one")
    shapes = []
    for name in (signature.user_inputs[0], signature.user_outputs[0]):
        value = by_name[str(name)].meta.get("val")
        sides = list(getattr(value, "shape", ()))
        if len(sides) != 4:
            raise ModelError(f"{what}: {name} has shape {sides}, not [N, channels, height, width]")
        shapes.append([side if isinstance(side, int) else None for side in sides])
    return shapes[0], shapes[1]
