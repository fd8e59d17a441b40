"""Models: `load_model(uri)` returns any of them under one contract.

| URI | what |
| --- | --- |
| `zoo:enet?classes=11&seed=0` | an architecture of `MODELS`, untrained |
| `smp:Unet?encoder_name=resnet34&classes=11` | segmentation_models_pytorch, untrained |
| `torchvision:deeplabv3_resnet50?weights=DEFAULT` | torchvision; untrained unless so |
| `torchvision:maskrcnn_resnet50_fpn?weights=DEFAULT&score=0.5` | its Mask R-CNN: objects |
| `hf:<directory or hub id>?task=instance` | transformers: semantic, universal |
| `onnx:<file>` | onnxruntime |
| `export:<file>.pt2`, `script:<file>` | programs of torch.export and TorchScript |
| `run:<directory>` | a model directory: model.json and weights.safetensors |
| `shipped:camvid-lite` | a model directory that comes with segmill |
| `python:package.module:factory` | a function of the user's own |
| `ensemble:URI|URI` | several models, their probabilities averaged |

Directories and files lie on any file system; `docs/models.md` has the options of each kind.
Importing this package imports no torch; loading a model does.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final

from pipeline.errors import UnknownName
from pipeline.models.architectures import MODELS, ModelSpec
from pipeline.models.loaded import Architecture, LoadedModel, Preprocessing
from pipeline.models.uri import parse

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import ModuleType

    from pipeline.label_space import LabelSpace

__all__ = [
    "KINDS",
    "MODELS",
    "Architecture",
    "LoadedModel",
    "ModelSpec",
    "Preprocessing",
    "load_model",
]


KINDS: Final[Mapping[str, str]] = {
    "ensemble": "pipeline.models.ensemble",
    "export": "pipeline.models.export",
    "hf": "pipeline.models.hf",
    "onnx": "pipeline.models.onnx",
    "python": "pipeline.models.python",
    "run": "pipeline.models.directory",
    "script": "pipeline.models.script",
    "shipped": "pipeline.models.shipped",
    "smp": "pipeline.models.smp",
    "torchvision": "pipeline.models.torchvision",
    "zoo": "pipeline.models.zoo",
}
"""Each kind's adapter: `load(uri, space, pretrained=)`, and `build(architecture, classes)` for
those that a model directory can hold."""


def adapter(kind: str) -> ModuleType:
    """Import the adapter of a kind of model."""
    if kind not in KINDS:
        raise UnknownName("kind of model", kind, KINDS)
    return import_module(KINDS[kind])


def load_model(
    uri: str, *, weights: str | None = None, label_space: str | LabelSpace | None = None
) -> LoadedModel:
    """Load the model that a URI names, in eval mode on the CPU.

    `weights` is a .safetensors or .pt file (or a model directory) on any file system; it replaces
    what the URI would load. `label_space` is a built-in name, a JSON file or the thing itself; it
    replaces the model's own if it has as many classes.

    Raises:
        UnknownName: no such kind, architecture or label space.
        UsageError: the URI leaves the number of classes open.
        ModelError: files are missing or don't fit, or a hub cannot be reached.
    """
    parsed = parse(uri)
    kind = adapter(parsed.kind)
    from pipeline.models.classes import asked_space
    from pipeline.models.weights import finish

    space = asked_space(parsed, label_space)
    model: LoadedModel = kind.load(parsed, space, pretrained=weights is None)
    return finish(model, weights)
