"""`onnx:` models, run by onnxruntime: on CUDA where it has that provider, else on the CPU.

The file fixes batch, height and width, or leaves them open; what it does not say of classes and
preprocessing is told as `pipeline.models.described` has it. Not a torch module inside: it runs in
the precision it was exported in, whatever --precision says.
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch import nn

from pipeline.errors import MissingExtra, ModelError
from pipeline.models.classes import check_count
from pipeline.models.described import choice, input_of, read_description, space_of
from pipeline.models.device_errors import device_lost
from pipeline.models.loaded import LoadedModel, Preprocessing
from pipeline.models.program import TINY, checked, program_architecture, program_file

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from pipeline.label_space import LabelSpace
    from pipeline.models.uri import ModelUri

LOG = logging.getLogger("segmill")
_MOVING: Final = threading.Lock()
_PARTS: Final = (".data", "_data")
"""How exporters call the file that holds a large model's weights."""
_TYPES: Final = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(uint8)": np.uint8,
}
_LAYOUTS: Final = ("nchw", "nhwc")
_OUTPUTS: Final = ("logits", "probabilities")


def load(uri: ModelUri, space: LabelSpace | None, *, pretrained: bool) -> LoadedModel:
    """Return the model of an .onnx file on any file system.

    Raises:
        MissingExtra: onnxruntime is not installed.
        ModelError: it is no ONNX model with one image in and logits out.
        UsageError: nothing says which classes it has.
    """
    path = program_file(uri, pretrained=pretrained, options=("layout", "output"), parts=_PARTS)
    session = _session(path, "cpu")
    described = read_description(path, session.get_modelmeta().custom_metadata_map)
    layout = choice(uri, described, "layout", _LAYOUTS)
    output = choice(uri, described, "output", _OUTPUTS)
    taken = _taken(session, uri.text)
    if taken.type not in _TYPES:
        raise ModelError(f"{uri.text}: takes {taken.type}; export it with a float or uint8 image")
    known = space_of(uri, space, described)
    sides = taken.shape[2:] if layout == "nchw" else taken.shape[1:3]
    preprocessing = input_of(uri, described, (_fixed(sides[0]), _fixed(sides[1])))
    if taken.type == "tensor(uint8)":
        preprocessing = _as_bytes(preprocessing)
    outputs = session.get_outputs()[0].shape
    channels = _fixed(outputs[1 if layout == "nchw" else -1]) if len(outputs) == 4 else None
    if channels is not None:
        check_count(uri.text, channels, known)
    module = Session(path, session, layout=layout, output=output)
    architecture = program_architecture("onnx", path, _PARTS, layout=layout, output=output)
    return LoadedModel(module, known, preprocessing, uri.text, "", architecture)


class Session(nn.Module):
    """An ONNX model behind the contract of a torch module; it moves to the input's device."""

    def __init__(self, path: str, session: Any, *, layout: str, output: str) -> None:
        super().__init__()
        self._path, self._session, self._on = path, session, "cpu"
        self._last, self._probabilities = layout == "nhwc", output == "probabilities"
        taken = session.get_inputs()[0]
        self._type, self._one = _TYPES[taken.type], _fixed(taken.shape[0])

    def forward(self, image: Tensor) -> Tensor:
        """Return logits [N, C, h, w]; a model with a fixed batch takes the images in turns."""
        self._move(image.device)
        pixels = image.permute(0, 2, 3, 1) if self._last else image
        host = pixels.float().contiguous().cpu().numpy()
        host = host.round().clip(0, 255) if self._type is np.uint8 else host
        host = np.ascontiguousarray(host.astype(self._type, copy=False))
        step = self._one or len(host)
        found = [self._run(host[at : at + step], step) for at in range(0, len(host), step)]
        out = checked(torch.from_numpy(np.concatenate(found)), self._path)
        out = out.permute(0, 3, 1, 2) if self._last else out
        out = out.clamp_min(TINY).log() if self._probabilities else out
        return out.to(image.device)

    def _run(self, images: NDArray[Any], step: int) -> NDArray[Any]:
        """Run one batch, filled up to the size that the model takes."""
        short = step - len(images)
        filled = (
            np.concatenate([images, np.repeat(images[-1:], short, axis=0)]) if short else images
        )
        try:
            found = self._session.run(None, {self._session.get_inputs()[0].name: filled})[0]
        except Exception as error:  # onnxruntime's own classes; none is public
            if "allocat" in str(error).lower():
                raise RuntimeError(f"can't allocate memory: {error}") from error
            if device_lost(RuntimeError(str(error))):
                raise RuntimeError(str(error)) from error
            cause = str(error).strip().splitlines()[0]
            raise ModelError(
                f"{self._path}: fails on an input {list(filled.shape)}: {cause}; give the sizes "
                "that it takes with ?size=HxW or ?multiple=N"
            ) from error
        return np.asarray(found)[: len(images)]

    def _move(self, device: torch.device) -> None:
        where = f"cuda:{device.index or 0}" if device.type == "cuda" else "cpu"
        with _MOVING:  # threads share the model
            if where != self._on:
                self._session, self._on = _session(self._path, where), where


def _session(path: str, where: str) -> Any:
    """Open a model on a device; on the CPU with one thread, as an actor has one core."""
    try:
        import onnxruntime
    except ImportError:
        raise MissingExtra("onnx: models", "onnx") from None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors; they are raised, too
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    providers: list[Any] = ["CPUExecutionProvider"]
    if where != "cpu" and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        providers.insert(0, ("CUDAExecutionProvider", {"device_id": int(where.partition(":")[2])}))
    try:
        session = onnxruntime.InferenceSession(path, options, providers=providers)
    except Exception as error:  # onnxruntime's own classes; none is public
        cause = str(error).strip().splitlines()[0]
        raise ModelError(f"{path}: onnxruntime cannot open it: {cause}") from None
    if where != "cpu" and "CUDAExecutionProvider" not in session.get_providers():
        LOG.warning(
            "%s: runs on the CPU, as this onnxruntime has no CUDA: pip install 'segmill[onnx-gpu]'",
            path,
        )
    return session


def _taken(session: Any, what: str) -> Any:
    """Return the model's one input, an image."""
    inputs = session.get_inputs()
    if len(inputs) != 1 or len(inputs[0].shape) != 4:
        shapes = ", ".join(f"{i.name} {i.shape}" for i in inputs)
        raise ModelError(f"{what}: takes {shapes}; export it with one input [N, 3, H, W]")
    return inputs[0]


def _fixed(side: Any) -> int | None:
    """Return a dimension that the file fixes; open ones are names or nothing."""
    return side if isinstance(side, int) and side > 0 else None


def _as_bytes(own: Preprocessing) -> Preprocessing:
    """Return preprocessing that leaves pixels in 0..255: such a model normalises by itself."""
    return Preprocessing((0.0,) * 3, (1 / 255,) * 3, own.size, own.multiple, own.edge)
