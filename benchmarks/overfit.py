"""Every architecture of the zoo learns four images by heart, its auxiliary heads included.

    python -m benchmarks.overfit [NAME ...]

Four images of coloured rectangles, 64x64, three classes, noise; AdamW, no drop-out. Prints the
pixel accuracy in eval mode and the CPU seconds; exits with 1 where one stays below 0.95. Without
names, those are left out that differ from another in nothing but depth. Takes some 16 bytes for a
parameter: 2 GB for VGG-16 with its wide layers, 5 GB for RDFNet.
"""

from __future__ import annotations

import gc
import sys
import time

import torch

from pipeline.models import load_model
from pipeline.models.architectures import MODELS
from tests.pipeline.zoo_checks import overfitted

ENOUGH, MOST = 0.95, 200
RATES = {"cenet": 3e-4, "enet": 1e-2, "icnet": 5e-3, "linknet": 2e-3, "segnet_basic": 2e-3}
PLAIN = ("deeplab_v1", "deeplab_v2_vgg16", "dilation", "fcn", "unet")
"""Networks without batch norm diverge at the rate of the others."""
DEEPER = ("67", "101", "103", "152", "161", "169", "201")


def rate(name: str) -> float:
    plain = name == "unet" or name.startswith(PLAIN[:-1])
    return RATES.get(name, 1e-4 if plain else 1e-3)


def main(names: list[str]) -> None:
    print("| architecture | pixel accuracy | CPU seconds |\n| --- | --- | --- |")
    below = []
    for name in names or [name for name in MODELS if not name.endswith(DEEPER)]:
        start = time.process_time()
        net = load_model(f"zoo:{name}?classes=3&seed=1").module
        accuracy = overfitted(net, size=64, lr=rate(name), most=MOST, enough=ENOUGH)
        print(f"| {name} | {accuracy:.3f} | {time.process_time() - start:.0f} |", flush=True)
        if accuracy <= ENOUGH:
            below.append(name)
        del net
        gc.collect()
    if below:
        raise SystemExit(f"below {ENOUGH}: {', '.join(below)}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1:])
