"""`run:` models: a model directory holds model.json and weights.safetensors, on any file system.

model.json names architecture, label space, preprocessing, digest and the record of the training;
nothing in the directory is code, and nothing is unpickled.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from safetensors.torch import save as save_safetensors

from pipeline.errors import InputError, ModelError, UsageError
from pipeline.files import open_sink, read_url
from pipeline.label_space import LabelSpace
from pipeline.models import adapter
from pipeline.models.asked import asked_objects
from pipeline.models.classes import check_count
from pipeline.models.loaded import Architecture, LoadedModel, Objects, Preprocessing
from pipeline.models.weights import WEIGHTS_FILE, put_weights, read_weights

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

    from pipeline.models.uri import ModelUri

MODEL_FILE: Final = "model.json"
FORMAT: Final = 1


def load(uri: ModelUri, space: LabelSpace | None, *, pretrained: bool) -> LoadedModel:
    """Return the model of a directory.

    Raises:
        ModelError: the directory holds no whole model, or the label space asked for has another
            number of classes.
    """
    described = read_description(uri.name)
    architecture = Architecture.from_dict(described["architecture"])
    own = LabelSpace.from_json(json.dumps(described["label_space"]))
    known = space or own
    check_count(uri.text, len(own.train_ids), known)
    module = adapter(architecture.kind).build(architecture, len(own.train_ids))
    preprocessing = Preprocessing.from_dict(described["preprocessing"])
    objects = described.get("objects")
    kept = _kept(uri, None if objects is None else Objects(**objects))
    model = LoadedModel(module, known, preprocessing, uri.text, "", architecture, kept)
    if pretrained:
        source = f"{uri.name.rstrip('/')}/{WEIGHTS_FILE}"
        put_weights(model, read_weights(source), source)
    return model


def _kept(uri: ModelUri, own: Objects | None) -> Objects | None:
    """Return what to keep of objects: the directory's word, and the URI's where it has one."""
    if own is None:
        return asked_objects(uri, "semantic")
    asked = asked_objects(uri, own.task)
    assert asked is not None
    score = asked.score if "score" in uri.options else own.score
    return Objects(own.task, score, asked.most if "most" in uri.options else own.most)


def read_description(url: str) -> dict[str, Any]:
    """Return what a model directory's model.json says.

    Raises:
        ModelError: it is missing, damaged, or of a newer segmill.
    """
    path = f"{url.rstrip('/')}/{MODEL_FILE}"
    try:
        described = json.loads(read_url(path))
        missing = {"format", "architecture", "label_space", "preprocessing"} - set(described)
    except (InputError, OSError):
        raise ModelError(
            f"{url}: no model directory ({MODEL_FILE} cannot be read); `segmill train --out` "
            "writes one"
        ) from None
    except (ValueError, TypeError) as error:
        raise ModelError(f"{path}: damaged: {error}") from None
    if missing:
        raise ModelError(f"{path}: lacks {', '.join(sorted(missing))}; not written by segmill")
    if described["format"] > FORMAT:
        raise ModelError(f"{path}: written by a newer segmill; upgrade this one")
    return dict(described)


def save_model(model: LoadedModel, url: str, training: Mapping[str, Any] | None = None) -> None:
    """Write a model directory: weights first, so that a model.json never stands without them."""
    if model.architecture.kind not in {"zoo", "smp", "torchvision", "hf", "python"}:
        raise UsageError(f"{model.uri}: a model of this kind cannot be written as a directory")
    sink = open_sink(url)
    sink.write(WEIGHTS_FILE, save_safetensors(_unshared(model.module)))
    described = {
        "format": FORMAT,
        "architecture": model.architecture.to_dict(),
        "label_space": json.loads(model.label_space.to_json()),
        "preprocessing": model.preprocessing.to_dict(),
        "objects": None if model.objects is None else model.objects.to_dict(),
        "digest": model.digest,
        "training": dict(training or {}),
    }
    sink.write(MODEL_FILE, _text(described))


def amend_training(url: str, training: Mapping[str, Any]) -> None:
    """Replace the record of the training in a model directory."""
    described = read_description(url) | {"training": dict(training)}
    open_sink(url).write(MODEL_FILE, _text(described))


def _text(described: Mapping[str, Any]) -> bytes:
    return json.dumps(described, indent=1, ensure_ascii=False).encode()


def _unshared(module: nn.Module) -> dict[str, Tensor]:
    """Return the state dict with a copy for each name: safetensors refuses tied tensors."""
    return {k: v.detach().cpu().contiguous().clone() for k, v in module.state_dict().items()}
