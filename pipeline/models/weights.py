"""Weights: read them from any file system without running code, and name them by a digest."""

from __future__ import annotations

import hashlib
import json
import pickle
from typing import TYPE_CHECKING, Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file as load_safetensors

from pipeline.errors import ModelError
from pipeline.models.fetched import local_file
from pipeline.models.packaged import packaged

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor

    from pipeline.models.loaded import LoadedModel

WEIGHTS_FILE: Final = "weights.safetensors"
_WRAPPERS: Final = ("state_dict", "model", "model_state_dict")
_WRAPPED: Final = "net."
_TRAINING_ONLY: Final = "aux_classifier."  # torchvision's, see pipeline.models.torchvision
_PACKAGE: Final = "package:"
_COUNTER: Final = ".num_batches_tracked"
_TORCH_SUFFIXES: Final = (".pt", ".pth", ".ckpt", ".bin")


def finish(model: LoadedModel, weights: str | None = None) -> LoadedModel:
    """Put the weights in, check the class count, switch to eval mode, name the result."""
    if weights is not None:
        put_weights(model, read_weights(weights), weights)
    model.module.eval()
    model.digest = digest(model)
    return model


def read_weights(url: str) -> dict[str, Tensor]:
    """Return the tensors of a .safetensors or torch file, of a model directory, or of a package.

    `package:tf_efficientnet_lite0` is the file that an installed package holds.

    Raises:
        ModelError: the file is missing, damaged, or holds more than tensors.
    """
    if url.startswith(_PACKAGE):
        return packaged(url.removeprefix(_PACKAGE))
    is_file = url.endswith((".safetensors", *_TORCH_SUFFIXES))
    path = url if is_file else f"{url.rstrip('/')}/{WEIGHTS_FILE}"
    try:
        here = local_file(path)
        if path.endswith(_TORCH_SUFFIXES):
            loaded = torch.load(here, map_location="cpu", weights_only=True)
        else:
            loaded = load_safetensors(here)
    except OSError as error:
        raise ModelError(f"{path}: the weights cannot be read: {error}") from error
    except pickle.UnpicklingError:
        raise ModelError(
            f"{path}: holds Python objects beside tensors, which are not loaded since they can run "
            "code; save its state_dict() as .safetensors"
        ) from None
    except (SafetensorError, RuntimeError, EOFError) as error:
        raise ModelError(f"{path}: not a whole weights file: {error}") from None
    return dict(_tensors(loaded, path))


def _tensors(loaded: object, path: str) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a state dict, unwrapped, without DistributedDataParallel's prefix."""
    for wrapper in _WRAPPERS:
        if isinstance(loaded, dict) and isinstance(loaded.get(wrapper), dict):
            loaded = loaded[wrapper]
    if not isinstance(loaded, dict) or not all(torch.is_tensor(v) for v in loaded.values()):
        raise ModelError(f"{path}: holds no state dict; save the model's state_dict()")
    for name, tensor in loaded.items():
        yield str(name).removeprefix("module."), tensor


def put_weights(model: LoadedModel, tensors: Mapping[str, Tensor], source: str) -> None:
    """Copy the tensors into the model, all of them and nothing missing.

    Raises:
        ModelError: names or shapes differ; a different number of classes is said as such.
    """
    own = model.module.state_dict()
    tensors = _renamed(own, tensors)
    missing, unknown = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    if missing or unknown:
        raise ModelError(
            f"{source}: the weights are not those of {model.architecture}: {len(missing)} tensors "
            f"are missing{_first(missing)}, {len(unknown)} are unknown{_first(unknown)}"
        )
    for name, tensor in tensors.items():
        if tensor.shape != own[name].shape:
            raise ModelError(_misfit(model, source, name, tensor, own[name]))
    model.module.load_state_dict(dict(tensors))


def put_matching(model: LoadedModel, tensors: Mapping[str, Tensor], source: str) -> int:
    """Copy the tensors whose names and shapes are the model's own; return how many were.

    They may be those of a part of it, such as an encoder that was trained to classify.

    Raises:
        ModelError: none is.
    """
    own = model.module.state_dict()
    tensors = _renamed(own, tensors)
    fit = _fitting(own, tensors, "")
    for prefix in _prefixes(own, tensors):
        part = _fitting(own, tensors, prefix)
        # Names as short as `0.weight` fit somewhere by chance: a part must take most of the file.
        if len(part) > max(len(fit), len(tensors) // 2):
            fit = part
    if not fit:
        raise ModelError(
            f"{source}: none of its {len(tensors)} tensors has a name and shape of "
            f"{model.architecture}"
        )
    model.module.load_state_dict(own | fit)
    return len(fit)


def _prefixes(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> list[str]:
    """Return the parts of the model that have a tensor of the first of these names."""
    first = [name for name, tensor in tensors.items() if tensor.dim() > 1][:1]
    found = (name.removesuffix(last) for last in first for name in own if name.endswith(last))
    return sorted(prefix for prefix in found if prefix.endswith("."))


def _fitting(
    own: Mapping[str, Tensor], tensors: Mapping[str, Tensor], prefix: str
) -> dict[str, Tensor]:
    """Return the tensors that the model has under the prefix, in the same shape."""
    named = ((prefix + name, tensor) for name, tensor in tensors.items())
    return {name: t for name, t in named if name in own and own[name].shape == t.shape}


def _renamed(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return the tensors of a library's own file under the names of our wrapper around it."""
    if not any(name.endswith(_COUNTER) for name in own):  # frozen normalisation has none
        tensors = {k: v for k, v in tensors.items() if not k.endswith(_COUNTER)}
    wrapped = all(name.startswith(_WRAPPED) for name in own)
    if not wrapped or any(name.startswith(_WRAPPED) for name in tensors):
        return tensors
    return {_WRAPPED + k: v for k, v in tensors.items() if not k.startswith(_TRAINING_ONLY)}


def _first(names: list[str]) -> str:
    return f" ({names[0]!r} first)" if names else ""


def _misfit(model: LoadedModel, source: str, name: str, found: Tensor, own: Tensor) -> str:
    """Explain a tensor of the wrong shape; where only the class count differs, say that."""
    classes = len(model.label_space.train_ids)
    pairs = [(f, o) for f, o in zip(found.shape, own.shape, strict=False) if f != o]
    if found.dim() == own.dim() and len(pairs) == 1 and pairs[0][1] == classes:
        return (
            f"{source}: the weights have {pairs[0][0]} classes, label space "
            f"{model.label_space.name!r} has {classes}; name the label space that they were "
            "trained on with ?label_space= or --label-space"
        )
    return (
        f"{source}: tensor {name!r} has shape {tuple(found.shape)}, {model.architecture} needs "
        f"{tuple(own.shape)}; give the options that it was trained with"
    )


def digest(model: LoadedModel) -> str:
    """Return the sha256 of architecture, preprocessing, label space and every tensor, in hex.

    An exported program has no tensors here: its architecture holds the digest of the file.
    """
    sha = hashlib.sha256()
    parts: list[Any] = [
        model.architecture.to_dict(),
        model.preprocessing.to_dict(),
        model.label_space.to_json(),
    ]
    if model.objects is not None:
        parts.append(model.objects.to_dict())
    for part in parts:
        sha.update(json.dumps(part, sort_keys=True).encode() + b"\0")
    for name, tensor in model.module.state_dict().items():
        sha.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        plain = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        sha.update(memoryview(plain.numpy()))
    return sha.hexdigest()
