"""Every architecture of the zoo exported by torch.export and to ONNX, compared with itself.

    python -m benchmarks.export_models [NAME ...]

Prints the largest difference of the logits, relative to the largest one, and the seconds that the
exports took. Exits with 1 where a difference is above 1e-4. One network is in
memory at a time; the largest takes about 3 GB.
"""

from __future__ import annotations

import gc
import sys
import time

import torch

from pipeline.models.architectures import MODELS
from tests.pipeline.zoo_checks import (
    export_size,
    exported_difference,
    image_for,
    onnx_difference,
    shaken,
)

MOST = 1e-4


def main(names: list[str]) -> None:
    print("| architecture | torch.export | ONNX | seconds |\n| --- | --- | --- | --- |")
    worst = 0.0
    for name in names or list(MODELS):
        start = time.perf_counter()
        net = shaken(f"zoo:{name}?classes=5")
        image = image_for(net, export_size(name), export_size(name))
        found = [check(net, image) for check in (exported_difference, onnx_difference)]
        worst = max(worst, *found)
        seconds = time.perf_counter() - start
        print(f"| {name} | {found[0]:.1e} | {found[1]:.1e} | {seconds:.1f} |", flush=True)
        del net
        gc.collect()
    if worst > MOST:
        raise SystemExit(f"a difference of {worst:.1e} is above {MOST}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1:])
