"""What every architecture of the zoo must do; shared by tests and by sweeps over the large ones."""

from __future__ import annotations

import io
import logging
import warnings
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from pipeline.models import load_model
from pipeline.models.architectures import MODELS
from pipeline.models.heads import WeightedHeads

if TYPE_CHECKING:
    from torch import Tensor


def shaken(uri: str) -> nn.Module:
    """Return a network in eval mode whose every tensor matters: no zeros, no fresh statistics."""
    net = load_model(uri).module
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for layer in net.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.running_mean.normal_(0, 0.1, generator=generator)
                layer.running_var.uniform_(0.5, 1.5, generator=generator)
        for parameter in net.parameters():
            if not parameter.any():
                parameter.normal_(0, 0.01, generator=generator)
    return net.eval()


def channels(net: nn.Module) -> int:
    return int(getattr(net, "in_channels", 3))


def image_for(net: nn.Module, height: int, width: int, n: int = 1) -> Tensor:
    shape = (n, channels(net), height, width)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def difference(one: Tensor, other: Tensor) -> float:
    """Return the largest difference, relative to the largest value."""
    return float((one - other).abs().max() / one.abs().max())


def exported_difference(net: nn.Module, image: Tensor) -> float:
    """Return how far the program of torch.export is from the network."""
    with torch.no_grad():
        program = torch.export.export(net, (image,))
        return difference(net(image), program.module()(image))


def onnx_difference(net: nn.Module, image: Tensor) -> float:
    """Return how far the network's ONNX form is from it, on onnxruntime."""
    import onnxruntime

    file = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        torch.onnx.export(net, (image,), file, dynamo=False, opset_version=17)
        expected = net(image)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(file.getvalue(), options)
    found = session.run(None, {session.get_inputs()[0].name: image.numpy()})[0]
    assert isinstance(found, np.ndarray)
    return difference(expected, torch.from_numpy(found))


def export_size(name: str) -> int:
    """Return the side of a small square that the ONNX exporter takes.

    Its adaptive pooling wants maps that divide by the bins of a pyramid: 1, 2, 3 and 6.
    """
    if name == "icnet":
        return 192
    return 48 if name.startswith("pspnet") else max(64, MODELS[name].input_multiple)


def patches(classes: int, size: int, n: int = 4) -> tuple[Tensor, Tensor]:
    """Return n images of a few coloured rectangles, and their classes: easy to learn."""
    generator = np.random.default_rng(0)
    colours = generator.normal(size=(classes, 3))
    labels = np.zeros((n, size, size), np.int64)
    for i in range(n):
        for _ in range(4):
            y, x = generator.integers(0, size // 4 * 3, 2)
            high, wide = generator.integers(size // 4, size // 2, 2)
            labels[i, y : y + high, x : x + wide] = generator.integers(0, classes)
    images = colours[labels].transpose(0, 3, 1, 2) + generator.normal(0, 0.2, (n, 3, size, size))
    return torch.from_numpy(images.astype(np.float32)), torch.from_numpy(labels)


def overfitted(net: nn.Module, *, size: int, lr: float, most: int, enough: float = 0.95) -> float:
    """Train on four images until their pixel accuracy in eval mode is enough; return it."""
    images, labels = patches(3, size)
    if channels(net) > 3:
        depth = labels[:, None].float() - 1
        images = torch.cat((images, depth.expand(-1, channels(net) - 3, -1, -1)), dim=1)
    net.train()
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 0.3  # so that the statistics of a short run are its last ones
        if isinstance(layer, nn.Dropout | nn.Dropout2d):
            layer.p = 0.0
    heads = WeightedHeads(net)
    learned = [p for p in net.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(learned, lr=lr, fused=True)
    accuracy = 0.0
    for step in range(1, most + 1):
        optimiser.zero_grad(set_to_none=True)
        loss = torch.zeros(())
        for weight, logits in heads(images):
            loss = loss + weight * F.cross_entropy(_at(logits, size), labels)
        loss.backward()
        nn.utils.clip_grad_norm_(learned, 1.0)
        optimiser.step()
        if step % 10 == 0:
            accuracy = _accuracy(net, images, labels)
            if accuracy > enough:
                break
    return accuracy


def _at(logits: Tensor, size: int) -> Tensor:
    return F.interpolate(logits, (size, size), mode="bilinear", align_corners=False)


def _accuracy(net: nn.Module, images: Tensor, labels: Tensor) -> float:
    net.eval()
    with torch.no_grad():
        right = _at(net(images), labels.shape[-1]).argmax(dim=1) == labels
    net.train()
    return float(right.float().mean())
